"""Texts that are not timed, by several processes over one list of clips, with one journal."""

from __future__ import annotations

import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import Journal
from lvspec_cli.bench.measure import Place, Plan, Progress, check_measured, measure, places
from lvspec_cli.errors import LvspecError, PairError
from lvspec_cli.figures.answers import Block, Item
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.request import AskRequest
from lvspec_cli.system import connect_child, how_ended, start_child


@dataclass(frozen=True)
class Task:
    """A clip, and what is run on it; ``done``: the item and the repeat of blocks that are there."""

    plan: Plan
    clip: BenchClip
    place: Place
    done: frozenset[tuple[str, int]]

    @property
    def size(self) -> int:
        """Blocks that are left."""
        return len(self.clip.items) * self.plan.repeat - len(self.done)


@dataclass(frozen=True)
class Warned:
    text: str


@dataclass(frozen=True)
class TaskDone:
    """It wants another."""


Message = Item | Block | Warned | TaskDone | LvspecError


class Measure(Protocol):
    """``bench.measure.measure`` with a pair that is loaded."""

    def __call__(
        self,
        clips: Sequence[BenchClip],
        plan: Plan,
        journal: Journal,
        *,
        progress: Progress = ...,
        warn: Callable[[str], None] = ...,
    ) -> None: ...


@contextmanager
def measuring(pair: LoadedPair, request: AskRequest, processes: int) -> Iterator[Measure]:
    """Gives what measures: this process, or so many others that load the pair themselves, a thread each.

    The journal is this process's, a finished block is in it at once, and which process made it does not
    matter: a run may go on with another number of them.
    """
    if processes < 2:
        yield partial(measure, pair)
        return
    crew = _Crew(request, processes)
    try:
        yield crew.measure
    finally:
        crew.close()


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    task: Task | None = None
    is_free: bool = False  # it has loaded the pair, and nothing to do

    def give(self, task: Task) -> None:
        self.task, self.is_free = task, False
        with suppress(OSError):  # hearing will say why it is gone
            self.connection.send(task)


class _Crew:
    """Processes that are started where there is something to do, and live until all is measured."""

    def __init__(self, request: AskRequest, count: int) -> None:
        self._request, self._count = request, count
        self._workers: list[_Worker] = []

    def start(self) -> None:
        ours, theirs = connect_child()
        with theirs:
            self._workers.append(_Worker(start_child("lvspec_cli.bench.worker", theirs), ours))
        with suppress(OSError):  # hearing will say why it is gone
            ours.send(self._request)

    def measure(
        self,
        clips: Sequence[BenchClip],
        plan: Plan,
        journal: Journal,
        *,
        progress: Progress = lambda done, total: None,
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        tasks = deque(_tasks(clips, plan, journal))
        total = sum(len(clip.items) for clip in clips) * plan.repeat
        done = total - sum(task.size for task in tasks)
        progress(done, total)
        while len(self._workers) < min(self._count, len(tasks)):
            self.start()
        while tasks or not all(worker.task is None for worker in self._workers):
            for worker in self._workers:
                if tasks and worker.is_free:
                    worker.give(tasks.popleft())
            for worker, message in self._heard():
                match message:
                    case Item():
                        journal.add_item(message)
                    case Block():
                        journal.add_block(message)
                    case Warned(text):
                        warn(text)
                    case TaskDone():
                        done += worker.task.size if worker.task else 0  # the first says that it is ready
                        worker.task, worker.is_free = None, True
                        progress(done, total)
        check_measured(journal)

    def _heard(self) -> Iterator[tuple[_Worker, Message]]:
        """A message of each that has one; raises the error that one sends, or that says how it ended."""
        by_connection: dict[Any, _Worker] = {each.connection: each for each in self._workers}
        for connection in wait(list(by_connection)):
            worker = by_connection[connection]
            try:
                message: Message = worker.connection.recv()
            except (EOFError, OSError):
                raise _ended(worker.process.wait()) from None
            if isinstance(message, LvspecError):
                raise message
            yield worker, message

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()
            worker.connection.close()


def _tasks(clips: Sequence[BenchClip], plan: Plan, journal: Journal) -> Iterator[Task]:
    """One for each clip of which something is left."""
    for clip, place in zip(clips, places(clips), strict=True):
        asked = {(item.id, repeat) for item in clip.items for repeat in range(plan.repeat)}
        done = frozenset(asked & journal.blocks.keys())
        if done != asked:
            yield Task(plan, clip, place, done)


def _ended(code: int) -> PairError:
    return PairError(
        f"a process that measured ended by itself ({how_ended(code)})",
        "take fewer --processes; what is measured is kept",
    )
