"""The flags of the commands, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lvspec_cli.types import (
    MOST_PIXELS,
    MOST_TOKENS,
    DecoderName,
    KeepBy,
    Looseness,
    Mode,
    Quantisation,
    RelevanceName,
    read_gamma,
)

GREATEST_SEED = 2**63 - 1  # what torch takes
MOST_THREADS = 1024


def complete_pair(incomplete: str) -> list[str]:
    """Names of pairs for the shell. Silent where the files of pairs are wrong."""
    from lvspec_cli.errors import LvspecError
    from lvspec_cli.pairs.registry import load_registry

    try:
        return [name for name in ("auto", *load_registry().pairs) if name.startswith(incomplete)]
    except LvspecError:
        return []


PairName = Annotated[
    str | None,
    typer.Option(
        "--pair", envvar="LVSPEC_PAIR", autocompletion=complete_pair, metavar="NAME",
        help="The target and its draft, of `lvspec models`; auto is the best that is here and fits.",
    ),
]  # fmt: skip
ModelsPath = Annotated[
    Path | None,
    typer.Option("--models", envvar="LVSPEC_MODELS", metavar="FILE", help="A models.yaml of your own."),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]
DataTypeName = Literal["auto", "float32", "bfloat16", "float16"]
DataType = Annotated[DataTypeName, typer.Option("--dtype", help="What the models compute in.")]
CudaGraphs = Annotated[
    bool,
    typer.Option(
        "--cuda-graphs/--no-cuda-graphs",
        help="Capture an answer's passes as CUDA graphs, where a model is whole on one GPU and in none, bf16"
        ", nf4 or torchao-int4: a step then costs the host one launch.",
    ),
]
DraftDevice = Annotated[
    str | None,
    typer.Option(
        "--draft-device", metavar="NAME", help="Where the draft goes; left out, where there is room for it."
    ),
]
QuantTarget = Annotated[
    Quantisation,
    typer.Option(
        "--quant-target",
        help="What the target's weights are kept in. auto: as the files are where that fits, else packed by "
        "what is fast on this device (`lvspec models fit` explains). fp8 wants a GPU, the others run on "
        "CPUs, too; awq and gptq take files made so. On a GPU mode exact may differ from ar in "
        "all but none, bf16 and nf4.",
    ),
]
QuantDraft = Annotated[
    Quantisation, typer.Option("--quant-draft", help="The same for the draft; auto goes by what reads least.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, max=MOST_THREADS, metavar="N",
        help="CPU threads of torch; fewer can be faster on a busy machine. Left out, torch decides.",
    ),
]  # fmt: skip

FrameCap = Annotated[
    int | None, typer.Option("--frames", min=1, max=2048, metavar="N", help="Take at most N frames.")
]
FrameRate = Annotated[
    float | None, typer.Option("--fps", max=240, metavar="F", help="Take F frames a second of video.")
]
Start = Annotated[
    str | None, typer.Option("--start", metavar="TIME", help="Begin here: 90, 1:30 or 0:01:30.5.")
]
End = Annotated[str | None, typer.Option("--end", metavar="TIME", help="End here.")]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels", min=784, max=MOST_PIXELS, metavar="N", help="Scale frames down to N pixels."
    ),
]
Background = Annotated[
    str,
    typer.Option(
        "--background", metavar="COLOUR",
        help="The colour behind what is transparent, and of the bars where the picture's shape changes: "
        "a name or #rrggbb.",
    ),
]  # fmt: skip
Decoder = Annotated[DecoderName, typer.Option("--decoder", help="What reads the video.")]
DecodeTimeout = Annotated[
    float, typer.Option("--decode-timeout", metavar="SECONDS", help="End decoding after so long.")
]

ModeName = Annotated[
    Mode,
    typer.Option(
        "--mode",
        help="lvspec: loose speculative decoding; exact: the target's very tokens; ar: the target alone.",
    ),
]


def _gamma(text: str) -> int | str:
    try:
        return read_gamma(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


# Typer knows no union: what comes is a number or "auto".
Gamma = Annotated[
    str | None,
    typer.Option(
        "--gamma", parser=_gamma, metavar="N|auto",
        help="Tokens the draft proposes a round; auto goes by how many of them were kept so far.",
    ),
]  # fmt: skip
Fallback = Annotated[
    bool | None,
    typer.Option(
        "--fallback/--no-fallback",
        help="Go on without the draft for the rest of a clip where that is measured to be faster. "
        "--no-fallback: nothing depends on the clock.",
    ),
]
DraftKeep = Annotated[
    float,
    typer.Option("--draft-keep", metavar="X", help="Share of the video's tokens that the draft sees."),
]
DraftKeepBy = Annotated[
    KeepBy,
    typer.Option(
        "--draft-keep-by",
        help="Which those are: the ones that the target looks at most when it reads the question (the draft"
        " then encodes the video anew for each question), or evenly spread.",
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens", min=1, max=MOST_TOKENS, metavar="N", help="End the answer after N tokens."
    ),
]
Temperature = Annotated[
    float,
    typer.Option("--temperature", metavar="T", help="0 is greedy; above it in modes exact and ar only."),
]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, max=GREATEST_SEED, metavar="N", help="For sampling and relevance random."),
]

LoosenessName = Annotated[
    Looseness, typer.Option("--looseness", help="strict is exact mode, balanced the pair's own rule.")
]
Relevance = Annotated[
    RelevanceName | None, typer.Option("--relevance", help="What tells visual tokens from the others.")
]
AnchorThreshold = Annotated[
    float | None,
    typer.Option("--anchor-threshold", metavar="X", help="Relevance from which a token is an anchor."),
]
AnchorMargin = Annotated[
    float | None, typer.Option("--anchor-margin", metavar="NATS", help="Margin at an anchor.")
]
FillerMargin = Annotated[
    float | None, typer.Option("--filler-margin", metavar="NATS", help="Margin at a filler; inf for none.")
]
SentenceMargin = Annotated[
    float | None,
    typer.Option(
        "--sentence-margin",
        metavar="NATS",
        help="The most that the first token of a sentence may lie below the target's own, which decides what"
        " will be told: 0 for its very token, inf for the margin of any other.",
    ),
]
ShiftWindow = Annotated[
    int | None, typer.Option("--shift-window", metavar="N", help="Places a token may shift; 0 for none.")
]
MaxLooseRun = Annotated[
    int | None, typer.Option("--max-loose-run", metavar="N", help="Loose tokens allowed in a row.")
]
MaxLooseInWindow = Annotated[
    int | None, typer.Option("--max-loose-in-window", metavar="N", help="Loose tokens allowed in the window.")
]
LooseWindow = Annotated[
    int | None, typer.Option("--loose-window", metavar="N", help="Length of that window in tokens.")
]
RandomRate = Annotated[
    float | None, typer.Option("--random-rate", metavar="X", help="Share accepted by relevance random.")
]
Layers = Annotated[
    list[int] | None,
    typer.Option("--layer", metavar="N", help="Target layer that relevance reads; repeat for several."),
]

Questions = Annotated[
    list[str] | None, typer.Option("--question", metavar="TEXT", help="A further question; repeat for more.")
]
QuestionFile = Annotated[
    Path | None, typer.Option("--questions", metavar="FILE", help="Questions, one a line; - reads stdin.")
]
System = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="A system prompt, before the video.")
]

AsJson = Annotated[bool, typer.Option("--json", help="Print one record a line.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the answer and errors only.")]
TraceFile = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="Write what each round drafted, wanted and kept."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]
