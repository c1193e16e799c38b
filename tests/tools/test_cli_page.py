"""docs/cli.md is the help of the program as it is."""

from __future__ import annotations

import difflib

import typer

from lvspec_cli.cli.main import app
from tools.cli_page import COMMAND, PAGE, page


def test_the_page_is_the_help_of_the_program() -> None:
    there, now = PAGE.read_text(encoding="utf-8"), page()
    changes = "\n".join(difflib.unified_diff(there.splitlines(), now.splitlines(), "page", "program", n=0))
    assert not changes, f"the help has changed; if that is meant, make the page anew: {COMMAND}\n{changes}"


def test_the_page_has_every_command() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for command in commands(typer.main.get_command(app), "lvspec"):
        assert f"# `{command}`\n" in text


def commands(command: object, path: str) -> list[str]:
    """The command and those below it, hidden ones too."""
    below = getattr(command, "commands", {})
    return [path, *(each for name, child in below.items() for each in commands(child, f"{path} {name}"))]
