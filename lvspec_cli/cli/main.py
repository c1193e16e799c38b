"""The command line. Slow imports are inside the commands, so that ``--help`` is fast."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from lvspec_cli import __version__
from lvspec_cli.cli import ask, bench, bench_relevance, caption, demo, doctor, export, models, tune
from lvspec_cli.cli.groups import SectionedCommand
from lvspec_cli.cli.reporting import explain
from lvspec_cli.errors import UsageError
from lvspec_cli.host import exit_at_once, steady_streams

app = typer.Typer(
    name="lvspec",
    help="Answers about videos by loose speculative decoding with local Video-LLMs.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("ask", cls=SectionedCommand)(ask.ask)
app.command("caption", cls=SectionedCommand)(caption.caption)
app.command("export")(export.export)
app.command("merge")(export.merge)
app.command("demo")(demo.demo)
app.command("bench", cls=SectionedCommand)(bench.bench)
app.command("bench-relevance", cls=SectionedCommand)(bench_relevance.bench_relevance)
app.command("bench-compare")(bench.bench_compare)
app.command("tune", cls=SectionedCommand)(tune.tune)
app.add_typer(models.app, name="models")
app.command("doctor")(doctor.doctor)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"lvspec {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Answers about videos by loose speculative decoding with local Video-LLMs."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def entry() -> NoReturn:
    """As ``main``, but the process exits without Python's cleanup, which takes over a second with torch."""
    code: object = 0
    steady_streams()
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
    try:
        code = app(prog_name="lvspec", standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "lvspec"
        message = " ".join(error.format_message().replace("Value error, ", "").split())
        code = explain(UsageError(message, f"{command} --help"))
    except typer.Abort:
        code = 130
    sys.exit(code or 0)
