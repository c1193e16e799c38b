"""The loop of one worker: it takes works, decodes their clips ahead, and gives records.

A worker process and its parent exchange pickled messages over a socket pair. The parent sends a Setup, then a
Work or None for each WantsWork. The worker sends Loaded, then records and events. An LvspecError is its last
message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lvspec_cli.batch.answer import Answering, OnOutOfMemory
from lvspec_cli.batch.company import ONE_AT_A_TIME, company_with
from lvspec_cli.batch.slots import Done, Ready, Slots
from lvspec_cli.batch.work import Work
from lvspec_cli.errors import ChangedVideoError, LvspecError
from lvspec_cli.events import Event, Listener, Noted, Stage, timed_stage
from lvspec_cli.host import usable_cores
from lvspec_cli.memory.resolve import workload_of
from lvspec_cli.output.records import Record
from lvspec_cli.pipeline import check_unchanged, load
from lvspec_cli.request import ALONE, AskRequest, Company, LoadPlan
from lvspec_cli.types import Mode, VideoRequest

if TYPE_CHECKING:
    from lvspec_cli.memory.plan import Workload
    from lvspec_cli.models.load import LoadedPair
    from lvspec_cli.video.pool import DecodePool


@dataclass(frozen=True)
class WorkerPlan:
    """The configuration of one worker. ``base`` has the prompts and settings that all works share."""

    load_plan: LoadPlan
    base: AskRequest
    decode_workers: int
    decode_bytes: int  # of frames decoded ahead
    on_out_of_memory: OnOutOfMemory
    decode_threads: int | None = None  # of each decoding process; None: see ``threads_of_decoder``
    company: Company = ALONE

    def at_most(self, rows: int) -> WorkerPlan:
        """The plan for so few rows that some slots would never be used."""
        if rows >= self.company.slots:
            return self
        return replace(self, company=replace(self.company, slots=max(1, rows)))

    @property
    def workload(self) -> Workload:
        """The largest clip, and as many answers as are decoded together."""
        return replace(workload_of(self.base), slots=self.company.slots)


def decoders_of(device: str, cores: int, pairs: int = 1) -> int:
    """How many videos are decoded at a time for each of so many pairs, if the user does not say it.

    :param device: the kind that the pairs run on, cpu or cuda.
    """
    return max(1, min(4, cores if device == "cpu" else cores // 2) // pairs)


def threads_of_decoder(device: str) -> int | None:
    """How many threads decode a video; None divides the cores between those that are decoded at a time.

    Several do more work in all than one. On a CPU the pair needs the cores, too, and each of its passes waits
    for the slowest of them.
    """
    return 1 if device == "cpu" else None


def has_spare_core(device: str, threads: int, pairs: int, cores: int) -> bool:
    """Whether frames of the next clip can be processed while answers are decoded.

    On a CPU only if a core is left: a pass with a thread on each core waits for the slowest of them.

    :param device: the kind that the pair runs on, cpu or cuda.
    :param threads: of torch for each of ``pairs`` on this machine.
    """
    return device != "cpu" or threads * pairs < cores


@dataclass(frozen=True)
class Serving:
    """A loaded pair that turns works into records, which it gives as they are finished."""

    answering: Answering
    pool: DecodePool

    @property
    def looks_ahead(self) -> bool:
        """Whether the frames of the next work are processed while others are answered."""
        return self.answering.ahead is not None

    def __call__(self, works: Iterable[Work]) -> Generator[Done, None, None]:
        listen, interrupted = self.answering.listen, self.answering.interrupted
        with closing(_Decoding(self.pool, works, listen, interrupted)) as decoding:
            yield from Slots(self.answering, decoding.next_work).run()


@contextmanager
def serving(plan: WorkerPlan, listen: Listener, interrupted: Callable[[], bool]) -> Iterator[Serving]:
    """Loads the pair.

    :raises PairError: the pair cannot be loaded, or does not fit.
    :raises UsageError: a prompt contains a special token of the pair, or the pair lacks a requested layer.
    """
    pair = load(plan.load_plan, plan.workload, listen)
    _check(pair, plan.base)
    with serving_with(pair, plan, listen, interrupted) as serve:
        yield serve


@contextmanager
def serving_with(
    pair: LoadedPair, plan: WorkerPlan, listen: Listener, interrupted: Callable[[], bool]
) -> Iterator[Serving]:
    """``serving`` with a loaded pair."""
    from lvspec_cli.models.threads import shared_cores
    from lvspec_cli.speculation.engine import SharedMemory
    from lvspec_cli.video.decode import read_clip
    from lvspec_cli.video.pool import DecodePool

    company = company_with(plan.company, pair, plan.base.settings.mode)
    if company.slots < plan.company.slots:
        listen(Noted(ONE_AT_A_TIME))
    shared = SharedMemory(company.slots) if company.slots > 1 else None
    threads = plan.decode_threads or threads_of_decoder(pair.target.device.type)
    pairs = plan.load_plan.choice.side_by_side
    with (
        DecodePool(plan.decode_workers, plan.decode_bytes, threads=threads) as pool,
        _processing(pair, pairs) as ahead,
    ):
        yield Serving(
            Answering(
                pair,
                plan.load_plan,
                read_clip,
                plan.on_out_of_memory,
                listen,
                interrupted,
                company,
                shared,
                ahead,
                shared_cores(pair, max(1, usable_cores() // pairs), lambda: pool.cores_taken),
            ),
            pool,
        )


@contextmanager
def _processing(pair: LoadedPair, pairs: int) -> Iterator[Executor | None]:
    """A thread that processes frames ahead, or None where that would take from what is decoded.

    A thread, not a process, because processed frames are four times as large as frames, and because torch
    lets other threads run while it computes. It computes on one core, as do threads that begin after it.
    """
    import torch

    if not has_spare_core(pair.target.device.type, torch.get_num_threads(), pairs, usable_cores()):
        yield None
        return

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # or the number would be taken anew with the first product

    executor = ThreadPoolExecutor(1, "processing", begin)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


class _Decoding:
    """Works in order, each with its video decoded ahead."""

    def __init__(
        self, pool: DecodePool, works: Iterable[Work], listen: Listener, interrupted: Callable[[], bool]
    ) -> None:
        self._works, self._listen, self._waits = works, listen, True
        self._ahead: deque[Work] = deque()
        self._clips = pool.clips(self._requests(), interrupted=interrupted, waits=lambda: self._waits)

    def _requests(self) -> Iterator[VideoRequest]:
        for work in self._works:
            self._ahead.append(work)
            yield work.request.video

    def next_work(self, waits: bool) -> Ready | None:
        """The next work, if there is one, and if it is decoded or ``waits``."""
        self._waits = waits
        if waits:
            with timed_stage(Stage.DECODING, self._listen):  # what is left of it: clips are decoded ahead
                decoded = next(self._clips, None)
        else:
            decoded = next(self._clips, None)
        if decoded is None or decoded.is_missing:
            return None
        work = self._ahead.popleft()
        try:
            check_unchanged(work.request, work.identity)
        except ChangedVideoError as changed:
            self._listen(Noted(f"{changed.cause}; {changed.remedy}"))
            return Ready(work)  # the next run does it, under another key
        return Ready(work, decoded.clip, decoded.error)

    def close(self) -> None:
        self._clips.close()


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
class Loaded:
    """The pair is loaded. ``looks_ahead``: see ``Serving``."""

    looks_ahead: bool = False


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
    """All rows of a work have been sent. ``number``: the works that were sent before it to this worker."""

    number: int


Message = Loaded | WantsWork | EventSent | Row | WorkDone | LvspecError
