"""The frozen values that stages exchange, with shapes and units.

    video file -> Clip -> Prompt -> prefill -> (draft -> verify -> accept)* -> Generation -> Record

This module imports neither torch nor transformers, so that the command line starts fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

DecoderName = Literal["pyav", "decord"]
TaskName = Literal["ask", "caption"]
Gamma = int | Literal["auto"]
GREATEST_GAMMA = 64
MOST_TOKENS = 1_000_000  # of an answer
MOST_PIXELS = 8192 * 8192
DEFAULT_PROMPT = "Describe this video in detail."


class Mode(StrEnum):
    """How answers are decoded."""

    LVSPEC = "lvspec"
    EXACT = "exact"
    AR = "ar"


class TokenKind(StrEnum):
    """Why a token is in the output."""

    EXACT = "exact"  # the draft's token is the target's own
    FILLER = "filler"  # a loosely accepted visual-irrelevant token, or a tie at an anchor
    SHIFT = "shift"  # a position-shifted token
    TARGET = "target"  # the target's own: prefill, correction, bonus


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    REPETITION = "repetition"
    INTERRUPTED = "interrupted"
    ERROR = "error"


class RelevanceName(StrEnum):
    """Schemes that distinguish anchors from fillers (docs/design.md, "The rule")."""

    ATTENTION = "attention"
    SIMILARITY = "similarity"
    LENS = "lens"
    LEXICON = "lexicon"
    RANK = "rank"
    RANK_ATTENTION = "rank-attention"
    PAPER = "paper"
    PLAUSIBLE = "plausible"
    RANDOM = "random"
    NONE = "none"


class Looseness(StrEnum):
    """Presets of the rule: ``balanced`` is the pair's own, ``strict`` exact mode, ``paper`` LVSpec's."""

    STRICT = "strict"
    BALANCED = "balanced"
    LOOSE = "loose"
    PAPER = "paper"


class Quantisation(StrEnum):
    """How a model's weights are stored."""

    NONE = "none"  # in the compute dtype
    BF16 = "bf16"
    NF4 = "nf4"
    INT8 = "int8"
    FP8 = "fp8"  # packed by ``models.kernels.fp8``, but for files that are made so
    AWQ = "awq"
    GPTQ = "gptq"
    TORCHAO_INT4 = "torchao-int4"
    INT4 = "int4"  # packed by ``models.kernels.int4``
    AUTO = "auto"  # decided by what fits and is fast on this machine


class KeepBy(StrEnum):
    """Which of the video's tokens are kept for a pruned draft."""

    EVEN = "even"  # evenly spread
    ATTENTION = "attention"  # those with the target's highest attention when it reads the question


class Gate(StrEnum):
    """Conditions in which an answer counts as failed although it has a text."""

    LENGTH = "length"  # cut at --max-new-tokens
    REPETITION = "repetition"  # stopped by the repetition guard
    PARTIAL = "partial"  # fewer frames could be taken than expected


@dataclass(frozen=True)
class Loading:
    """How a pair is loaded: the part on which answers depend."""

    target: Quantisation
    draft: Quantisation | None  # None in mode ar
    dtype: str  # the compute dtype: float32, bfloat16 or float16
    device: str  # the kind: cpu, cuda or mps


# --- video ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoLimits:
    """Limits that are checked before memory is allocated."""

    canvas_pixels: int = MOST_PIXELS
    sampled_frames: int = 2048
    duration: float = 24 * 3600.0  # seconds
    clip_bytes: int = 4 * 1024**3  # all the frames that are kept


@dataclass(frozen=True)
class VideoRequest:
    """How one video is sampled. Times are in seconds of the file's clock, as players show it."""

    path: Path
    start: float | None = None
    end: float | None = None
    max_frames: int | None = None  # cap on the frames taken
    fps: float | None = None  # frames taken per second of video
    max_pixels: int | None = None  # cap on height * width of a frame that is kept
    decoder: DecoderName = "pyav"
    background: tuple[int, int, int] = (0, 0, 0)  # RGB, behind transparency and in bars
    timeout: float | None = 120.0  # seconds of decoding before it is ended
    limits: VideoLimits = field(default_factory=VideoLimits)


@dataclass(frozen=True)
class VideoInfo:
    """Facts about the video stream that is read, from the header, but times from packets."""

    path: Path
    container: str  # FFmpeg's name of the format, such as ``matroska,webm``
    codec: str
    width: int  # pixels, as stored, before rotation
    height: int
    frame_rate: float | None  # average frames per second
    duration: float | None  # seconds of the file's clock to the end of the last frame, None when unknown
    begins: float = 0.0  # seconds at which the picture begins


@dataclass(frozen=True)
class Clip:
    """Frames of a stretch of one video, decoded once, as both models will see them."""

    path: Path
    frames: np.ndarray  # uint8 (frames, height, width, 3), RGB, upright
    timestamps: tuple[float, ...]  # seconds of the file's clock, one a frame, ascending
    frame_rate: float | None  # average frames per second of the source, None when unknown
    duration: float | None  # seconds of the whole file's clock, to the end of the last frame
    start: float  # seconds, the stretch that was asked for
    end: float | None  # seconds, None when the end of the stream is meant and its time unknown
    source_width: int  # pixels, after rotation
    source_height: int
    frames_expected: int  # how many the request should have given
    decoder: DecoderName  # which one gave the frames, after any fallback
    decode_seconds: float
    warnings: tuple[str, ...] = ()
    begins: float = 0.0  # seconds at which the picture begins: the sound may begin earlier

    @property
    def width(self) -> int:
        return int(self.frames.shape[2])

    @property
    def height(self) -> int:
        return int(self.frames.shape[1])


# --- prompt --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """One model's inputs for one clip and one question.

    Tokens ``[0, prefix_length)`` hold all of the video and are the same for every question
    about the clip, so that their cache can be kept.
    """

    text: str  # the conversation, with the processor's placeholder for the video
    input_ids: Tensor  # long (1, length)
    position_ids: Tensor  # long, the family's shape, (..., 1, length)
    next_position: int  # position of the first generated token (the same on every axis)
    video_mask: Tensor  # bool (length,), true at the video's tokens
    prefix_length: int
    video_inputs: Mapping[str, Tensor]  # inputs of prefill only: pixels, grids, seconds per grid

    @property
    def length(self) -> int:
        return int(self.input_ids.shape[1])

    @property
    def visual_tokens(self) -> int:
        return int(self.video_mask.sum())


@dataclass(frozen=True)
class Thinking:
    """How thoughts stand before an answer, by the target's chat template."""

    end: str  # the tag that ends them: </think>
    opened: bool  # whether the prompt itself opens them, so that an answer begins inside

    @property
    def start(self) -> str:
        return self.end.replace("/", "", 1)


@dataclass(frozen=True)
class Turn:
    """A question about a clip and its answer, which later questions follow."""

    question: str
    answer: str


@dataclass(frozen=True)
class PairPrompts:
    """The prompts of target and draft for the same clip and question."""

    target: Prompt
    draft: Prompt | None  # none in mode ar

    def without_video(self) -> PairPrompts:
        """The same without the inputs of prefill, which are large."""
        target, draft = (prompt and replace(prompt, video_inputs={}) for prompt in (self.target, self.draft))
        assert target is not None
        return PairPrompts(target, draft)


# --- decoding ------------------------------------------------------------------------------


def read_gamma(value: object) -> Gamma:
    """A gamma from a file or the command line.

    :raises ValueError: it is neither ``auto`` nor a whole number in its range.
    """
    if value == "auto":
        return "auto"
    if isinstance(value, int | str) and not isinstance(value, bool) and str(value).isdecimal():
        number = int(value)
        if 1 <= number <= GREATEST_GAMMA:
            return number
    raise ValueError(f"{value} is neither auto nor a number from 1 to {GREATEST_GAMMA}")


@dataclass(frozen=True)
class RuleSettings:
    """Thresholds of the rule (docs/design.md, "The rule"). Margins in nats; ``inf`` means no margin.

    A draft token that differs from the target's is accepted if the target's log probability of it is at
    most ``margin`` below that of its own token. The margin falls from ``filler_margin`` (relevance 0) to
    ``anchor_margin`` (relevance at or above ``anchor_threshold``). At the first token of a sentence, which
    decides what the sentence tells, the margin is at most ``sentence_margin``, also for shifts. A token
    within its margin is accepted only if the next ``defer`` drafted tokens are the target's own, or if it is
    a tie: within ``anchor_margin``, whatever its relevance. The gap of any loose token is at most what
    ``max_loss`` leaves of the answer's budget. The ranges apply to models.yaml and to the command line.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    relevance: RelevanceName = RelevanceName.ATTENTION
    anchor_threshold: Annotated[float, Ge(0), Le(1000)] = 0.5
    anchor_margin: Annotated[float, Ge(0)] = 0.5
    filler_margin: Annotated[float, Ge(0)] = 2.0
    sentence_margin: Annotated[float, Ge(0)] = 0.0  # at the first token of a sentence
    shift_window: Annotated[int, Ge(0), Le(16)] = 2  # positions; 0 turns shift off
    defer: Annotated[int, Ge(0), Le(16)] = 0  # positions; 0 turns the deferred window off
    defer_sure: bool = True  # positions of the window beyond the proposal count as mismatches
    max_loss: Annotated[float, Ge(0)] = math.inf  # nats a token that loose tokens may give up
    max_loose_run: Annotated[int, Ge(0), Le(MOST_TOKENS)] = 3  # loose tokens in a row
    # Loose tokens among the last loose_window tokens.
    max_loose_in_window: Annotated[int, Ge(0), Le(MOST_TOKENS)] = 6
    loose_window: Annotated[int, Ge(1), Le(MOST_TOKENS)] = 12
    never_loosely: bool = True  # ends, numerals, negations, loops, contraries if any; false for ablations
    contraries: bool = False  # the pair's contraries never replace each other
    random_rate: Annotated[float, Ge(0), Le(1)] = 0.5  # relevance random: share of mismatches accepted
    # The target's layers from whose hidden states or attention relevance is computed.
    layers: tuple[Annotated[int, Ge(-1000), Le(999)], ...] = (-1,)
    # relevance rank-attention: the share of attention that counts as much as the rarest token
    attention_scale: Annotated[float, Gt(0), Le(1)] = 1.0

    @property
    def unused(self) -> set[str]:
        """Fields of parts that are off. Files leave them out, as those of versions without these parts do."""
        window = () if self.defer else ("defer", "defer_sure")
        budget = ("max_loss",) if math.isinf(self.max_loss) else ()
        contraries = () if self.contraries else ("contraries",)
        scale = () if self.relevance is RelevanceName.RANK_ATTENTION else ("attention_scale",)
        return {*window, *budget, *contraries, *scale}


@dataclass(frozen=True)
class RoundCosts:
    """Costs in a round, in steps of the target alone (docs/design.md, "What a round costs").

    ``draft`` is c, ``overhead`` is o, and v is ``verification`` plus ``row`` for each of gamma + 1 rows.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    draft: Annotated[float, Gt(0), Le(1000)]
    verification: Annotated[float, Gt(0), Le(1000)] = 1.0
    row: Annotated[float, Ge(0), Le(1000)] = 0.02
    overhead: Annotated[float, Ge(0), Le(1000)] = 0.1


@dataclass(frozen=True)
class Adaptation:
    """Parameters of gamma ``auto``: constants, not measured times, so that answers are reproducible."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    most: Annotated[int, Ge(1), Le(GREATEST_GAMMA)] = 16  # tokens a round
    costs: RoundCosts | None = None  # None: from the sizes of the two models


@dataclass(frozen=True)
class DraftView:
    """How much of a clip its draft is shown; None: as much as the target sees."""

    frames: int | None = None  # the most of the clip's, evenly spread
    pixels: int | None = None  # the most of a frame

    @property
    def is_whole(self) -> bool:
        return self.frames is None and self.pixels is None


WHOLE = DraftView()


@dataclass(frozen=True)
class Constraint:
    """The only answers that are allowed: one of ``choices``, to the letter, or JSON that ``schema`` allows.

    One of the two is set. ``schema`` is a JSON schema as text, because the order of its properties counts.
    """

    choices: tuple[str, ...] = ()
    schema: str | None = None


@dataclass(frozen=True)
class DecodeSettings:
    """How one answer is decoded."""

    mode: Mode = Mode.LVSPEC
    gamma: Gamma = "auto"
    adaptation: Adaptation = field(default_factory=Adaptation)
    rule: RuleSettings = field(default_factory=RuleSettings)
    max_new_tokens: int = 256
    temperature: float = 0.0  # 0 is greedy; above it only in modes exact and ar
    seed: int = 0
    repetition_guard: bool = True
    draft_keep: float = 1.0  # share of the video's tokens that the draft sees
    draft_keep_by: KeepBy = KeepBy.ATTENTION
    draft_frames: int | None = None  # the most frames that the draft is shown
    draft_pixels: int | None = None  # the most pixels of each
    # Continue without the draft if that is faster. If off, nothing depends on the clock.
    fallback: bool = False
    constraint: Constraint | None = None
    # Mode ar: by a coin the target's second choice, where it is so many nats less probable at most. A control
    # of the bench, which says what leaving the greedy path costs by itself.
    vary: float = 0.0

    @property
    def greatest_gamma(self) -> int:
        """The most tokens that a round drafts."""
        return self.adaptation.most if self.gamma == "auto" else self.gamma

    @property
    def draft_view(self) -> DraftView:
        return DraftView(self.draft_frames, self.draft_pixels)

    @property
    def is_loose(self) -> bool:
        """Whether other tokens than the target's own may be accepted. In place of a choice they never are."""
        return self.mode is Mode.LVSPEC and not (self.constraint and self.constraint.choices)

    @property
    def draft_is_guided(self) -> bool:
        """Whether the draft encodes the video after the target has read the question, by its attention."""
        return self.mode is not Mode.AR and self.draft_keep < 1 and self.draft_keep_by is KeepBy.ATTENTION


@dataclass(frozen=True)
class Round:
    """One round: drafting, verification and acceptance, with the tokens that it added to the output."""

    tokens: tuple[int, ...]  # added to the output; its length is the accepted length
    kinds: tuple[TokenKind, ...]  # one a token
    drafted: tuple[int, ...] = ()  # the draft's tokens
    target: tuple[int, ...] = ()  # the target's own token at each of gamma + 1 positions
    relevance: tuple[float, ...] = ()  # one a drafted token
    gap: tuple[float, ...] = ()  # nats from the target's token down to the drafted one
    loss: float = 0.0  # nats that the loose tokens gave up: the sum of their gaps
    prefill: bool = False  # true for the token from prefill, which is not a real round
    fallback: bool = False  # by the target alone, because speculation was slower


@dataclass(frozen=True)
class DecodeStats:
    """Counts and seconds of one answer (docs/design.md, "Terms")."""

    output_tokens: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted_exact: int = 0
    accepted_filler: int = 0
    accepted_shift: int = 0
    loss: float = 0.0  # nats that the loose tokens gave up: the sum of their gaps
    gamma: int = 0  # with gamma auto: the most tokens that a round has drafted
    fallback: bool = False  # at least a part was decoded by the target alone, because speculation was slower
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0  # of rounds decoded together with others its share

    @property
    def mean_accepted_length(self) -> float | None:
        return (self.output_tokens - 1) / self.rounds if self.rounds else None

    @property
    def acceptance_rate(self) -> float | None:
        accepted = self.accepted_exact + self.accepted_filler + self.accepted_shift
        return accepted / self.drafted if self.drafted else None

    @property
    def loss_per_token(self) -> float | None:
        """Nats a token of the answer that its loose tokens gave up."""
        return self.loss / self.output_tokens if self.output_tokens and math.isfinite(self.loss) else None

    @property
    def tokens_per_second(self) -> float | None:
        if self.decode_seconds <= 0 or self.output_tokens < 2:
            return None
        return (self.output_tokens - 1) / self.decode_seconds


@dataclass(frozen=True)
class Generation:
    """One finished answer. ``tokens`` includes the end token, if there is one."""

    tokens: tuple[int, ...]
    kinds: tuple[TokenKind, ...]
    finish_reason: FinishReason
    stats: DecodeStats


@dataclass(frozen=True)
class VisionSize:
    """The dimensions of a vision tower, and the number of tokens for its frames."""

    width: int
    mlp: int  # width inside a block
    patch: int  # pixels a side
    merge: int  # patches a side that become one token
    frames: int = 1  # frames that share a patch
    patches_a_frame: int | None = None  # if all frames are scaled to one size; None: depends on the pixels
    tokens_a_frame: int | None = None
    text_a_frame: int = 0  # tokens of text that the processor adds for each frame
    rotates: bool = False  # rotary attention, computed in float32

    def patches(self, frames: int, pixels: int) -> int:
        """The most patches of a whole video whose frames have at most ``pixels``."""
        return math.ceil(frames / self.frames) * (self.patches_a_frame or pixels // self.patch**2)

    def tokens(self, frames: int, pixels: int) -> int:
        """The most visual tokens of a whole video."""
        a_frame = self.tokens_a_frame or pixels // (self.patch * self.merge) ** 2
        return math.ceil(frames / self.frames) * a_frame


@dataclass(frozen=True)
class Share:
    """Decoder layers placed on one device. The first share also holds everything else of the model."""

    device: str
    layers: int


@dataclass(frozen=True)
class Placement:
    """Shares of each model, as ``ModelRequest`` takes them."""

    target: tuple[Share, ...] = ()
    draft: tuple[Share, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Text that one token completed, with the token's kind."""

    text: str
    kind: TokenKind
