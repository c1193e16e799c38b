"""Measured answers, and the figures computed from them: frozen pydantic models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import exp
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from lvspec_cli.types import Gamma, RelevanceName, TaskName, TokenKind


class BenchMode(StrEnum):
    """The modes of the bench: our own, and those of transformers (the peers) on the same weights."""

    AR = "ar"
    EXACT = "exact"
    EXACT_PRUNED = "exact-pruned"  # the draft sees a share of the video's tokens
    LVSPEC = "lvspec"
    LVSPEC_PRUNED = "lvspec-pruned"
    CONTROL = "control"  # ar, but by a coin its own second choice where the two are near
    HF_AR = "hf-ar"  # generate()
    HF_ASSISTED = "hf-assisted"  # generate(assistant_model=...)
    HF_BATCHED = "hf-batched"  # generate() of several clips in one padded batch, where throughput is measured

    @property
    def is_peer(self) -> bool:
        return self in (BenchMode.HF_AR, BenchMode.HF_ASSISTED, BenchMode.HF_BATCHED)

    @property
    def is_plain(self) -> bool:
        """Whether it decodes token by token, without a draft, and the target's own text."""
        return self in (BenchMode.AR, BenchMode.HF_AR, BenchMode.HF_BATCHED)

    @property
    def drafts(self) -> bool:
        return not self.is_plain and self is not BenchMode.CONTROL

    @property
    def is_loose(self) -> bool:
        return self in (BenchMode.LVSPEC, BenchMode.LVSPEC_PRUNED)

    @property
    def is_pruned(self) -> bool:
        return self in (BenchMode.EXACT_PRUNED, BenchMode.LVSPEC_PRUNED)


class FrozenModel(BaseModel):
    """The base of all parts of a results file."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Spread(FrozenModel):
    """A median over clips with its bootstrap interval; no interval for a single clip."""

    median: float
    low: float | None
    high: float | None


class Estimate(FrozenModel):
    """A figure with its bootstrap interval over clips; no interval for a single clip."""

    value: float
    low: float | None
    high: float | None

    def exp(self) -> Estimate:
        """The estimate of exp(figure)."""
        low, high = (None if end is None else exp(end) for end in (self.low, self.high))
        return Estimate(value=exp(self.value), low=low, high=high)


@dataclass(frozen=True)
class Variant:
    """One line of the report: a mode and its settings.

    :param gamma: None in the plain modes; in ``hf-assisted`` None means the default of transformers.
    :param relevance: a scheme other than the pair's own, in the loose modes.
    :param label: the name of a rule's settings (``bench.variants``).
    """

    mode: BenchMode
    gamma: Gamma | None = None
    relevance: RelevanceName | None = None
    label: str | None = None

    @property
    def name(self) -> str:
        """The mode as in ``--modes``, or with the name of its rule: ``lvspec/no-shift``."""
        named = f"{self.mode}/{self.label}" if self.label else str(self.mode)
        return f"{named}:{self.relevance}" if self.relevance else named

    def __str__(self) -> str:
        return self.name if self.gamma is None else f"{self.name} γ={self.gamma}"


class Item(FrozenModel):
    """One question about one clip, or a request for its caption, and what is known about the right answer."""

    id: str  # unique within the run
    file_name: str
    prompt: str
    task: TaskName = "caption"
    kind: str | None = None  # the question's kind, in the demo world
    reference: str | None = None  # a right answer
    choices: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()  # demo world: a right answer contains one of these ...
    none_of: tuple[str, ...] = ()  # ... and none of these
    scene: dict[str, Any] | None = None  # demo world: what the clip shows (demo.scenes.Scene.as_dict)
    frames: int | None = None  # sampled from the video
    visual_tokens: int | None = None
    error: str | None = None  # why it could not be measured


class VariantFields(FrozenModel):
    """The fields that identify a variant, in a part of the file that belongs to one."""

    mode: BenchMode
    gamma: Gamma | None = None
    relevance: RelevanceName | None = None
    label: str | None = None

    @property
    def variant(self) -> Variant:
        return Variant(self.mode, self.gamma, self.relevance, self.label)


class TimedText(Protocol):
    """What the figures need of an answer: text, counts and seconds, with the meaning of ``Measurement``."""

    @property
    def text(self) -> str | None: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def first_tokens(self) -> int: ...
    @property
    def decode_s(self) -> float: ...
    @property
    def log_probability(self) -> float | None: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def tokens(self) -> Sequence[int] | None: ...


class Measurement(VariantFields):
    """One timed answer of one mode. If it failed, ``error`` is set and the other fields keep their defaults.

    All seconds are 0 where only texts were asked for.
    """

    place: int = 0  # position in the order in which its block ran, from 0
    error: str | None = None
    text: str | None = None
    finish_reason: str | None = None
    output_tokens: int = 0  # the end token included
    first_tokens: int = 1  # output tokens of the prefill; the others are decoded
    rounds: int | None = None  # after the prefill; null for a peer that decodes plainly
    drafted: int | None = None
    accepted_exact: int = 0
    accepted_filler: int = 0
    accepted_shift: int = 0
    accepted_lengths: tuple[int, ...] = ()  # one for each round
    video_s: float = 0.0  # decoding of the frames: once for each clip, the same for every mode
    prompt_s: float = 0.0  # the processors: pixels and token ids
    prefill_s: float = 0.0
    decode_s: float = 0.0  # all tokens but the first ones
    tokens: tuple[int, ...] | None = None  # in the first repeat only
    kinds: tuple[TokenKind, ...] | None = None  # one for each token, for examples
    pieces: tuple[tuple[str, TokenKind], ...] | None = None  # the text, token by token, for examples
    log_probability: float | None = None  # nats a token, by the target
    loss: float | None = None  # nats that the loose tokens gave up; unknown of peers

    @property
    def seconds_per_token(self) -> float | None:
        """Decoding seconds; None if the prefill gave all tokens."""
        decoded = self.output_tokens - self.first_tokens
        return self.decode_s / decoded if decoded > 0 and self.error is None else None

    @property
    def end_to_end_s(self) -> float:
        return self.video_s + self.prompt_s + self.prefill_s + self.decode_s


class Profile(VariantFields):
    """An additional answer whose passes are timed. Counts and seconds of its rounds, without the prefill."""

    rounds: int
    draft_steps: int
    draft_s: float
    verification_s: float  # the target's passes
    overhead_s: float  # everything else: the rule, relevance, choosing tokens, counting


class Block(FrozenModel):
    """Every mode once on one item, in one repeat. Times are compared within a block only."""

    item: str  # id
    repeat: int  # from 0
    measurements: tuple[Measurement, ...]  # in the order of ``modes``, not of time
    profiles: tuple[Profile, ...] = ()  # in some blocks, for the modes with a draft

    def of(self, variant: Variant) -> Measurement | None:
        return next((answer for answer in self.measurements if answer.variant == variant), None)


class Costs(FrozenModel):
    """Seconds of each part of a round: medians over the profiles of a mode."""

    answers: int  # profiled
    draft_step_s: float
    verification_s: float
    overhead_s: float  # a round
    drafted_a_round: float
    ar_step_s: float  # the reference's seconds a token in the same blocks, from its ordinary measurements


class Kinds(FrozenModel):
    """Counts of output tokens by the reason why they were emitted."""

    exact: int = 0
    filler: int = 0
    shift: int = 0
    target: int = 0


class RelativeQuality(FrozenModel):
    """A quality figure (0 to 1) of a mode, the same of ``ar``, and their ratio."""

    mode: float
    ar: float
    count: int  # facts to find, or questions
    retention: Estimate | None  # mode / ar; null if ar got nothing right
    lost: int | None = None  # facts or answers that ar has right and the mode does not


def lowest_retention(*qualities: RelativeQuality | None) -> Estimate | None:
    """The retention with the lowest lower bound; None without any."""
    retentions = [quality.retention for quality in qualities if quality and quality.retention]
    return min(retentions, key=lambda retention: (lower_bound(retention), retention.value), default=None)


# Hanley and Lippman-Hand 1983: if none of n cases differs, a share of up to 3 / n may (95 % confidence).
RULE_OF_THREE = 3.0


def retention_lower_bound(quality: RelativeQuality) -> float | None:
    """The lower bound of the retention, limited to what the number of facts or questions can prove.

    If almost nothing changed, the bootstrap interval has no width: that alone proves nothing.
    """
    if quality.retention is None:
        return None
    return min(lower_bound(quality.retention), 1 - RULE_OF_THREE / max(quality.count, 1))


def lower_bound(estimate: Estimate) -> float:
    """The lower end of the interval; the value itself if there is no interval."""
    return estimate.value if estimate.low is None else estimate.low


class Freedom(FrozenModel):
    """A mode beside the control, which leaves the greedy path by the target's own second choices alone.

    What keeps as much as the control is within the target's own freedom. No labels are needed.
    """

    content: Estimate  # content words of ar's texts that the mode keeps / that the control keeps
    control_content: float  # the share that the control keeps
    control_loss: float | None  # nats a token
    control_repetition: float
    control_length: float  # tokens an answer


class Fidelity(FrozenModel):
    """Quality of a mode relative to ``ar``, over its first answer to each item; paired intervals over clips.

    Log probabilities are the target's, in nats a token; every text has the same weight.
    """

    answers: int
    clips: int
    facts: RelativeQuality | None = None  # F1 of captions of the demo world
    facts_by_kind: dict[str, RelativeQuality] = {}
    questions: RelativeQuality | None = None  # accuracy where the right answer is known
    questions_by_kind: dict[str, RelativeQuality] = {}
    log_probability: Estimate | None = None
    ar_log_probability: Estimate | None = None
    log_probability_change: Estimate | None = None  # mode - ar
    content_kept: Estimate | None = None  # share of the content words of ar's texts
    loss_per_token: float | None = None  # nats that loose tokens gave up, over all tokens
    freedom: Freedom | None = None  # against the control, where that was run
    chrf: Estimate | None = None  # 0 to 100, to ar's text
    rouge_l: Estimate | None = None  # 0 to 100, to ar's text
    identical: Estimate | None = None  # share of texts
    same_answers: Estimate | None = None  # share of short and multiple-choice answers
    short_answers: int = 0  # the number of these
    repetition: float = 0.0  # share of 4-grams of tokens that occurred before
    ar_repetition: float = 0.0
    length: float = 0.0  # tokens an answer
    ar_length: float = 0.0

    @property
    def likelihood(self) -> Estimate | None:
        """The target's probability of a token of the mode's texts / that of a token of ar's, geometric means.

        It can be above 1: greedy decoding does not give the most probable text.
        """
        return self.log_probability_change.exp() if self.log_probability_change is not None else None

    @property
    def retention(self) -> Estimate | None:
        """The lower of the retentions of facts and questions (by lower bound). None without labels."""
        return lowest_retention(self.facts, self.questions)


class ModeResult(VariantFields):
    """One mode and gamma over all clips. ``speedup_vs_ar`` is against ``Results.reference``."""

    error: str | None = None  # the message, if it could not run
    failed: int = 0  # answers that ended in an error
    answers: int = 0  # measured without error
    speedup_vs_ar: Spread | None = None  # decoding only
    end_to_end_speedup_vs_ar: Spread | None = None  # video, prefill and an answer as long as ar's
    mean_accepted_length: float | None = None
    mean_accepted_length_interval: Estimate | None = None
    acceptance_rate: float | None = None
    retention: Estimate | None = None  # quality / quality of ar
    tokens_per_s: float | None = None  # decoding: the median over clips
    video_s: float | None = None  # medians over the answers
    prompt_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    c: float | None = None  # docs/design.md, "What a round costs"
    v: float | None = None
    o: float | None = None
    predicted_speedup: float | None = None
    costs: Costs | None = None
    kinds: Kinds | None = None
    accepted_lengths: dict[int, int] = {}  # number of rounds by accepted length
    fidelity: Fidelity | None = None
    settings: dict[str, Any] = {}


class Contrast(FrozenModel):
    """``line`` of the report against ``other``, over the same items; intervals are over clips, paired.

    Values above 1 are in favour of ``line``.
    """

    line: str
    other: str
    speed: Spread | None = None  # seconds a token: other / line
    accepted_length: Estimate | None = None  # line / other
    quality: Estimate | None = None  # line / other: facts or answers, whichever is lower
