"""``lvspec demo``: more clips of the bundled pair's world."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.reporting import reporting, write_out


def demo(
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where to write.")] = Path(
        "lvspec-demo"
    ),
    count: Annotated[int, typer.Option("--count", min=1, max=9999, metavar="N", help="How many clips.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Another seed, other clips.")] = 0,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write clips that the bundled pair understands, each with its scene, caption and questions."""
    with reporting(debug):
        from lvspec_cli.demo.write import write_clips
        from lvspec_cli.ui.escape import visible
        from lvspec_cli.ui.progress import PlainProgress

        progress = PlainProgress(sys.stderr)
        if not quiet:
            progress.begin("writing")
        try:
            write_clips(directory, count, seed, lambda done, total: progress.advance("writing", done, total))
        finally:
            progress.close()
        write_out("".join(visible(f"{path}\n") for path in sorted(directory.glob("clip_*.mp4"))))
