"""``lvspec tune``: the rule's thresholds for a pair, found by measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.bench import AskedPerClip, Clips, Limit, Processes, Prompts, QuestionFile, check_extra
from lvspec_cli.cli.reporting import reporting
from lvspec_cli.types import Quantisation, RelevanceName

Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where measurements and results go.")]
Relevances = Annotated[
    list[RelevanceName] | None,
    typer.Option("--relevance", help="Tune this scheme, not the pair's own; repeat to tune controls too."),
]
Budget = Annotated[
    int, typer.Option("--budget", min=1, max=999, metavar="N", help="Try N settings of each relevance.")
]
MinFidelity = Annotated[
    float,
    typer.Option(
        "--min-fidelity", metavar="PERCENT",
        help="Quality to keep of ar's, as the lower end of its interval: of facts and answers where right "
        "ones are known, else of how likely the target finds the text, a token.",
    ),
]  # fmt: skip
Gammas = Annotated[
    str, typer.Option("--gamma", metavar="LIST", help="What to try for gamma: auto,4,8,12,16.")
]
SplitSeed = Annotated[
    int,
    typer.Option(
        "--seed",
        min=0,
        max=options.GREATEST_SEED,
        metavar="N",
        help="Another seed, other halves and other settings.",
    ),
]
Reported = Annotated[
    int | None,
    typer.Option(
        "--report",
        min=1,
        max=9999,
        metavar="N",
        help="Report on N clips of the other half only: they are timed.",
    ),
]
Redo = Annotated[bool, typer.Option("--redo", help="Measure all of it again.")]


def tune(
    clips: Clips = None,
    out: Out = Path("lvspec-tune"),
    relevance: Relevances = None,
    budget: Budget = 48,
    processes: Processes = 1,
    report: Reported = None,
    min_fidelity: MinFidelity = 99.8,
    gamma: Gammas = "auto,4,8,12,16",
    limit: Limit = None,
    prompt: Prompts = None,
    questions: QuestionFile = None,
    questions_per_clip: AskedPerClip = None,
    redo: Redo = False,
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
    seed: SplitSeed = 0,
    layer: options.Layers = None,
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
    """Find the fastest setting of a pair's rule that keeps the quality: searched on one half of the clips,
    reported on the other, printed as lines for models.yaml. It can be stopped, and goes on where it was."""
    given = dict(locals())
    with reporting(debug):
        check_extra("lvspec tune")
        if not debug:
            from lvspec_cli.cores import quieten_libraries

            quieten_libraries()
        from lvspec_cli.cli.tune_run import tune_all

        raise typer.Exit(tune_all(given))
