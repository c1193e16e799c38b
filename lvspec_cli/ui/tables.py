"""Tables for a terminal, and the same as plain lines for a pipe."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lvspec_cli.escape import visible_line
from lvspec_cli.registry import Pair, Source
from lvspec_cli.storage import Stored

HEADINGS = ("pair", "target", "draft", "here", "about")


@dataclass(frozen=True)
class PairRow:
    """One pair, and where its two models are."""

    name: str
    default: bool
    pair: Pair
    target: Stored
    draft: Stored


def plain_pairs(rows: Sequence[PairRow]) -> str:
    """Tab-separated, one pair a line, headings first."""
    lines = [HEADINGS, *(_cells(row) for row in rows)]
    return "".join("\t".join(line) + "\n" for line in lines)


def pair_table(rows: Sequence[PairRow]) -> str:
    """A table as wide as the terminal."""
    width = shutil.get_terminal_size().columns
    console = Console(file=io.StringIO(), width=width, force_terminal=True, markup=False, highlight=False)
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, safe_box="utf" not in (sys.stdout.encoding or "").lower()
    )
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold", no_wrap=heading != "about")
    for row in rows:
        name, *others = _cells(row)
        table.add_row(Text(name, "bold" if row.default else ""), *(Text(cell) for cell in others))
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _cells(row: PairRow) -> tuple[str, ...]:
    here = (
        row.target.place if row.target.place == row.draft.place else f"{row.target.place}/{row.draft.place}"
    )
    cells = (
        row.name + (" (default)" if row.default else ""),
        _model(row.pair.target, row.target),
        _model(row.pair.draft, row.draft),
        here,
        row.pair.about,
    )
    return tuple(visible_line(cell) for cell in cells)


def _model(source: Source, stored: Stored) -> str:
    parameters = _count(stored.parameters) if stored.parameters else source.parameters
    size = _bytes(stored.size) if stored.size else source.size
    return ", ".join(fact for fact in (parameters, size) if fact) or "-"


def _count(number: int) -> str:
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
