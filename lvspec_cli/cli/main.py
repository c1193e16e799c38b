"""The command line. Slow imports are inside the commands, so that ``--help`` is fast."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from lvspec_cli import __version__
from lvspec_cli.cli import (
    ask,
    bench,
    bench_relevance,
    caption,
    chat,
    config,
    demo,
    doctor,
    export,
    models,
    records,
    tune,
)
from lvspec_cli.cli.groups import CONFIGURED, RESEARCH, App, source_of
from lvspec_cli.cli.reporting import as_output_error, check_stdout, explain, write_out
from lvspec_cli.errors import LvspecError, UsageError
from lvspec_cli.host import drop_lost_interrupts, exit_at_once, steady_streams

MACHINE = "Models and this machine"  # a panel of commands
app = App(name="lvspec")
app.command("ask")(ask.ask)
app.command("chat")(chat.chat)
app.command("caption")(caption.caption)
app.command("show")(records.show)
app.command("export")(export.export)
app.command("merge")(export.merge)
app.command("demo")(demo.demo)
app.add_typer(models.app, name="models", rich_help_panel=MACHINE)
app.add_typer(config.app, name="config", rich_help_panel=MACHINE)
app.command("doctor", rich_help_panel=MACHINE)(doctor.doctor)
app.command("bench", rich_help_panel=RESEARCH)(bench.bench)
app.command("bench-compare", rich_help_panel=RESEARCH)(bench.bench_compare)
app.command("bench-relevance", rich_help_panel=RESEARCH)(bench_relevance.bench_relevance)
app.command("tune", rich_help_panel=RESEARCH)(tune.tune)


def _version(requested: bool) -> None:
    if requested:
        write_out(f"lvspec {__version__}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Caption videos and answer questions about them, fast, on your own machine.

    lvspec ask clip.mp4 "What happens?"
    lvspec caption holiday --to srt
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def _defaults(root: Any) -> dict[str, Any]:
    """The defaults of config.toml for all commands; none while a shell completes a word.

    :raises UsageError: config.toml is not valid.
    """
    path = config.config_file()
    if path is None or "_LVSPEC_COMPLETE" in os.environ:
        return {}
    return config.read_settings(path, root).default_map(root)


def entry() -> NoReturn:
    """As ``main``, but the process exits without Python's cleanup, which takes over a second with torch."""
    code: object = 0
    steady_streams()
    drop_lost_interrupts()
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:
        code = 130
    exit_at_once(code if isinstance(code, int) else 0 if code is None else 1)


def main() -> None:
    """Runs one command and exits with its exit code (docs/design.md, "Streams and exit codes")."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    root = typer.main.get_command(app)
    try:
        check_stdout()
        with as_output_error():  # of a help page; commands explain their own errors
            code = root.main(prog_name="lvspec", standalone_mode=False, default_map=_defaults(root))
    except typer.TyperException as error:
        context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
        remedy = f"{context.command_path if context else 'lvspec'} --help"
        message = " ".join(error.format_message().replace("Value error, ", "").split())
        if context and parameter and source_of(context, parameter.name) == CONFIGURED:
            message, remedy = f"config.toml: {message}", "lvspec config"
        code = explain(UsageError(message, remedy))
    except LvspecError as error:
        code = explain(error)
    except typer.Abort:
        code = 130
    sys.exit(code or 0)
