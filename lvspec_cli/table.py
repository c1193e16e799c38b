"""Tables of text, text that fits a terminal, and figures as people read them: bytes, times, counts.

For a pipe and for Markdown a table is written here, for a terminal in ``ui.tables``, as HTML in
``bench.report``.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lvspec_cli.escape import visible_line

Style = Literal["best", "worse"]


@dataclass(frozen=True)
class Table:
    """Headings and rows of as many cells. Without headings the rows are names and values.

    :param prose: headings of columns whose lines a terminal may break between words. The cells of all others,
        names and figures, are never broken.
    :param optional: headings of columns that a narrow terminal leaves out, the first one first.
    :param legend: what a heading, or words of the cells, mean: shown below the table in a terminal.
    :param styles: of the rows that stand out, by number from 0.
    :param notes: in HTML, of rows with too few cells: what stands in place of the others.
    """

    headings: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    title: str = ""
    prose: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    legend: Mapping[str, str] = field(default_factory=dict)
    styles: Mapping[int, Style] = field(default_factory=dict)
    notes: Mapping[int, str] = field(default_factory=dict)

    def columns(self, *headings: str) -> Table:
        """The same with these columns only."""
        indices = [self.headings.index(heading) for heading in headings]
        rows = [[row[index] for index in indices] for row in self.rows]
        shown = {word for line in (headings, *rows) for cell in line for word in _words(cell)}
        legend = {
            key: text
            for key, text in self.legend.items()
            if key in headings or (key not in self.headings and shown.intersection(_words(key)))
        }
        return replace(self, headings=headings, rows=rows, legend=legend)

    def cells(self, heading: str) -> list[str]:
        """The cells of one column."""
        index = self.headings.index(heading)
        return [row[index] for row in self.rows]


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


NO_BREAK = "\ue000"  # stands for a space at which no line of ``wrapped`` ends


def wrapped(text: str, width: int | None, indent: str = "") -> str:
    """Text in lines of ``width`` characters that end between words. A longer word has a longer line.

    Words between backticks stay together where they fit.

    :param width: None leaves the text as it is.
    :param indent: of every line but the first.
    """
    if width is not None:
        text = re.sub(
            "`[^`]*`",
            lambda span: span[0].replace(" ", NO_BREAK) if len(span[0]) + len(indent) <= width else span[0],
            text,
        )
        lines = textwrap.wrap(
            text,
            width,
            subsequent_indent=indent,
            expand_tabs=False,
            replace_whitespace=False,
            break_long_words=False,
            break_on_hyphens=False,
        )
        text = "\n".join(line.rstrip(NO_BREAK) for line in lines)
    return text.replace(NO_BREAK, " ")


def command_lines(label: str, words: Sequence[str], width: int | None) -> str:
    """A command line, with continuation marks where it is wider than the terminal, so that it can be pasted.

    :param words: as the shell takes them, quoted.
    """
    lines = [label]
    for word in words:
        if width is not None and len(lines[-1]) + len(word) + 3 > width and lines[-1].strip() != label:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}"
    return "\n".join(lines)


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
