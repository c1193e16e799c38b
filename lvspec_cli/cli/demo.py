"""``lvspec demo``: more clips of the bundled pair's world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.options import GREATEST_SEED
from lvspec_cli.cli.reporting import reporting, write_out
from lvspec_cli.errors import OutputError
from lvspec_cli.host import message_stream

Directory = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where to write.")]
Count = Annotated[int, typer.Option("--count", min=1, max=9999, metavar="N", help="How many clips.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace files of the same names that lvspec did not write.")
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=GREATEST_SEED, metavar="N", help="Another seed, other clips.")
]


def demo(
    directory: Directory = Path("lvspec-demo"),
    count: Count = 4,
    seed: Seed = 0,
    force: Force = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write clips that the bundled pair understands. Each has its scene, its caption and questions beside it.

    lvspec demo --dir clips
    lvspec demo --dir more --count 100 --seed 1
    """
    with reporting(debug):
        from lvspec_cli.demo.write import write_clips
        from lvspec_cli.escape import visible_line
        from lvspec_cli.ui.progress import PlainProgress

        try:
            with PlainProgress(None if quiet else message_stream()).counting("writing clips") as advance:
                paths = write_clips(directory, count, seed, advance, force=force)
        except OSError as error:
            raise OutputError(
                f"{directory}: {error.strerror or error}", "name a folder that can be written"
            ) from error
        write_out("".join(visible_line(str(path)) + "\n" for path in paths))
