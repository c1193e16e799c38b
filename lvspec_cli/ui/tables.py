"""Tables of pairs and of a dry run, and the rendering of a table in a terminal."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from lvspec_cli.escape import visible_line
from lvspec_cli.host import terminal_width
from lvspec_cli.memory.choose import StoredPair
from lvspec_cli.pairs.files import Stored
from lvspec_cli.pairs.registry import Source
from lvspec_cli.table import NO_BREAK, Table, plain, size, wrapped
from lvspec_cli.video.source import is_picture

_STYLES = {"best": "bold", "worse": "red"}
GAP = 2  # characters between two columns
PROSE = 16  # characters that a column of prose gets at least, if it has so many


def for_stdout(table: Table) -> str:
    """The table for a terminal; tab-separated lines if stdout is not a terminal."""
    width = terminal_width(sys.stdout)
    return plain(table) if width is None else terminal(table, width)


def terminal(table: Table, width: int) -> str:
    """A table for a terminal of ``width`` columns, in which no name and no figure is broken.

    Columns that have no room are left out, which is said below the table. Where even those that must stay
    have none, the rows are stacked: a name, and below it its facts.
    """
    console = Console(file=io.StringIO(), width=width, force_terminal=True, markup=False, highlight=False)
    table = replace(table, rows=[[visible_line(cell) for cell in row] for row in table.rows])
    if table.title:
        _print(console, wrapped(f"{table.title}:", width), "")
    layout = fitted(table, width)
    if layout is None:
        for index, (name, facts) in enumerate(stacked(table, width)):
            style = _STYLES.get(table.styles.get(index, ""), "")
            _print(console, name, style or "bold")
            _print(console, facts, style if style == _STYLES["worse"] else "")
        legend = table.legend
    else:
        shown, widths = layout
        console.print(_drawn(shown, widths), no_wrap=True, crop=False)
        legend = shown.legend
        filled = [heading for heading in table.headings if heading and any(table.cells(heading))]
        if missing := [heading for heading in filled if heading not in shown.headings]:
            _print(console, wrapped(f"no room for: {', '.join(missing)}", width, "  "), "dim")
    if legend:
        meanings = "; ".join(f"{key}: {meaning}" for key, meaning in legend.items())
        _print(console, wrapped(meanings, width, "  "), "dim")
    return console.file.getvalue()  # type: ignore[attr-defined]


def _print(console: Console, text: str, style: str) -> None:
    if text:
        console.print(Text(text, style), soft_wrap=True)


def _drawn(table: Table, widths: Sequence[int]) -> RichTable:
    """The table in columns of these widths, with an interval below its figure."""
    drawn = RichTable(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, GAP - 1, 0, 0),
        safe_box="utf" not in (sys.stdout.encoding or "").lower(),
    )
    for index, (heading, width) in enumerate(zip(table.headings, widths, strict=True)):
        right = index > 0 and heading not in table.prose and is_figures(table.cells(heading))
        drawn.add_column(heading, width=width, justify="right" if right else "left")
    for index, row in enumerate(table.rows):
        style = _STYLES.get(table.styles.get(index, ""), "")
        drawn.add_row(*(Text("\n".join(cell_lines(cell)), style) for cell in row))
    return drawn


def fitted(table: Table, width: int) -> tuple[Table, tuple[int, ...]] | None:
    """The columns that fit into ``width`` characters, each with its width; None if too few of them do.

    Columns without content are left out; then those that are optional, until the others fit. Names, figures
    and intervals keep their lines whole, headings and prose break between words.
    """
    filled = [heading for heading in table.headings if any(table.cells(heading))]
    for dropped in range(len(table.optional) + 1):
        left = [heading for heading in filled if heading not in table.optional[:dropped]]
        least = [_least_width(table, heading) for heading in left]
        room = width - sum(least) - GAP * (len(left) - 1)
        if room < 0:
            continue
        widths = dict(zip(left, least, strict=True))
        wanted = [(heading, cell_len(heading)) for heading in left]
        wanted += [(name, max(map(cell_len, table.cells(name)))) for name in left if name in table.prose]
        for heading, whole in wanted:
            more = max(0, min(room, whole - widths[heading]))
            widths[heading] += more
            room -= more
        return table.columns(*left), tuple(widths.values())
    return None


def _least_width(table: Table, heading: str) -> int:
    """Of a column in which nothing is broken that has to be whole."""
    cells = table.cells(heading)
    if heading in table.prose:
        longest = max(map(cell_len, cells))
        least = max((cell_len(word) for cell in cells for word in cell.split()), default=0)
        least = max(least, min(PROSE, longest))
    else:
        least = max(cell_len(line) for cell in cells for line in cell_lines(cell))
    return max([least, *map(cell_len, heading.split())])


def cell_lines(cell: str) -> list[str]:
    """A cell by lines: an interval stands below its figure, ``3.37 (2.90-3.81)``."""
    figure = re.fullmatch(r"([-+]?\d.*) \((.+)\)", cell)
    return list(figure.groups()) if figure else [cell]


def is_figures(cells: Sequence[str]) -> bool:
    """Whether a column is aligned by its last digits."""
    return any(re.match(r"[-+]?\d", cell) for cell in cells)


def stacked(table: Table, width: int) -> Iterator[tuple[str, str]]:
    """Of each row its name, and below it the other cells with their headings, in lines of ``width``."""
    for name, *cells in table.rows:
        facts = [
            (f"{heading}: {cell}" if heading else cell, heading in table.prose)
            for heading, cell in zip(table.headings[1:], cells, strict=True)
            if cell
        ]
        parts = [text if breaks else text.replace(" ", NO_BREAK) for text, breaks in facts]
        yield name, wrapped(f"  {f'{NO_BREAK} '.join(parts)}", width, "  ") if parts else ""


def pair_table(pairs: Sequence[StoredPair], default: str) -> Table:
    """A row for each pair; the default pair is highlighted."""
    return Table(
        ("pair", "target", "draft", "here", "licence", "about"),
        [_cells(pair, is_default=pair.name == default) for pair in pairs],
        prose=("licence", "about"),
        optional=("about", "licence", "draft"),
        legend={"target and draft": "parameters, bytes of their weights"},
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
        prose=("what",),
        optional=("size", "visual tokens", "length", "stretch"),
    )


def _forecast_cells(row: ForecastRow) -> tuple[str, ...]:
    if row.problem:
        return (row.name, "", "", "", "", "", f"cannot be read: {row.problem}")
    end = "" if row.end is None else f"{row.end:g}"
    stretch = "" if row.start is None and row.end is None else f"{row.start or 0:g}-{end}"
    has_length = row.duration is not None and not is_picture(Path(row.name))
    duration = f"{row.duration:.1f}" if has_length else ""
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
