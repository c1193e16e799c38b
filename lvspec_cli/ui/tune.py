"""What ``lvspec tune`` found, as tables in a terminal, and as comments above the YAML for a pipe."""

from __future__ import annotations

from lvspec_cli.bench.lines import HEADINGS as REPORTED
from lvspec_cli.bench.lines import rows
from lvspec_cli.bench.tune import Tuned
from lvspec_cli.bench.tuned import HEADINGS, finalist_rows
from lvspec_cli.escape import visible_line
from lvspec_cli.ui.bench import figures_table, result_tables

_SHOWN = (
    "setting", "γ", "threshold", "anchors", "fillers", "sentences", "shift", "accepted length", "predicted",
    "kept",
)  # fmt: skip


def plain_tuned(tuned: Tuned) -> str:
    """Tab-separated comments, so that all that is printed can be a models.yaml."""
    lines = [HEADINGS, *finalist_rows(tuned)]
    if tuned.results is not None:
        lines += [REPORTED, *rows(tuned.results)]
    return "".join("# " + "\t".join(map(visible_line, line)) + "\n" for line in lines)


def tuned_tables(tuned: Tuned) -> str:
    """The settings that saw all clips, then the report on the others."""
    cells = [dict(zip(HEADINGS, row, strict=True)) for row in finalist_rows(tuned)]
    text = figures_table(_SHOWN, [[row[name] for name in _SHOWN] for row in cells])
    return text + (result_tables(tuned.results) if tuned.results is not None else "") + "\n"
