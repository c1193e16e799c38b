"""``lvspec bench-compare``: what changed between two results, and whether anything got worse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.reporting import reporting, say, write_out

First = Annotated[
    Path, typer.Argument(metavar="A", help="A results.json, or the folder that lvspec bench wrote it to.")
]
Second = Annotated[Path, typer.Argument(metavar="B", help="The later one.")]
Margin = Annotated[
    float,
    typer.Option(
        "--margin", min=0, max=1, metavar="X",
        help="The share by which a speedup, an accepted length or the likelihood of the texts may fall.",
    ),
]  # fmt: skip
RetentionMargin = Annotated[
    float,
    typer.Option(
        "--retention-margin", min=0, max=1, metavar="X", help="By how much the retention may fall, of 1."
    ),
]


def bench_compare(
    before: First,
    after: Second,
    margin: Margin = 0.05,
    retention_margin: RetentionMargin = 0.002,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show what changed from A to B. Exit code 6 when a figure of A got worse beyond the margin."""
    with reporting(debug):
        from lvspec_cli.bench.compare import Margins, compare_results, differences
        from lvspec_cli.bench.results import read_results
        from lvspec_cli.errors import RegressionError
        from lvspec_cli.ui.bench import change_table
        from lvspec_cli.ui.tables import for_stdout

        first, second = read_results(before), read_results(after)
        changes = compare_results(first, second, Margins(margin, retention_margin))
        write_out(for_stdout(change_table(changes)))
        if not quiet:
            for line in differences(first, second):
                say(f"not the same: {line}")
        worse = [change for change in changes if change.regression]
        if worse:
            named = worse[0]
            more = f", and {len(worse) - 1} more" if len(worse) > 1 else ""
            raise RegressionError(
                f"{named.mode} got worse: {named.figure} {_figure(named.before)},"
                f" now {_figure(named.after)}{more}",
                "mend it, or allow more with --margin or --retention-margin",
            )


def _figure(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.3f}"
