"""The loop of one worker: it takes works, decodes their clips ahead, and gives records.

A worker process and its parent exchange pickled messages over a socket pair. The parent sends a Setup, then a
Work or None for each WantsWork. The worker sends Ready, then records and events. An LvspecError is its last
message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lvspec_cli.batch.answer import Answering, OnOutOfMemory
from lvspec_cli.batch.work import Work
from lvspec_cli.errors import ChangedVideoError, LvspecError
from lvspec_cli.events import Event, Listener, Noted, Stage
from lvspec_cli.memory.resolve import workload_of
from lvspec_cli.output.records import Record
from lvspec_cli.pipeline import check_unchanged, load, timed_stage
from lvspec_cli.request import AskRequest, LoadPlan
from lvspec_cli.types import Mode, VideoRequest

if TYPE_CHECKING:
    from lvspec_cli.models.load import LoadedPair
    from lvspec_cli.video.pool import Decoded, DecodePool


@dataclass(frozen=True)
class WorkerPlan:
    """The configuration of one worker. ``base`` has the prompts and settings that all works share."""

    load_plan: LoadPlan
    base: AskRequest
    decode_workers: int
    decode_bytes: int  # of frames decoded ahead
    on_out_of_memory: OnOutOfMemory
    decode_threads: int | None = None  # of each decoding process; None divides the cores between them


@dataclass(frozen=True)
class Finished:
    """A work and its records. After an interruption some of them are missing."""

    work: Work
    records: Iterator[Record]


@contextmanager
def serving(
    plan: WorkerPlan, listen: Listener, interrupted: Callable[[], bool]
) -> Iterator[Callable[[Iterable[Work]], Generator[Finished, None, None]]]:
    """Loads the pair, and yields the function that turns works into records, in order.

    The records of one work must be consumed before those of the next one.

    :raises PairError: the pair cannot be loaded, or does not fit.
    :raises UsageError: a prompt contains a special token of the pair, or the pair lacks a requested layer.
    """
    from lvspec_cli.video.decode import read_clip
    from lvspec_cli.video.pool import DecodePool

    pair = load(plan.load_plan, workload_of(plan.base), listen)
    _check(pair, plan.base)
    answering = Answering(pair, plan.load_plan, read_clip, plan.on_out_of_memory, listen, interrupted)
    with DecodePool(plan.decode_workers, plan.decode_bytes, threads=plan.decode_threads) as pool:

        def serve(works: Iterable[Work]) -> Generator[Finished, None, None]:
            with closing(_decoded(pool, works, listen, interrupted)) as decoded:
                for work, outcome in decoded:
                    if interrupted():
                        return
                    try:
                        check_unchanged(work.request, work.identity)
                    except ChangedVideoError as changed:
                        listen(Noted(f"{changed.cause}; {changed.remedy}"))
                        yield Finished(work, iter(()))  # the next run does it, under another key
                        continue
                    if outcome.clip is not None:
                        yield Finished(work, answering.answer(work, outcome.clip))
                    elif outcome.error is not None:
                        yield Finished(work, answering.failed(work, outcome.error))

        yield serve


def _decoded(
    pool: DecodePool, works: Iterable[Work], listen: Listener, interrupted: Callable[[], bool]
) -> Generator[tuple[Work, Decoded], None, None]:
    ahead: deque[Work] = deque()

    def requests() -> Iterator[VideoRequest]:
        for work in works:
            ahead.append(work)
            yield work.request.video

    with closing(pool.clips(requests(), interrupted=interrupted)) as clips:
        while True:
            with timed_stage(Stage.DECODING, listen):  # what is left of it: clips are decoded ahead
                decoded = next(clips, None)
            if decoded is None:
                return
            yield ahead.popleft(), decoded


def _check(pair: LoadedPair, base: AskRequest) -> None:
    """Checks the prompts and the rule's layers, before any clip is answered."""
    from lvspec_cli.models.prompt import check_text
    from lvspec_cli.speculation.relevance import LAYERED, layers_of

    for text in (*base.questions, base.system or ""):
        check_text(pair.target.processor, text)
    rule, target = base.settings.rule, pair.target
    if base.settings.mode is Mode.LVSPEC and rule.relevance in LAYERED:
        count = len(target.family.layers(target.model))
        layers_of(rule, count, target.family.attention_layers(target.model.config))


@dataclass(frozen=True)
class Setup:
    plan: WorkerPlan
    number: int = 0  # of the worker, for its events


@dataclass(frozen=True)
class Ready:
    """The pair is loaded."""


@dataclass(frozen=True)
class WantsWork:
    """Answered with a Work, or None when there is none left."""


@dataclass(frozen=True)
class EventSent:
    event: Event


@dataclass(frozen=True)
class Row:
    record: Record


@dataclass(frozen=True)
class WorkDone:
    """All rows of the oldest work in progress have been sent."""


Message = Ready | WantsWork | EventSent | Row | WorkDone | LvspecError
