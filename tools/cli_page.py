"""Writes docs/cli.md: the help of every command, in the sections that ``--help`` has.

python -m tools.cli_page
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer
from typer.core import TyperCommand, TyperGroup

from lvspec_cli.cli.groups import help_sections
from lvspec_cli.cli.main import app

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cli.md"
COMMAND = "python -m tools.cli_page"
_NOTE = f"<!-- Made by `{COMMAND}` from the program: change the help there. -->"


def page() -> str:
    """The page as the program makes it now."""
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    return "\n\n".join([_NOTE, *_paragraphs(root, "lvspec", "#")]) + "\n"


def _paragraphs(command: TyperCommand | TyperGroup, name: str, level: str) -> Iterator[str]:
    """The help of a command, then that of the commands below it."""
    context = typer.Context(command, info_name=name)
    yield f"{level} `{name}`"
    if command.help:
        yield command.help
    usage = " ".join(["$", name, *command.collect_usage_pieces(context)])
    yield f"**Usage**:\n\n```console\n{usage}\n```"
    for section, rows in help_sections(command, context).items():
        yield f"**{section}**:\n\n{_list(rows)}"
    if isinstance(command, TyperGroup):
        below = [command.commands[one] for one in command.list_commands(context)]
        yield f"**Commands**:\n\n{_list([(str(one.name), one.get_short_help_str()) for one in below])}"
        for one in below:
            assert isinstance(one, TyperCommand | TyperGroup)
            yield from _paragraphs(one, f"{name} {one.name}", level + "#")


def _list(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"* `{name}`: {text}" for name, text in rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
