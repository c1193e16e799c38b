"""A table of text. For a pipe and for Markdown it is written here, for a terminal in ``ui.tables``, as HTML
by ``bench.page``."""

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
