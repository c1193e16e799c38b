"""How well schemes tell facts from fillers, as a table in a terminal and as plain lines for a pipe."""

from __future__ import annotations

from rich.text import Text

from lvspec_cli.bench.relevance import RelevanceResults
from lvspec_cli.bench.relevance_report import SCHEME_HEADINGS, scheme_rows
from lvspec_cli.ui.tables import text_table


def plain_schemes(results: RelevanceResults) -> str:
    """Tab-separated, one scheme a line, headings first."""
    return "".join("\t".join(line) + "\n" for line in (SCHEME_HEADINGS, *scheme_rows(results)))


def scheme_table(results: RelevanceResults) -> str:
    """A table as wide as the terminal, the best scheme first."""
    cells = [
        [Text(cell, "" if place else "bold") for cell in row]
        for place, row in enumerate(scheme_rows(results))
    ]
    return text_table(SCHEME_HEADINGS, "scheme", cells)
