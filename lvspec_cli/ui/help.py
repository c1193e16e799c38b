"""A help page: usage, summary, examples, and a panel for each section."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

NAMES = 32  # columns at most for the names of options


@dataclass(frozen=True)
class HelpPage:
    """What the help of one command says.

    ``usage``: without the word "Usage".
    ``examples``: whole command lines.
    ``sections``: rows of an option or a command and its help, by title.
    """

    usage: str
    summary: str
    examples: tuple[str, ...]
    details: tuple[str, ...]
    sections: Mapping[str, Sequence[tuple[str, str]]]
    footer: str = ""


def draw(page: HelpPage) -> str:
    """The page for stdout, as wide as the terminal; in colour if it is one."""
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    console = Console(
        file=io.StringIO(), width=max(40, shutil.get_terminal_size().columns), markup=False, highlight=False,
        force_terminal=sys.stdout.isatty(), emoji=False,
    )  # fmt: skip
    console.print(Text.assemble(("Usage: ", "bold"), page.usage))
    console.print()
    console.print(page.summary)
    if page.examples:
        console.print()
    for example in page.examples:
        console.print(Text(f"  {example}", "cyan"))
    for paragraph in page.details:
        console.print()
        console.print(paragraph)
    for title, rows in page.sections.items():
        console.print(_panel(title, rows, plain=plain))
    if page.footer:
        console.print(Text(page.footer, "dim"))
    return console.file.getvalue()  # type: ignore[attr-defined]


def _panel(title: str, rows: Sequence[tuple[str, str]], *, plain: bool) -> Panel:
    """A section. A name that is wider than its column goes on in the next line."""
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(style="bold cyan", width=min(NAMES, max(len(name) for name, _ in rows)))
    table.add_column(ratio=1)
    for name, text in rows:
        table.add_row(Text(name), Text(text))
    frame = box.ASCII if plain else box.ROUNDED
    return Panel(
        table, box=frame, title=Text(title), title_align="left", border_style="dim", padding=(0, 1, 0, 1)
    )
