"""``lvspec models``: the pairs that can be chosen."""

from __future__ import annotations

import sys

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.reporting import reporting, write_out

app = typer.Typer(help="List the pairs: names, sizes, and whether they are here.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context, models_file: options.ModelsPath = None, debug: options.Debug = False
) -> None:
    """List the pairs: names, sizes, and whether they are here."""
    if context.invoked_subcommand is not None:
        return
    with reporting(debug):
        from lvspec_cli.registry import load_registry
        from lvspec_cli.storage import locate
        from lvspec_cli.ui.tables import PairRow, pair_table, plain_pairs

        registry = load_registry(models_file)
        rows = [
            PairRow(name, name == registry.default, pair, locate(pair.target), locate(pair.draft))
            for name, pair in registry.pairs.items()
        ]
        write_out(pair_table(rows) if sys.stdout.isatty() else plain_pairs(rows))
