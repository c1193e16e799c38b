"""The flags that several commands share, in groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from lvspec_cli.cli.groups import RULE_SECTION, OptionGroup, flag
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
THE_PAIRS = "the pair's"  # a default of models.yaml


def complete_pair(incomplete: str) -> list[str]:
    """Completes names of pairs in a shell. Gives none if a models.yaml is not valid."""
    from lvspec_cli.errors import LvspecError
    from lvspec_cli.pairs.registry import load_registry

    try:
        return [name for name in ("auto", *load_registry().pairs) if name.startswith(incomplete)]
    except LvspecError:
        return []


ModelsPath = Annotated[
    Path | None, Option("--models", envvar="LVSPEC_MODELS", metavar="FILE", help="A models.yaml of your own.")
]
DraftName = Literal["pair", "mtp"]
Draft = Annotated[
    DraftName,
    Option(
        "--draft",
        help="What drafts: the pair's second model; or, with mtp and without a second model, the layer for "
        "multi-token prediction that the target's files carry, as those of Qwen3.5, 3.6 and 3.8 do.",
    ),
]
Device = Annotated[
    str, Option("--device", metavar="NAME", help="Device to run on: cpu, cuda, cuda:1 or mps.")
]
DataTypeName = Literal["auto", "float32", "bfloat16", "float16"]
DataType = Annotated[DataTypeName, Option("--dtype", metavar="TYPE", help="Number type to compute in.")]
FrameCap = Annotated[
    int | None,
    Option("--frames", min=1, max=2048, metavar="N", help="Take at most N frames.", show_default=THE_PAIRS),
]
MaxPixels = Annotated[
    int | None,
    Option(
        "--max-pixels",
        min=784,
        max=MOST_PIXELS,
        metavar="N",
        help="Scale frames down to N pixels.",
        show_default=THE_PAIRS,
    ),
]
DraftKeepBy = Annotated[
    KeepBy,
    Option(
        "--draft-keep-by",
        help="Which those are: the ones that the target looks at most when it reads the question (the draft"
        " then encodes the video again for each question), or evenly spread.",
    ),
]
MaxNewTokens = Annotated[
    int | None,
    Option(
        "--max-new-tokens", min=1, max=MOST_TOKENS, metavar="N", help="End the answer after N tokens.",
        show_default=THE_PAIRS,
    ),
]  # fmt: skip
Seed = Annotated[
    int, Option("--seed", min=0, max=GREATEST_SEED, metavar="N", help="For sampling and relevance random.")
]


def _checked_gamma(text: str | None) -> str | None:
    try:
        read_gamma("auto" if text is None else text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


Gamma = Annotated[
    str | None,
    Option(
        "--gamma", callback=_checked_gamma, metavar="N|auto", show_default=THE_PAIRS,
        help="Tokens the draft proposes a round; auto goes by how many of them were kept so far.",
    ),
]  # fmt: skip
Layers = Annotated[
    list[int] | None,
    Option(
        "--layer",
        metavar="N",
        help="Target layer that relevance reads; repeat for several.",
        show_default=THE_PAIRS,
    ),
]
System = Annotated[str | None, Option("--system", metavar="TEXT", help="A system prompt, before the video.")]
Think = Annotated[
    bool,
    Option(
        "--think",
        help="Let the target think before it answers, where its chat template has a switch for that; give it "
        "room (--max-new-tokens 4096). Thoughts are no part of the answer: a record has them in `thoughts`.",
    ),
]
Choices = Annotated[
    str | None,
    Option(
        "--choices", metavar="LIST",
        help="The answer is one of these (yes,no,unsure), to the letter; a record has it in `value`. Say in "
        "the question what they mean. Needs the extra lvspec[constrained].",
    ),
]  # fmt: skip
Schema = Annotated[
    Path | None,
    Option(
        "--schema", metavar="FILE",
        help="The answer is JSON of this JSON schema, and a record has it in `value`. One that is cut off "
        "has failed. Needs the extra lvspec[constrained].",
    ),
]  # fmt: skip
Quiet = Annotated[bool, Option("--quiet", "-q", help="Print only results, errors and one-line warnings.")]
Debug = Annotated[bool, Option("--debug", help="Show where an error came from, and what libraries printed.")]


@dataclass(frozen=True)
class Loading(OptionGroup):
    """The pair, and how it is loaded."""

    section = "The models"
    common = ("pair", "device")

    pair: str | None = flag(
        None,
        "Two models, of `lvspec models`. auto is the best pair that is here and fits.",
        envvar="LVSPEC_PAIR", autocompletion=complete_pair, metavar="NAME", shown="the best here",
    )  # fmt: skip
    models: ModelsPath = None
    draft: Draft = "pair"
    device: Device = "auto"
    dtype: DataType = "auto"
    draft_device: str | None = flag(
        None, "Where the draft goes.", metavar="NAME", shown="where there is room"
    )
    cuda_graphs: bool = flag(
        True,
        "Capture an answer's passes as CUDA graphs, where a model is whole on one GPU and in none, bf16, "
        "nf4, int4, fp8 or torchao-int4: a step then costs the host one launch.",
        "--cuda-graphs/--no-cuda-graphs",
    )
    quant_target: Quantisation = flag(
        Quantisation.AUTO,
        "What the target's weights are kept in. auto: as the files are where that fits, else packed by what "
        "is fast on this device (`lvspec models fit` explains). awq and gptq take files made so; fp8 needs a "
        "GPU of compute capability 8.9 or later, or a CPU, where it saves memory only. Mode exact is ar to "
        "the letter in float32, on a GPU with none, bf16, nf4, int4 and fp8 only; else near ties may fall "
        "the other way (a record's `lossless` tells).",
        metavar="KIND",
    )
    quant_draft: Quantisation = flag(
        Quantisation.AUTO,
        "The same for the draft; auto picks whichever reads the fewest bytes.",
        metavar="KIND",
    )
    threads: int | None = flag(
        None,
        "CPU threads of torch; fewer can be faster on a busy machine.",
        min=1, max=MOST_THREADS, metavar="N", shown="torch's",
    )  # fmt: skip


@dataclass(frozen=True)
class Decoding(OptionGroup):
    """How answers are decoded. None means the pair's default."""

    section = "Speed"
    common = ("mode", "max_new_tokens")

    mode: Mode = flag(
        Mode.LVSPEC,
        "Fast, or the large model's own words. lvspec is loose speculative decoding; exact gives the very "
        "tokens of the large model, the target (in 16 bits near ties apart); ar is the target alone.",
    )
    gamma: Gamma = None
    fallback: bool | None = flag(
        None,
        "Go on without the draft for the rest of a clip where that is measured to be faster. --no-fallback: "
        "nothing depends on the clock.",
        "--fallback/--no-fallback", shown=THE_PAIRS,
    )  # fmt: skip
    draft_keep: float = flag(1.0, "Share of the video's tokens that the draft sees.", metavar="X")
    draft_keep_by: DraftKeepBy = KeepBy.ATTENTION
    draft_frames: int | None = flag(
        None,
        "Show the draft N of the frames at most, evenly spread: it starts sooner, and guesses worse.",
        min=1, max=2048, metavar="N",
    )  # fmt: skip
    draft_pixels: int | None = flag(
        None,
        "Scale the draft's frames down to N pixels each, where its tokens become fewer by that (Qwen).",
        min=784, max=MOST_PIXELS, metavar="N",
    )  # fmt: skip
    max_new_tokens: MaxNewTokens = None
    temperature: float = flag(0.0, "0 is greedy; above it in modes exact and ar only.", metavar="T")
    seed: Seed = 0


@dataclass(frozen=True)
class Rule(OptionGroup):
    """The thresholds of ``RuleSettings``, with the same names. None means the pair's default."""

    section = RULE_SECTION
    common = ()

    looseness: Looseness = flag(
        Looseness.BALANCED,
        "strict is exact mode, balanced the pair's own rule, paper LVSpec's.",
        metavar="PRESET",
    )
    relevance: RelevanceName | None = flag(
        None, "What tells visual tokens from the others.", metavar="NAME", shown=THE_PAIRS
    )
    anchor_threshold: float | None = flag(
        None, "Relevance from which a token is an anchor.", metavar="X", shown=THE_PAIRS
    )
    anchor_margin: float | None = flag(None, "Margin at an anchor.", metavar="NATS", shown=THE_PAIRS)
    filler_margin: float | None = flag(
        None, "Margin at a filler; inf for no limit.", metavar="NATS", shown=THE_PAIRS
    )
    sentence_margin: float | None = flag(
        None,
        "The most that the first token of a sentence may lie below the target's own, which decides what will "
        "be told: 0 for its very token, inf for the margin of any other.",
        metavar="NATS", shown=THE_PAIRS,
    )  # fmt: skip
    shift_window: int | None = flag(
        None, "Places a token may shift; 0 for none.", metavar="N", shown=THE_PAIRS
    )
    defer: int | None = flag(
        None, "A loose token stays only if the next N match; 0 turns this off.", metavar="N", shown=THE_PAIRS
    )
    defer_sure: bool | None = flag(
        None,
        "Count tokens beyond the proposal as mismatches.",
        "--defer-sure/--no-defer-sure",
        shown=THE_PAIRS,
    )
    max_loss: float | None = flag(
        None, "Nats a token that loose tokens may give up; inf for no limit.", metavar="NATS", shown=THE_PAIRS
    )
    max_loose_run: int | None = flag(None, "Loose tokens allowed in a row.", metavar="N", shown=THE_PAIRS)
    max_loose_in_window: int | None = flag(
        None, "Loose tokens allowed in the window.", metavar="N", shown=THE_PAIRS
    )
    loose_window: int | None = flag(None, "Length of that window in tokens.", metavar="N", shown=THE_PAIRS)
    random_rate: float | None = flag(
        None, "Share accepted by relevance random.", metavar="X", shown=THE_PAIRS
    )
    layers: Layers = None


@dataclass(frozen=True)
class Sampling(OptionGroup):
    """The stretch of a video, and its frames."""

    section = "The video"
    common = ("frames", "fps", "start", "end")

    frames: FrameCap = None
    fps: float | None = flag(None, "Take F frames a second of video.", max=240, metavar="F", shown=THE_PAIRS)
    start: str | None = flag(None, "Begin here: 90, 1:30 or 0:01:30.5.", metavar="TIME")
    end: str | None = flag(None, "End here.", metavar="TIME")
    max_pixels: MaxPixels = None
    decoder: DecoderName = flag("pyav", "What reads the video.")
    decode_timeout: float = flag(120.0, "End decoding after so long.", metavar="SECONDS")


@dataclass(frozen=True)
class FullSampling(Sampling):
    """As ``Sampling``, with the colour for transparency and bars."""

    background: str = flag(
        "black",
        "The colour behind what is transparent, and of the bars where the picture's shape changes: a name or "
        "#rrggbb.",
        metavar="COLOUR",
    )


@dataclass(frozen=True)
class Messages(OptionGroup):
    """Messages on stderr."""

    section = "Output"
    common = ("quiet",)

    quiet: Quiet = False
    debug: Debug = False
