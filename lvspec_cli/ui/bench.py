"""Results of bench, tune and bench-relevance: tables in a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from textwrap import indent
from typing import TYPE_CHECKING

from lvspec_cli.bench.lines import contrast_table, result_table
from lvspec_cli.bench.results import Change, Results
from lvspec_cli.table import Style, Table, plain
from lvspec_cli.ui.tables import terminal

if TYPE_CHECKING:
    from lvspec_cli.bench.tune import Tuned

_GAINS = ("mode", "γ", "speedup", "end to end", "tokens/s", "accepted length", "retention")
_COSTS = ("mode", "γ", "acceptance", "c", "v", "o", "predicted", "speedup")
_SETTINGS = (
    "setting", "γ", "threshold", "anchors", "fillers", "sentences", "shift", "accepted length", "predicted",
    "kept",
)  # fmt: skip


def results_text(results: Results) -> str:
    """One table in a pipe; three in a terminal: gains, round costs, the pair's rule against other lines."""
    if not sys.stdout.isatty():
        return plain(result_table(results))
    tables = (
        result_table(results).columns(*_GAINS),
        result_table(results, drafting=True).columns(*_COSTS),
        contrast_table(results),
    )
    return "".join(terminal(table) for table in tables if table.rows)


def tuned_text(tuned: Tuned) -> str:
    """The finalists, then the report on the other clips.

    In a pipe as comments, so that the whole output is a valid models.yaml.
    """
    from lvspec_cli.bench.tune_report import finalist_table

    table, report = finalist_table(tuned), results_text(tuned.results) if tuned.results is not None else ""
    if sys.stdout.isatty():
        return terminal(table.columns(*_SETTINGS)) + report + "\n"
    return indent(plain(table) + report, "# ", lambda line: True)


def change_table(changes: Sequence[Change]) -> Table:
    """A row for each figure; regressions are highlighted."""
    styles: dict[int, Style] = {row: "worse" for row, change in enumerate(changes) if change.regression}
    headings = ("mode", "figure", "before", "after", "change", "")
    return Table(headings, list(map(_change_cells, changes)), styles=styles)


def _change_cells(change: Change) -> tuple[str, ...]:
    share = "" if change.share is None else f"{100 * change.share:+.1f} %"
    verdict = "worse" if change.regression else ""
    return (change.mode, change.figure, _figure(change.before), _figure(change.after), share, verdict)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
