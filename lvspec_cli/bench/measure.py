"""All modes on every clip, in turns, in one process; or their texts alone."""

from __future__ import annotations

import gc
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Protocol

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import Journal
from lvspec_cli.bench.own import Texts, measure_own, profile_own
from lvspec_cli.bench.peers import measure_peer
from lvspec_cli.bench.variants import settings_of
from lvspec_cli.errors import LvspecError, NoInputError
from lvspec_cli.figures.answers import Block, Item, Measurement, Profile, Variant
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.types import Clip, DecodeSettings, RuleSettings, VideoRequest
from lvspec_cli.video.pool import reading

WARM_TOKENS = 32  # an answer's length while warming up

Progress = Callable[[int, int], None]
Read = Callable[[VideoRequest], Clip]


@dataclass(frozen=True)
class Plan:
    """What is run on every item.

    ``rules``: of variants with a label, by that. ``timed``: if not, texts alone are wanted: of every clip the
    video is encoded once for all of our own modes, nothing is warmed up, and all seconds are 0.
    ``scored``: the target itself scores every text.
    ``examples``: of so many items the texts are kept by tokens; ``profiles``: so many are run once more with
    a clock around every pass.
    ``first``: of variants that are run on so many clips only, the first ones.
    """

    variants: tuple[Variant, ...]
    settings: DecodeSettings
    draft_keep: float
    repeat: int = 1
    system: str | None = None
    examples: int = 12
    profiles: int = 8
    rules: Mapping[str, RuleSettings] = field(default_factory=dict)
    timed: bool = True
    scored: bool = True
    first: Mapping[Variant, int] = field(default_factory=dict)

    def at(self, clip: int) -> Plan:
        """What is run on a clip, by its number from 0."""
        left = tuple(each for each in self.variants if clip < self.first.get(each, clip + 1))
        return self if left == self.variants else replace(self, variants=left)

    def settings_of(self, variant: Variant) -> DecodeSettings:
        """How one of our own variants decodes."""
        return settings_of(variant, self.settings, self.draft_keep, self.rules)


def turn(variants: Sequence[Variant], number: int) -> tuple[Variant, ...]:
    """The order of modes in block ``number``: each is first, second, ... equally often."""
    shift = number % len(variants)
    return (*variants[shift:], *variants[:shift])


class Keeper(Protocol):
    """Takes what is found; ``blocks``: the item and the repeat of each that it holds."""

    @property
    def blocks(self) -> Container[tuple[str, int]]: ...
    def add_item(self, item: Item) -> None: ...
    def add_block(self, block: Block) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where a clip stands among all: its number, and that of its first item, from 0."""

    clip: int
    item: int


def places(clips: Sequence[BenchClip]) -> list[Place]:
    """One a clip."""
    starts = accumulate((len(clip.items) for clip in clips), initial=0)
    return [Place(number, item) for number, (_, item) in enumerate(zip(clips, starts, strict=False))]


def measure(
    pair: LoadedPair,
    clips: Sequence[BenchClip],
    plan: Plan,
    journal: Journal,
    *,
    progress: Progress = lambda done, total: None,
    warn: Callable[[str], None] = lambda message: None,
) -> None:
    """Measures what the journal does not hold yet, clip by clip; every finished block is kept at once.

    A clip that cannot be read is noted with its item. A peer that fails while warming up is not tried again.

    :param progress: called with the blocks done and all of them.
    :raises NoInputError: no clip can be read.
    """
    total, done = sum(len(clip.items) for clip in clips) * plan.repeat, 0
    progress(0, total)
    with reading() as read:
        run = Run(pair, plan, journal, read, warn)
        for clip, place in zip(clips, places(clips), strict=True):
            for _ in run.blocks(clip, place):
                done += 1
                progress(done, total)
    check_measured(journal)


def check_measured(journal: Journal) -> None:
    """NoInputError where nothing could be measured."""
    if not journal.blocks:
        why = next((item.error for item in journal.items.values() if item.error), "nothing was asked")
        raise NoInputError(f"nothing could be measured: {why}", "name videos that can be read")


class Run:
    """What stays the same from clip to clip. ``read``: decodes a video."""

    def __init__(
        self, pair: LoadedPair, plan: Plan, keeper: Keeper, read: Read, warn: Callable[[str], None]
    ) -> None:
        self._pair, self._whole, self._journal, self._read, self._warn = pair, plan, keeper, read, warn
        self._plan = plan  # of the clip at hand
        self._failed: dict[Variant, Measurement] | None = None  # None before warming up

    def blocks(self, clip: BenchClip, place: Place) -> Iterator[None]:
        """Yields once for every block, also where it is done or cannot be."""
        self._plan, first = self._whole.at(place.clip), place.item
        asked = [(item, repeat) for repeat in range(self._plan.repeat) for item in clip.items]
        left = [each for each in asked if (each[0].id, each[1]) not in self._journal.blocks]
        yield from [None] * (len(asked) - len(left))
        if not left:
            return
        try:
            frames = self._read(clip.video)
        except LvspecError as error:
            self._warn(f"{clip.items[0].file_name}: {error.cause}")
            for item in clip.items:
                self._journal.add_item(item.model_copy(update={"error": error.cause}))
            yield from [None] * len(left)
            return
        if self._failed is None:
            self._failed = self._warm_up(frames, clip.items[0]) if self._plan.timed else {}
        texts = Texts(self._pair, frames, system=self._plan.system)
        for item, repeat in left:
            number = first + clip.items.index(item)
            if self._plan.timed:
                block = self._block(frames, item, repeat, number)
            else:
                block = self._untimed(texts, frames, item, repeat)
            if repeat == 0:
                visual = texts.prompts(item).target.visual_tokens
                seen = {"frames": len(frames.timestamps), "visual_tokens": visual}
                self._journal.add_item(item.model_copy(update=seen))
                block = _scored(texts, item, block) if self._plan.scored else block
            self._journal.add_block(_slim(block, with_pieces=number < self._plan.examples))
            yield

    def _warm_up(self, frames: Clip, item: Item) -> dict[Variant, Measurement]:
        """Runs every mode once for nothing; gives the peers that failed."""
        plan = self._plan
        few = min(WARM_TOKENS, plan.settings.max_new_tokens)
        short = replace(plan, settings=replace(plan.settings, max_new_tokens=few))
        found = {variant: self._one(frames, item, variant, short) for variant in self._whole.variants}
        failed = {variant: each for variant, each in found.items() if each.error is not None}
        for variant, each in failed.items():
            self._warn(f"{variant} cannot run: {each.error}")
        return failed

    def _block(self, frames: Clip, item: Item, repeat: int, number: int) -> Block:
        plan, failed = self._plan, self._failed or {}
        gc.collect()  # what other blocks left is nobody's time here
        found: dict[Variant, Measurement] = dict(failed)
        for place, variant in enumerate(turn(plan.variants, number + repeat)):
            if variant not in failed:
                measured = self._one(frames, item, variant, plan)
                found[variant] = measured.model_copy(update={"place": place})
        return Block(
            item=item.id,
            repeat=repeat,
            measurements=tuple(found[variant] for variant in plan.variants),
            profiles=self._profiles(frames, item) if repeat == 0 and number < plan.profiles else (),
        )

    def _untimed(self, texts: Texts, frames: Clip, item: Item, repeat: int) -> Block:
        plan = self._plan
        measurements = (
            _without_times(self._one(frames, item, variant, plan))
            if variant.mode.is_peer
            else texts.answer(item, variant, plan.settings_of(variant))
            for variant in plan.variants
        )
        return Block(item=item.id, repeat=repeat, measurements=tuple(measurements))

    def _one(self, frames: Clip, item: Item, variant: Variant, plan: Plan) -> Measurement:
        if variant.mode.is_peer:
            limit = plan.settings.max_new_tokens
            return measure_peer(self._pair, frames, item, variant, limit, system=plan.system)
        return measure_own(self._pair, frames, item, variant, plan.settings_of(variant), system=plan.system)

    def _profiles(self, frames: Clip, item: Item) -> tuple[Profile, ...]:
        plan = self._plan
        return tuple(
            profile_own(
                self._pair,
                frames,
                item,
                variant,
                plan.settings_of(variant),
                system=plan.system,
            )
            for variant in plan.variants
            if not (variant.mode.is_peer or variant.mode.is_plain)
        )


def _scored(texts: Texts, item: Item, block: Block) -> Block:
    """The same with the target's own score of every text."""
    scores = texts.scores(item, [each.tokens or () for each in block.measurements])
    measurements = tuple(
        each.model_copy(update={"log_probability": score.mean}) if score else each
        for each, score in zip(block.measurements, scores, strict=True)
    )
    return block.model_copy(update={"measurements": measurements})


def _without_times(measured: Measurement) -> Measurement:
    return measured.model_copy(update=dict.fromkeys(("video_s", "prompt_s", "prefill_s", "decode_s"), 0.0))


def _slim(block: Block, *, with_pieces: bool) -> Block:
    """Without what the report does not need of this block: the file grows with every one."""
    dropped: dict[str, None] = {}
    if block.repeat > 0 or not with_pieces:
        dropped |= {"pieces": None, "kinds": None}
    if block.repeat > 0:
        dropped |= {"tokens": None}
    measurements = tuple(each.model_copy(update=dropped) for each in block.measurements)
    return block.model_copy(update={"measurements": measurements})
