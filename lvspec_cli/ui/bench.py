"""Figures of bench, tune and bench-relevance as tables in a terminal, and as plain lines for a pipe."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lvspec_cli.bench.compare import Change
from lvspec_cli.bench.lines import CONTRAST_HEADINGS, HEADINGS, WINNER, contrast_rows, rows
from lvspec_cli.bench.relevance import RelevanceResults
from lvspec_cli.bench.report import SCHEME_HEADINGS, scheme_rows
from lvspec_cli.bench.results import Results
from lvspec_cli.bench.tune import Tuned
from lvspec_cli.bench.tune_report import FINALIST_HEADINGS, finalist_rows
from lvspec_cli.escape import visible_line
from lvspec_cli.ui.tables import text_table

_GAINS = ("mode", "γ", "speedup", "end to end", "tokens/s", "accepted length", "retention")
_COSTS = ("mode", "γ", "acceptance", "c", "v", "o", "predicted", "speedup")


def plain_results(results: Results) -> str:
    """Tab-separated, one mode a line, headings first."""
    return _plain([HEADINGS, *rows(results)])


def result_tables(results: Results) -> str:
    """What is gained and what it costs, what a round is made of, how the pair's rule compares."""
    cells = [dict(zip(HEADINGS, row, strict=True)) for row in rows(results)]
    text = figures_table(_GAINS, [[row[name] for name in _GAINS] for row in cells])
    costs = [[row[name] for name in _COSTS] for row in cells if row["c"]]
    text += figures_table(_COSTS, costs) if costs else ""
    contrasts = contrast_rows(results)
    return text + (figures_table(CONTRAST_HEADINGS, contrasts) if contrasts else "")


CHANGE_HEADINGS = ("mode", "figure", "before", "after", "change", "")


def plain_changes(changes: Sequence[Change]) -> str:
    """Tab-separated, one figure a line, headings first."""
    return _plain([CHANGE_HEADINGS, *map(_change_cells, changes)])


def change_table(changes: Sequence[Change]) -> str:
    """A table of figures; the worse ones stand out."""
    return figures_table(CHANGE_HEADINGS, [_change_cells(change) for change in changes])


def _change_cells(change: Change) -> tuple[str, ...]:
    share = "" if change.share is None else f"{100 * change.share:+.1f} %"
    verdict = "worse" if change.regression else ""
    return (change.mode, change.figure, _figure(change.before), _figure(change.after), share, verdict)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plain(lines: Sequence[Sequence[str]]) -> str:
    return "".join("\t".join(map(visible_line, line)) + "\n" for line in lines)


def figures_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """As narrow as can be: an interval stands below its figure."""
    width = shutil.get_terminal_size().columns
    console = Console(file=io.StringIO(), width=width, force_terminal=True, markup=False, highlight=False)
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, safe_box="utf" not in (sys.stdout.encoding or "").lower()
    )
    for index, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", justify="right" if index else "left", no_wrap=not index)
    for line in lines:
        table.add_row(*_styled(line))
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _styled(line: Sequence[str]) -> Iterator[Text]:
    style = "bold" if line[0].endswith(WINNER) else "red" if line[-1] == "worse" else ""
    for cell in line:
        figure, _, interval = visible_line(cell).partition(" (")
        yield Text(f"{figure}\n{interval[:-1]}" if interval else figure, style)


_SHOWN = (
    "setting", "γ", "threshold", "anchors", "fillers", "sentences", "shift", "accepted length", "predicted",
    "kept",
)  # fmt: skip


def plain_tuned(tuned: Tuned) -> str:
    """Tab-separated comments, so that all that is printed can be a models.yaml."""
    lines = [FINALIST_HEADINGS, *finalist_rows(tuned)]
    if tuned.results is not None:
        lines += [HEADINGS, *rows(tuned.results)]
    return "".join("# " + "\t".join(map(visible_line, line)) + "\n" for line in lines)


def tuned_tables(tuned: Tuned) -> str:
    """The settings that saw all clips, then the report on the others."""
    cells = [dict(zip(FINALIST_HEADINGS, row, strict=True)) for row in finalist_rows(tuned)]
    text = figures_table(_SHOWN, [[row[name] for name in _SHOWN] for row in cells])
    return text + (result_tables(tuned.results) if tuned.results is not None else "") + "\n"


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
