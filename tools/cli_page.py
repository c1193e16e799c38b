"""Writes docs/cli.md: the help of every command, in the sections that ``--help`` has.

python -m tools.cli_page
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer
from typer.core import TyperCommand, TyperGroup

from lvspec_cli.cli.groups import command_sections, help_parts, help_sections, usage
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
    context = typer.Context(command, info_name=name, help_option_names=["-h", "--help"])
    summary, examples, rest = help_parts(command)
    yield f"{level} `{name}`"
    yield summary
    yield from rest
    lines = [" ".join([name, *usage(command, context)]), "", *examples]
    yield "```console\n" + "\n".join(lines) + "\n```"
    for section, rows in help_sections(command, context).items():
        yield f"**{section}**:\n\n{_list(rows)}"
    if isinstance(command, TyperGroup):
        for section, rows in command_sections(command).items():
            yield f"**{section}**:\n\n{_list(rows)}"
        for one in command.commands.values():
            assert isinstance(one, TyperCommand | TyperGroup)
            yield from _paragraphs(one, f"{name} {one.name}", level + "#")


def _list(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"* `{name}`: {text}" for name, text in rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
