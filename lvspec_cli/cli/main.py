"""The command line. Heavy imports stand inside the commands: ``--help`` has to be quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lvspec_cli import __version__
from lvspec_cli.cli import ask, demo, models
from lvspec_cli.cli.reporting import say

app = typer.Typer(
    name="lvspec",
    help="Answers about videos by loose speculative decoding with local Video-LLMs.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("ask")(ask.ask)
app.command("demo")(demo.demo)
app.add_typer(models.app, name="models")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lvspec {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Answers about videos by loose speculative decoding with local Video-LLMs."""


def main() -> None:
    """The entry point: exits with a code of the contract (DESIGN.md, section 7)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(prog_name="lvspec", standalone_mode=False)
    except typer.TyperException as error:
        message = error.format_message().replace("Value error, ", "")
        if message:
            say(f"error: {message}")
        code = getattr(error, "exit_code", 2)
    except typer.Abort:
        code = 130
    sys.exit(code or 0)
