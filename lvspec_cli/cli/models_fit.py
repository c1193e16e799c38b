"""``lvspec models fit``: whether and how pairs fit this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.reporting import reporting, say, write_out


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
        from lvspec_cli.cores import quieten_libraries

        quieten_libraries()
        from lvspec_cli.errors import PairError
        from lvspec_cli.pairs.registry import load_registry

        registry = load_registry(models_file)
        chosen = dict([registry.pair(pair)]) if pair else registry.pairs
        from lvspec_cli.memory.machine import this_machine
        from lvspec_cli.memory.resolve import fit_pair, nf4_rows, workload
        from lvspec_cli.ui.pairs import fit_details, fit_table, machine_line
        from lvspec_cli.ui.tables import for_stdout

        machine = this_machine(device)
        limit = nf4_rows(machine)
        fits = []
        for name, each in chosen.items():
            try:
                load = workload(each.defaults, frames, max_pixels)
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
