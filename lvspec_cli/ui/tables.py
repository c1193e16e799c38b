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
from lvspec_cli.pairs.files import Stored
from lvspec_cli.pairs.registry import Pair, Source

HEADINGS = ("pair", "target", "draft", "here", "licence", "about")


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
    cells = []
    for row in rows:
        name, *others = _cells(row)
        cells.append([Text(name, "bold" if row.default else ""), *map(Text, others)])
    return text_table(HEADINGS, "about", cells)


FORECAST_HEADINGS = ("file", "stretch", "length", "frames", "size", "visual tokens", "what")


@dataclass(frozen=True)
class ForecastRow:
    """What a batch would take of one stretch of a video. Times in seconds, sizes in pixels."""

    name: str
    start: float | None = None
    end: float | None = None
    duration: float | None = None
    frames: int = 0
    width: int = 0
    height: int = 0
    visual_tokens: int = 0
    to_do: int = 0  # prompts
    failed: int = 0  # prompts whose failure is skipped
    prompts: int = 0
    problem: str = ""


def plain_forecasts(rows: Sequence[ForecastRow]) -> str:
    """Tab-separated, one stretch a line, headings first."""
    lines = [FORECAST_HEADINGS, *(_forecast_cells(row) for row in rows)]
    return "".join("\t".join(line) + "\n" for line in lines)


def forecast_table(rows: Sequence[ForecastRow]) -> str:
    """A table as wide as the terminal."""
    return text_table(
        FORECAST_HEADINGS, "file", [[Text(cell) for cell in _forecast_cells(row)] for row in rows]
    )


def _forecast_cells(row: ForecastRow) -> tuple[str, ...]:
    name = visible_line(row.name)
    if row.problem:
        return (name, "", "", "", "", "", visible_line(f"cannot be read: {row.problem}"))
    end = "" if row.end is None else f"{row.end:g}"
    stretch = "" if row.start is None and row.end is None else f"{row.start or 0:g}-{end}"
    size = f"{row.width}x{row.height}"
    return (name, stretch, _seconds(row.duration), str(row.frames), size, str(row.visual_tokens), _what(row))


def _what(row: ForecastRow) -> str:
    """What would become of its prompts."""
    done = row.prompts - row.to_do - row.failed
    parts = [(row.to_do, "to do"), (row.failed, "failed before"), (done, "done")]
    known = [(count, word) for count, word in parts if count]
    return known[0][1] if len(known) == 1 else ", ".join(f"{count} {word}" for count, word in known)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def text_table(headings: Sequence[str], wide: str, rows: Sequence[Sequence[Text]]) -> str:
    """A table as wide as the terminal; only the column of the heading ``wide`` breaks its lines."""
    width = shutil.get_terminal_size().columns
    console = Console(file=io.StringIO(), width=width, force_terminal=True, markup=False, highlight=False)
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, safe_box="utf" not in (sys.stdout.encoding or "").lower()
    )
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading != wide)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _cells(row: PairRow) -> tuple[str, ...]:
    here = (
        row.target.place if row.target.place == row.draft.place else f"{row.target.place}/{row.draft.place}"
    )
    cells = (
        row.name + (" (default)" if row.default else ""),
        model_size(row.pair.target, row.target),
        model_size(row.pair.draft, row.draft),
        here,
        row.pair.licence or "",
        row.pair.about,
    )
    return tuple(visible_line(cell) for cell in cells)


def model_size(source: Source, stored: Stored) -> str:
    """Parameters and bytes: of the files where they are here, else as the pair's entry says."""
    parameters = _count(stored.parameters) if stored.parameters else source.parameters
    size = _bytes(stored.size) if stored.size else source.size
    return ", ".join(fact for fact in (parameters, size) if fact) or "-"


def _count(number: int) -> str:
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
