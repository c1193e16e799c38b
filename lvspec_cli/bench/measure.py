"""Measures all modes on every clip in one process, in rotating order; or computes their texts only."""

from __future__ import annotations

import gc
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Protocol

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import Journal
from lvspec_cli.bench.own import TextRunner, measure_own, profile_own
from lvspec_cli.bench.peers import measure_peer
from lvspec_cli.bench.variants import settings_of
from lvspec_cli.errors import LvspecError, NoInputError
from lvspec_cli.figures.answers import Block, Item, Measurement, Profile, Variant
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.types import Clip, DecodeSettings, DraftView, RuleSettings, VideoRequest
from lvspec_cli.video.pool import reading

WARM_TOKENS = 32  # an answer's length while warming up

Progress = Callable[[int, int], None]
Read = Callable[[VideoRequest], Clip]


@dataclass(frozen=True)
class Plan:
    """What to run on every item.

    :param examples: the number of items whose texts are stored token by token.
    :param profiles: the number of items that are run once more with every pass timed.
    :param rules: by label, for variants that have one. ``views``: likewise what the draft is shown of a clip.
    :param timed: if False, only texts are computed: a clip's video is encoded once for all of our own modes,
        there is no warm-up, and all seconds are 0.
    :param scored: the target scores every text.
    :param first: variants that are run only on the first clips, with the number of these clips.
    """

    variants: tuple[Variant, ...]
    settings: DecodeSettings
    draft_keep: float
    repeat: int = 1
    system: str | None = None
    examples: int = 12
    profiles: int = 8
    rules: Mapping[str, RuleSettings] = field(default_factory=dict)
    views: Mapping[str, DraftView] = field(default_factory=dict)
    timed: bool = True
    scored: bool = True
    first: Mapping[Variant, int] = field(default_factory=dict)

    def for_clip(self, clip: int) -> Plan:
        """The plan for one clip, by its number from 0."""
        variants = tuple(variant for variant in self.variants if clip < self.first.get(variant, clip + 1))
        return self if variants == self.variants else replace(self, variants=variants)

    def settings_of(self, variant: Variant) -> DecodeSettings:
        """How one of our own variants decodes."""
        return settings_of(variant, self.settings, self.draft_keep, self.rules, self.views)


def rotated(variants: Sequence[Variant], number: int) -> tuple[Variant, ...]:
    """The order of modes in block ``number``: over the blocks every mode has every position equally often."""
    shift = number % len(variants)
    return (*variants[shift:], *variants[:shift])


class MeasurementSink(Protocol):
    """Receives measurements; ``blocks`` holds (item, repeat) of those that are finished."""

    @property
    def blocks(self) -> Container[tuple[str, int]]: ...
    def add_item(self, item: Item) -> None: ...
    def add_block(self, block: Block) -> None: ...


@dataclass(frozen=True)
class ClipPosition:
    """A clip's index among all clips, and its first item's index among all items."""

    clip: int
    item: int


def clip_positions(clips: Sequence[BenchClip]) -> list[ClipPosition]:
    """The position of every clip."""
    starts = accumulate((len(clip.items) for clip in clips), initial=0)
    return [ClipPosition(index, item) for index, (_, item) in enumerate(zip(clips, starts, strict=False))]


def measure(
    pair: LoadedPair,
    clips: Sequence[BenchClip],
    plan: Plan,
    journal: Journal,
    *,
    progress: Progress = lambda done, total: None,
    warn: Callable[[str], None] = lambda message: None,
) -> None:
    """Measures what is missing in the journal, clip by clip; every finished block is stored immediately.

    If a clip cannot be read, its items are stored with the error. A peer that fails during the warm-up is not
    run again.

    :param progress: called with the number of finished blocks and of all blocks.
    :raises NoInputError: no clip can be read.
    """
    total, done = sum(len(clip.items) for clip in clips) * plan.repeat, 0
    progress(0, total)
    with reading() as read:
        run = ClipRunner(pair, plan, journal, read, warn)
        for clip, position in zip(clips, clip_positions(clips), strict=True):
            for _ in run.blocks(clip, position):
                done += 1
                progress(done, total)
    check_measured(journal)


def check_measured(journal: Journal) -> None:
    """Checks that something was measured.

    :raises NoInputError: nothing was.
    """
    if not journal.blocks:
        why = next((item.error for item in journal.items.values() if item.error), "nothing was asked")
        raise NoInputError(f"nothing could be measured: {why}", "name videos that can be read")


class ClipRunner:
    """Runs a plan clip by clip. ``read`` decodes a video."""

    def __init__(
        self, pair: LoadedPair, plan: Plan, sink: MeasurementSink, read: Read, warn: Callable[[str], None]
    ) -> None:
        self._pair, self._full_plan, self._sink, self._read, self._warn = pair, plan, sink, read, warn
        self._plan = plan  # for the current clip
        self._failed: dict[Variant, Measurement] | None = None  # None before warming up

    def blocks(self, clip: BenchClip, position: ClipPosition) -> Iterator[None]:
        """Yields once for every block of a clip, also if it was finished before or cannot be run."""
        self._plan, first = self._full_plan.for_clip(position.clip), position.item
        wanted = [(item, repeat) for repeat in range(self._plan.repeat) for item in clip.items]
        pending = [key for key in wanted if (key[0].id, key[1]) not in self._sink.blocks]
        yield from [None] * (len(wanted) - len(pending))
        if not pending:
            return
        try:
            frames = self._read(clip.video)
        except LvspecError as error:
            self._warn(f"{clip.items[0].file_name}: {error.cause}")
            for item in clip.items:
                self._sink.add_item(item.model_copy(update={"error": error.cause}))
            yield from [None] * len(pending)
            return
        if self._failed is None:
            self._failed = self._warm_up(frames, clip.items[0]) if self._plan.timed else {}
        texts = TextRunner(self._pair, frames, system=self._plan.system)
        for item, repeat in pending:
            number = first + clip.items.index(item)
            if self._plan.timed:
                block = self._timed_block(frames, item, repeat, number)
            else:
                block = self._untimed_block(texts, frames, item, repeat)
            if repeat == 0:
                visual = texts.prompts(item).target.visual_tokens
                facts = {"frames": len(frames.timestamps), "visual_tokens": visual}
                self._sink.add_item(item.model_copy(update=facts))
                block = _with_scores(texts, item, block) if self._plan.scored else block
            self._sink.add_block(_without_details(block, with_pieces=number < self._plan.examples))
            yield

    def _warm_up(self, frames: Clip, item: Item) -> dict[Variant, Measurement]:
        """Runs every mode once without storing it; returns the peers that failed."""
        plan = self._plan
        limit = min(WARM_TOKENS, plan.settings.max_new_tokens)
        short = replace(plan, settings=replace(plan.settings, max_new_tokens=limit))
        measured = [self._measure_one(frames, item, variant, short) for variant in self._full_plan.variants]
        failed = {
            measurement.variant: measurement for measurement in measured if measurement.error is not None
        }
        for variant, measurement in failed.items():
            self._warn(f"{variant} cannot run: {measurement.error}")
        return failed

    def _timed_block(self, frames: Clip, item: Item, repeat: int, number: int) -> Block:
        plan, failed = self._plan, self._failed or {}
        gc.collect()  # so that no mode is charged for the garbage of other blocks
        measurements: dict[Variant, Measurement] = dict(failed)
        for position, variant in enumerate(rotated(plan.variants, number + repeat)):
            if variant not in failed:
                measured = self._measure_one(frames, item, variant, plan)
                measurements[variant] = measured.model_copy(update={"place": position})
        return Block(
            item=item.id,
            repeat=repeat,
            measurements=tuple(measurements[variant] for variant in plan.variants),
            profiles=self._profiles(frames, item) if repeat == 0 and number < plan.profiles else (),
        )

    def _untimed_block(self, texts: TextRunner, frames: Clip, item: Item, repeat: int) -> Block:
        plan = self._plan
        no_times = dict.fromkeys(("video_s", "prompt_s", "prefill_s", "decode_s"), 0.0)
        measurements = (
            self._measure_one(frames, item, variant, plan).model_copy(update=no_times)
            if variant.mode.is_peer
            else texts.answer(item, variant, plan.settings_of(variant))
            for variant in plan.variants
        )
        return Block(item=item.id, repeat=repeat, measurements=tuple(measurements))

    def _measure_one(self, frames: Clip, item: Item, variant: Variant, plan: Plan) -> Measurement:
        if variant.mode.is_peer:
            limit = plan.settings.max_new_tokens
            return measure_peer(self._pair, frames, item, variant, limit, system=plan.system)
        return measure_own(self._pair, frames, item, variant, plan.settings_of(variant), system=plan.system)

    def _profiles(self, frames: Clip, item: Item) -> tuple[Profile, ...]:
        plan = self._plan
        return tuple(
            profile_own(self._pair, frames, item, variant, plan.settings_of(variant), system=plan.system)
            for variant in plan.variants
            if variant.mode.drafts and not variant.mode.is_peer
        )


def _with_scores(texts: TextRunner, item: Item, block: Block) -> Block:
    """The block with the target's score of every text."""
    scores = texts.scores(item, [measurement.tokens or () for measurement in block.measurements])
    measurements = tuple(
        measurement.model_copy(update={"log_probability": score.mean}) if score else measurement
        for measurement, score in zip(block.measurements, scores, strict=True)
    )
    return block.model_copy(update={"measurements": measurements})


def _without_details(block: Block, *, with_pieces: bool) -> Block:
    """The block without details that the report does not need: they would make the file large."""
    dropped: dict[str, None] = {}
    if block.repeat > 0 or not with_pieces:
        dropped |= {"pieces": None, "kinds": None}
    if block.repeat > 0:
        dropped |= {"tokens": None}
    measurements = tuple(measurement.model_copy(update=dropped) for measurement in block.measurements)
    return block.model_copy(update={"measurements": measurements})
