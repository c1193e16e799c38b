"""``lvspec models``: the pairs that can be chosen, and what can be done with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lvspec_cli.cli import models_pull, models_verify, options
from lvspec_cli.cli.reporting import reporting, say, write_out
from lvspec_cli.cores import quieten_libraries
from lvspec_cli.errors import PairError

if TYPE_CHECKING:
    from pathlib import Path

app = typer.Typer(
    help="The pairs: list them, look at one, download it, see whether it fits, check it.",
    rich_markup_mode=None,
)
PairArgument = Annotated[
    str, typer.Argument(metavar="PAIR", autocompletion=options.complete_pair, help="A pair's name.")
]


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context, models_file: options.ModelsPath = None, debug: options.Debug = False
) -> None:
    """The pairs: list them, look at one, download it, see whether it fits, check it. Alone it lists them."""
    if context.invoked_subcommand is None:
        _list(models_file, debug)


@app.command("list")
def list_pairs(models_file: options.ModelsPath = None, debug: options.Debug = False) -> None:
    """List the pairs: names, sizes, licences, and whether they are here."""
    _list(models_file, debug)


@app.command()
def show(pair: PairArgument, models_file: options.ModelsPath = None, debug: options.Debug = False) -> None:
    """Show one pair: where its models are, licence, memory, defaults and rule."""
    with reporting(debug):
        from lvspec_cli.pairs.files import locate
        from lvspec_cli.pairs.registry import load_registry
        from lvspec_cli.ui.pairs import pair_facts

        name, chosen = load_registry(models_file).pair(pair)
        write_out(pair_facts(name, chosen, locate(chosen.target), locate(chosen.draft)))


app.command("pull")(models_pull.pull)


@app.command()
def fit(
    pair: Annotated[
        str | None,
        typer.Argument(metavar="[PAIR]", autocompletion=options.complete_pair, help="One pair, in detail."),
    ] = None,
    frames: options.FrameCap = None,
    max_pixels: options.MaxPixels = None,
    device: options.Device = "auto",
    models_file: options.ModelsPath = None,
    debug: options.Debug = False,
) -> None:
    """Say what pairs need of memory and where they would go on this machine. No weights are loaded."""
    with reporting(debug):
        quieten_libraries()
        from lvspec_cli.pairs.registry import load_registry

        registry = load_registry(models_file)
        chosen = dict([registry.pair(pair)]) if pair else registry.pairs
        from lvspec_cli.memory.machine import this_machine
        from lvspec_cli.memory.resolve import fit_pair, nf4_rows, workload_of_pair
        from lvspec_cli.ui.pairs import fit_details, fit_table, machine_line
        from lvspec_cli.ui.tables import for_stdout

        machine = this_machine(device)
        limit = nf4_rows(machine)
        fits = []
        for name, each in chosen.items():
            try:
                load = workload_of_pair(each, frames, max_pixels)
                fits.append(fit_pair(name, each, machine, load, limit))
            except PairError as error:
                if pair:
                    raise
                say(f"{name}: {error.cause}")
        say(machine_line(machine))
        if pair:
            write_out(fit_details(fits[0], machine))
        else:
            write_out(for_stdout(fit_table(fits)))


app.command("verify")(models_verify.verify)


def _list(models_file: Path | None, debug: bool) -> None:
    with reporting(debug):
        from lvspec_cli.pairs.files import locate
        from lvspec_cli.pairs.registry import load_registry
        from lvspec_cli.ui.tables import PairRow, for_stdout, pair_table

        registry = load_registry(models_file)
        rows = [
            PairRow(name, name == registry.default, pair, locate(pair.target), locate(pair.draft))
            for name, pair in registry.pairs.items()
        ]
        write_out(for_stdout(pair_table(rows)))
