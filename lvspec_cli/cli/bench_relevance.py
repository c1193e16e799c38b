"""``lvspec bench-relevance``: how well each scheme tells fact tokens from filler tokens."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.bench import check_extra
from lvspec_cli.cli.reporting import reporting
from lvspec_cli.types import Quantisation


class SchemeName(StrEnum):
    """The schemes that give a token a score."""

    ATTENTION = "attention"
    SIMILARITY = "similarity"
    LENS = "lens"
    LEXICON = "lexicon"
    RANDOM = "random"


Clips = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CLIPS]...", help="Clips that lvspec demo wrote, or folders of them; none draws new ones."
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the results go.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, max=9999, metavar="N", help="Take N clips at most.")
]
Redo = Annotated[bool, typer.Option("--redo", help="Score all captions again.")]
Schemes = Annotated[
    list[SchemeName] | None, typer.Option("--relevance", help="Only this scheme; repeat for more.")
]


def bench_relevance(
    clips: Clips = None,
    out: Out = Path("lvspec-bench"),
    limit: Limit = None,
    relevance: Schemes = None,
    redo: Redo = False,
    gamma: options.Gamma = None,
    system: options.System = None,
    pair: options.PairName = None,
    models: options.ModelsPath = None,
    device: options.Device = "auto",
    dtype: options.DataType = "auto",
    draft_device: options.DraftDevice = None,
    cuda_graphs: options.CudaGraphs = True,
    quant_target: options.QuantTarget = Quantisation.AUTO,
    quant_draft: options.QuantDraft = Quantisation.AUTO,
    threads: options.Threads = None,
    max_new_tokens: options.MaxNewTokens = None,
    seed: options.Seed = 0,
    frames: options.FrameCap = None,
    fps: options.FrameRate = None,
    start: options.Start = None,
    end: options.End = None,
    max_pixels: options.MaxPixels = None,
    decoder: options.Decoder = "pyav",
    decode_timeout: options.DecodeTimeout = 120.0,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure what tells anchors from fillers: on the target's own captions of clips with known facts. It can
    be stopped, and goes on where it was."""
    given = dict(locals())
    with reporting(debug):
        check_extra("lvspec bench-relevance")
        if not debug:
            from lvspec_cli.cores import quieten_libraries

            quieten_libraries()
        from lvspec_cli.cli.relevance_run import relevance_all

        raise typer.Exit(relevance_all(given))
