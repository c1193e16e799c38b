"""One answer as it was measured, and the figures that are made of many: frozen pydantic models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import exp
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from lvspec_cli.types import Gamma, RelevanceName, TaskName, TokenKind


class BenchMode(StrEnum):
    """What the bench can run: our own modes, and two peers of transformers on the same weights."""

    AR = "ar"
    EXACT = "exact"
    EXACT_PRUNED = "exact-pruned"  # the draft sees a share of the video's tokens
    LVSPEC = "lvspec"
    LVSPEC_PRUNED = "lvspec-pruned"
    HF_AR = "hf-ar"  # generate()
    HF_ASSISTED = "hf-assisted"  # generate(assistant_model=...)

    @property
    def is_peer(self) -> bool:
        return self in (BenchMode.HF_AR, BenchMode.HF_ASSISTED)

    @property
    def is_plain(self) -> bool:
        """Whether it goes token by token, without a draft."""
        return self in (BenchMode.AR, BenchMode.HF_AR)

    @property
    def is_loose(self) -> bool:
        return self in (BenchMode.LVSPEC, BenchMode.LVSPEC_PRUNED)

    @property
    def is_pruned(self) -> bool:
        return self in (BenchMode.EXACT_PRUNED, BenchMode.LVSPEC_PRUNED)


class Part(BaseModel):
    """What all parts of a file of results have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Spread(Part):
    """A median over clips with a bootstrap interval; without one where a single clip was measured."""

    median: float
    low: float | None
    high: float | None


class Estimate(Part):
    """A figure with a bootstrap interval over clips; without one where a single clip was measured."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Variant:
    """One line of the report: a mode with what it is run with.

    ``relevance``: another scheme than the pair's own, in the loose modes. ``gamma``: none in the plain
    modes; in ``hf-assisted`` none is what transformers itself takes. ``label``: a setting of the rule that
    has a name of its own (``bench.rules``).
    """

    mode: BenchMode
    gamma: Gamma | None = None
    relevance: RelevanceName | None = None
    label: str | None = None

    @property
    def name(self) -> str:
        """The mode as ``--modes`` takes it, or with its rule's name: ``lvspec/no-shift``."""
        named = f"{self.mode}/{self.label}" if self.label else str(self.mode)
        return f"{named}:{self.relevance}" if self.relevance else named

    def __str__(self) -> str:
        return self.name if self.gamma is None else f"{self.name} γ={self.gamma}"


class Item(Part):
    """One question about one clip, or its caption, and what is known of the right answer."""

    id: str  # unique within the run
    file_name: str
    prompt: str
    task: TaskName = "caption"
    kind: str | None = None  # of question, in the demo world
    reference: str | None = None  # a right answer
    choices: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()  # demo world: an answer is right that holds one of these ...
    none_of: tuple[str, ...] = ()  # ... and none of these
    scene: dict[str, Any] | None = None  # demo world: what the clip shows (demo.scenes.Scene.as_dict)
    frames: int | None = None  # taken from the video
    visual_tokens: int | None = None
    error: str | None = None  # why nothing could be measured


class OfVariant(Part):
    """What is known of one line of the report."""

    mode: BenchMode
    gamma: Gamma | None = None
    relevance: RelevanceName | None = None
    label: str | None = None

    @property
    def variant(self) -> Variant:
        return Variant(self.mode, self.gamma, self.relevance, self.label)


class TimedText(Protocol):
    """What an answer brings to the figures: its text, counts and seconds, as ``Measurement`` has them."""

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
    def tokens(self) -> Sequence[int] | None: ...


class Measurement(OfVariant):
    """One answer of one mode, timed. With ``error`` it could not run, and all the rest is empty.

    Where only texts were wanted, all seconds are 0.
    """

    place: int = 0  # when in its block it ran, from 0
    error: str | None = None
    text: str | None = None
    finish_reason: str | None = None
    output_tokens: int = 0  # with the end token
    first_tokens: int = 1  # of these, how many the prefill gave; decoding is the rest
    rounds: int | None = None  # after the prefill; null where there are none (plain decoding of a peer)
    drafted: int | None = None
    accepted_exact: int = 0
    accepted_filler: int = 0
    accepted_shift: int = 0
    accepted_lengths: tuple[int, ...] = ()  # one a round
    video_s: float = 0.0  # decoding of the frames: once a clip, the same for every mode
    prompt_s: float = 0.0  # the processors: pixels and token ids
    prefill_s: float = 0.0
    decode_s: float = 0.0  # of all tokens but the first ones
    tokens: tuple[int, ...] | None = None  # in the first repeat
    kinds: tuple[TokenKind, ...] | None = None  # one a token, for examples
    pieces: tuple[tuple[str, TokenKind], ...] | None = None  # the text by tokens, for examples
    log_probability: float | None = None  # nats a token: how the target itself scores the text

    @property
    def seconds_per_token(self) -> float | None:
        """Of decoding; None where the prefill gave all there is."""
        decoded = self.output_tokens - self.first_tokens
        return self.decode_s / decoded if decoded > 0 and self.error is None else None

    @property
    def end_to_end_s(self) -> float:
        return self.video_s + self.prompt_s + self.prefill_s + self.decode_s


class Profile(OfVariant):
    """One more answer with a clock around every pass. Counts and seconds over its rounds, without prefill."""

    rounds: int
    draft_steps: int
    draft_s: float
    verification_s: float  # of the target's passes
    overhead_s: float  # all else: the rule, relevance, choosing tokens, keeping count


class Block(Part):
    """One item, one repeat: every mode once. Ratios of times are taken within a block only."""

    item: str  # id
    repeat: int  # from 0
    measurements: tuple[Measurement, ...]  # in the order of ``modes``, not in that of time
    profiles: tuple[Profile, ...] = ()  # in some blocks, of the modes that have a draft

    def of(self, variant: Variant) -> Measurement | None:
        return next((each for each in self.measurements if each.variant == variant), None)


class Costs(Part):
    """Seconds of the parts of a round: medians over the profiles of a mode."""

    answers: int  # how many were looked at
    draft_step_s: float
    verification_s: float
    overhead_s: float  # of a round
    drafted_a_round: float
    ar_step_s: float  # of the reference, without a clock, in the same blocks


class Kinds(Part):
    """Output tokens by why they stand there."""

    exact: int = 0
    filler: int = 0
    shift: int = 0
    target: int = 0


class Kept(Part):
    """A quality figure from 0 to 1 of a mode beside that of ``ar``, and their ratio."""

    mode: float
    ar: float
    count: int  # facts that there were to find, or questions asked
    retention: Estimate | None  # mode / ar; null where ar got nothing right


def least_kept(*kept: Kept | None) -> Estimate | None:
    """The retention whose lower end is lowest; None where there is none."""
    found = [each.retention for each in kept if each and each.retention]
    return min(found, key=lambda each: (lower_end(each), each.value), default=None)


RULE_OF_THREE = 3.0  # Hanley and Lippman-Hand 1983: of n alike, a share of 3 / n may be unlike, 95 % say


def surely_kept(kept: Kept) -> float | None:
    """The lower end of its retention, and never more than so many facts or questions can show.

    Where next to nothing changed the clips have nothing to vary by: their interval has no width, and is no
    evidence.
    """
    if kept.retention is None:
        return None
    return min(lower_end(kept.retention), 1 - RULE_OF_THREE / max(kept.count, 1))


def lower_end(estimate: Estimate) -> float:
    """The lower end of its interval; the value itself where one clip was measured."""
    return estimate.value if estimate.low is None else estimate.low


class Fidelity(Part):
    """What a mode keeps of ``ar``, over its first answer to each item; intervals are over clips, paired.

    Log probabilities are the target's own, in nats a token, each text counting alike.
    """

    answers: int
    clips: int
    facts: Kept | None = None  # F1 of captions of the demo world
    facts_by_kind: dict[str, Kept] = {}
    questions: Kept | None = None  # accuracy where the right answer is known
    questions_by_kind: dict[str, Kept] = {}
    log_probability: Estimate | None = None
    ar_log_probability: Estimate | None = None
    log_probability_change: Estimate | None = None  # mode - ar
    chrf: Estimate | None = None  # 0 to 100, to ar's text
    rouge_l: Estimate | None = None  # 0 to 100, to ar's text
    identical: Estimate | None = None  # share of texts
    same_answers: Estimate | None = None  # share of short and multiple-choice answers
    short_answers: int = 0  # how many of those there are
    repetition: float = 0.0  # share of 4-grams of tokens said before
    ar_repetition: float = 0.0
    length: float = 0.0  # tokens an answer
    ar_length: float = 0.0

    @property
    def likelihood(self) -> Estimate | None:
        """How probable the target itself finds a token of the mode's texts, as a share of one of ar's.

        Geometric means. It can lie above 1: a greedy text is not the likeliest.
        """
        change = self.log_probability_change
        if change is None:
            return None
        low, high = (None if end is None else exp(end) for end in (change.low, change.high))
        return Estimate(value=exp(change.value), low=low, high=high)

    @property
    def retention(self) -> Estimate | None:
        """Of facts and questions, the one whose lower end is lower. None without labels."""
        return least_kept(self.facts, self.questions)


class ModeResult(OfVariant):
    """One mode and gamma over all clips. ``speedup_vs_ar`` is against ``Results.reference``."""

    error: str | None = None  # why it could not run, in its own words
    failed: int = 0  # answers that ended in an error
    answers: int = 0  # measured ones
    speedup_vs_ar: Spread | None = None  # decoding only
    end_to_end_speedup_vs_ar: Spread | None = None  # video, prefill and an answer of ar's length
    mean_accepted_length: float | None = None
    mean_accepted_length_interval: Estimate | None = None
    acceptance_rate: float | None = None
    retention: Estimate | None = None  # quality / that of ar
    tokens_per_s: float | None = None  # of decoding: the median over clips
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
    accepted_lengths: dict[int, int] = {}  # how many rounds were of each length
    fidelity: Fidelity | None = None
    settings: dict[str, Any] = {}


class Contrast(Part):
    """One line of the report against another, over the same answers; intervals are over clips, paired.

    Above 1 the first is the better one.
    """

    line: str
    other: str
    speed: Spread | None = None  # seconds a token of the other / of the first
    accepted_length: Estimate | None = None  # of the first / of the other
    quality: Estimate | None = None  # facts or answers, whichever compares worse: first / other
