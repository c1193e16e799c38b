"""``lvspec bench``: how much faster, and what it costs in quality."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.reporting import reporting
from lvspec_cli.errors import UsageError
from lvspec_cli.types import KeepBy, Looseness, Quantisation

Clips = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CLIPS]...", help="Videos or folders of videos; none draws clips of its own."),
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the results go.")]
Modes = Annotated[
    str | None,
    typer.Option(
        "--modes", metavar="LIST",
        help="Of ar,exact,exact-pruned,lvspec,lvspec-pruned,hf-ar,hf-assisted; lvspec:random is the rule "
        "with another relevance. Left out, the first seven.",
    ),
]  # fmt: skip
Gammas = Annotated[
    str | None,
    typer.Option("--gamma", metavar="LIST", help="Tokens the draft proposes a round: auto,3,5,8,12."),
]
RuleFile = Annotated[
    Path | None,
    typer.Option(
        "--variants", metavar="FILE",
        help="A YAML file of rules to run too: names, each with what it changes (and gamma, mode).",
    ),
]  # fmt: skip
Ablate = Annotated[
    bool,
    typer.Option(
        "--ablate",
        help="Run the rule also without each of its parts (anchors, shift, ...), or with one it lacks.",
    ),
]
Controls = Annotated[
    bool, typer.Option("--controls", help="Run every other relevance too, with the same thresholds.")
]
TextsOnly = Annotated[
    bool,
    typer.Option("--texts-only", help="Fidelity alone, of many clips: nothing is timed, all goes quicker."),
]
Processes = Annotated[
    int,
    typer.Option(
        "--processes", min=1, max=256, metavar="N",
        help="Ask for texts that are not timed in N processes, a thread and a copy of the pair each.",
    ),
]  # fmt: skip
DraftKeep = Annotated[
    float,
    typer.Option(
        "--draft-keep", metavar="X", help="Share of the video's tokens that the draft sees in pruned modes."
    ),
]
Repeat = Annotated[
    int, typer.Option("--repeat", min=1, max=9999, metavar="N", help="Measure everything N times.")
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, max=9999, metavar="N", help="Take N clips at most.")
]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", metavar="TEXT", help="What to ask of each clip; repeat for more."),
]
QuestionFile = Annotated[
    Path | None,
    typer.Option(
        "--questions", metavar="FILE",
        help="A JSONL file in place of CLIPS: path, question, and if you like answer, choices, start, end.",
    ),
]  # fmt: skip
AskedPerClip = Annotated[
    int | None,
    typer.Option(
        "--questions-per-clip", min=0, max=9999, metavar="N",
        help="Questions about each clip that has its own beside it, as lvspec demo writes them.",
    ),
]  # fmt: skip
Quick = Annotated[bool, typer.Option("--quick", help="A minute's look: two clips, short answers.")]
Redo = Annotated[bool, typer.Option("--redo", help="Measure all of it again.")]


def check_extra(command: str) -> None:
    """:raises UsageError: the package is missing that draws the charts of the command's report."""
    if find_spec("matplotlib") is None:
        raise UsageError(
            f"{command} needs the package matplotlib", "install it with: pip install 'lvspec[bench]'"
        )


def bench(
    clips: Clips = None,
    out: Out = Path("lvspec-bench"),
    quick: Quick = False,
    modes: Modes = None,
    gamma: Gammas = None,
    variants: RuleFile = None,
    ablate: Ablate = False,
    controls: Controls = False,
    texts_only: TextsOnly = False,
    processes: Processes = 1,
    draft_keep: DraftKeep = 0.1,
    draft_keep_by: options.DraftKeepBy = KeepBy.ATTENTION,
    repeat: Repeat = 1,
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
    seed: options.Seed = 0,
    looseness: options.LoosenessName = Looseness.BALANCED,
    relevance: options.Relevance = None,
    anchor_threshold: options.AnchorThreshold = None,
    anchor_margin: options.AnchorMargin = None,
    filler_margin: options.FillerMargin = None,
    sentence_margin: options.SentenceMargin = None,
    shift_window: options.ShiftWindow = None,
    max_loose_run: options.MaxLooseRun = None,
    max_loose_in_window: options.MaxLooseInWindow = None,
    loose_window: options.LooseWindow = None,
    random_rate: options.RandomRate = None,
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
    """Measure every mode against ar and against transformers: speed and fidelity. It can be stopped, and
    goes on where it was."""
    given = dict(locals())
    with reporting(debug) as stop:
        check_extra("lvspec bench")
        if not debug:
            from lvspec_cli.cores import quieten_libraries

            quieten_libraries()
        from lvspec_cli.cli.bench_run import bench_all

        code = bench_all(given, stop)
        raise typer.Exit(code)
