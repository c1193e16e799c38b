"""Tables of pairs and of a dry run, and the rendering of a table in a terminal."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from lvspec_cli.escape import visible_line
from lvspec_cli.memory.choose import StoredPair
from lvspec_cli.pairs.files import Stored
from lvspec_cli.pairs.registry import Source
from lvspec_cli.table import Table, plain, size

_STYLES = {"best": "bold", "worse": "red"}


def for_stdout(table: Table) -> str:
    """The table for a terminal; tab-separated lines if stdout is not a terminal."""
    return terminal(table) if sys.stdout.isatty() else plain(table)


def terminal(table: Table) -> str:
    """A table as wide as the terminal. In tables of figures, an interval is below its figure."""
    width = shutil.get_terminal_size().columns
    console = Console(file=io.StringIO(), width=width, force_terminal=True, markup=False, highlight=False)
    drawn = RichTable(
        box=box.SIMPLE_HEAD, pad_edge=False, safe_box="utf" not in (sys.stdout.encoding or "").lower()
    )
    for index, heading in enumerate(table.headings):
        breaks = heading == table.wide if table.wide else index > 0
        right = index > 0 and not table.wide
        drawn.add_column(heading, overflow="fold", justify="right" if right else "left", no_wrap=not breaks)
    for index, row in enumerate(table.rows):
        style = _STYLES.get(table.styles.get(index, ""), "")
        cells = map(visible_line, row)
        drawn.add_row(*(Text(cell if table.wide else _interval_below(cell), style) for cell in cells))
    console.print(drawn)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _interval_below(cell: str) -> str:
    figure, _, interval = cell.partition(" (")
    return f"{figure}\n{interval[:-1]}" if interval else figure


def pair_table(pairs: Sequence[StoredPair], default: str) -> Table:
    """A row for each pair; the default pair is highlighted."""
    return Table(
        ("pair", "target", "draft", "here", "licence", "about"),
        [_cells(pair, is_default=pair.name == default) for pair in pairs],
        wide="about",
        styles={index: "best" for index, pair in enumerate(pairs) if pair.name == default},
    )


@dataclass(frozen=True)
class ForecastRow:
    """What a batch would sample from one stretch of a video. Times in seconds, sizes in pixels."""

    name: str
    start: float | None = None
    end: float | None = None
    duration: float | None = None
    frames: int = 0  # that would be taken
    frames_expected: int = 0  # that the request asks for: the context may have no room for all
    fits: bool = True  # whether the context has room for any
    width: int = 0
    height: int = 0
    visual_tokens: int = 0
    to_do: int = 0  # prompts
    failed: int = 0  # prompts whose failure is skipped
    prompts: int = 0
    problem: str = ""


def forecast_table(rows: Sequence[ForecastRow]) -> Table:
    """A row for each stretch of a video."""
    return Table(
        ("file", "stretch", "length", "frames", "size", "visual tokens", "what"),
        list(map(_forecast_cells, rows)),
        wide="file",
    )


def _forecast_cells(row: ForecastRow) -> tuple[str, ...]:
    if row.problem:
        return (row.name, "", "", "", "", "", f"cannot be read: {row.problem}")
    end = "" if row.end is None else f"{row.end:g}"
    stretch = "" if row.start is None and row.end is None else f"{row.start or 0:g}-{end}"
    duration = "" if row.duration is None else f"{row.duration:.1f}"
    picture = f"{row.width}x{row.height}"
    return (row.name, stretch, duration, str(row.frames), picture, str(row.visual_tokens), _what(row))


def _what(row: ForecastRow) -> str:
    """The state of its prompts, in words."""
    done = row.prompts - row.to_do - row.failed
    parts = [(row.to_do, "to do"), (row.failed, "failed before"), (done, "done")]
    known = [(count, word) for count, word in parts if count]
    text = known[0][1] if len(known) == 1 else ", ".join(f"{count} {word}" for count, word in known)
    if not row.fits:
        return f"{text}, and too long for the context with any frames"
    if row.frames < row.frames_expected:
        return f"{text}, with {row.frames} of {row.frames_expected} frames: the context has room for no more"
    return text


def _cells(row: StoredPair, *, is_default: bool) -> tuple[str, ...]:
    places = dict.fromkeys((row.target.place, row.draft.place))
    return (
        row.name + (" (default)" if is_default else ""),
        model_size(row.pair.target, row.target),
        model_size(row.pair.draft, row.draft),
        "/".join(places),
        row.pair.licence or "",
        "; ".join(filter(None, (row.pair.about, row.pair.no_gain and "gains nothing"))),
    )


def model_size(source: Source, stored: Stored) -> str:
    """Parameters and bytes: of the local files if there are any, otherwise from the pair's entry."""
    parameters = _count(stored.parameters) if stored.parameters else source.parameters
    weights = size(stored.size) if stored.size else source.size
    return ", ".join(fact for fact in (parameters, weights) if fact) or "-"


def _count(number: int) -> str:
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"
