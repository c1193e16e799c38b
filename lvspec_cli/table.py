"""A table of text, and figures as people read them: bytes, times, counts. For a pipe and for Markdown a table
is written here, for a terminal in ``ui.tables``, as HTML by ``bench.report``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lvspec_cli.escape import visible_line

Style = Literal["best", "worse"]


@dataclass(frozen=True)
class Table:
    """Headings and rows of as many cells. Without headings the rows are names and values.

    :param wide: the heading of the column of text whose lines a terminal breaks. Without it all columns but
        the first are figures.
    :param styles: of the rows that stand out, by number from 0.
    :param notes: in HTML, of rows with too few cells: what stands in place of the others.
    """

    headings: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    title: str = ""
    wide: str = ""
    styles: Mapping[int, Style] = field(default_factory=dict)
    notes: Mapping[int, str] = field(default_factory=dict)

    def columns(self, *headings: str) -> Table:
        """The same with these columns only."""
        indices = [self.headings.index(heading) for heading in headings]
        return replace(self, headings=headings, rows=[[row[index] for index in indices] for row in self.rows])


def plain(table: Table) -> str:
    """Tab-separated, one row a line, headings first."""
    return "".join("\t".join(map(visible_line, line)) + "\n" for line in (table.headings, *table.rows))


def markdown_lines(table: Table) -> Iterator[str]:
    """A table in Markdown by lines: its title, its rows, an empty one. None where it has no rows."""
    if not table.rows:
        return
    if table.title:
        yield from (f"{table.title}:", "")
    for cells in (table.headings, ("---",) * len(table.headings), *table.rows):
        yield "| " + " | ".join(map(markdown_text, cells)) + " |"
    yield ""


def markdown_text(text: str) -> str:
    """Text of libraries and file names, so that Markdown takes it as it is."""
    for character in "\\`*_<>[]|":
        text = text.replace(character, "\\" + character)
    return text.replace("\n", " ")


def size(count: float) -> str:
    """Bytes: ``66.9 GB``, ``16.7 MB``."""
    return gigabytes(count) if count >= 1e9 else f"{count / 1e6:.1f} MB"


def gigabytes(count: float) -> str:
    """Bytes beside others that may be many more: ``0.2 GB``."""
    return f"{count / 1e9:.1f} GB"


def clock(seconds: float, *, digits: int = 0, whole: bool = False) -> str:
    """Seconds as ``3:05``, ``2:03:05``, or ``45 s`` below a minute.

    :param digits: of a second's fraction.
    :param whole: hours, minutes and seconds whatever they are: ``00:00:45``.
    """
    parts = round(seconds * 10**digits)
    minutes, parts = divmod(parts, 60 * 10**digits)
    hours, minutes = divmod(minutes, 60)
    second, fraction = divmod(parts, 10**digits)
    point = f".{fraction:0{digits}}" if digits else ""
    if whole:
        return f"{hours:02}:{minutes:02}:{second:02}{point}"
    if hours:
        return f"{hours}:{minutes:02}:{second:02}{point}"
    return f"{minutes}:{second:02}{point}" if minutes else f"{second}{point} s"


def short_time(seconds: float) -> str:
    """``3 ms``, ``0.4 s``, ``12.3 s``."""
    return f"{seconds:.1f} s" if seconds >= 0.05 else f"{1000 * seconds:.0f} ms"


def counted(count: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
