"""Texts that are not timed, by several processes over one list of clips, with one journal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import Journal
from lvspec_cli.bench.measure import Place, Plan, Progress, check_measured, measure, places
from lvspec_cli.errors import LvspecError, PairError
from lvspec_cli.figures.answers import Block, Item
from lvspec_cli.memory.plan import Workload
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.request import LoadPlan
from lvspec_cli.workers import Crew, Worker, start_worker


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
def measuring(pair: LoadedPair, load_plan: LoadPlan, workload: Workload, processes: int) -> Iterator[Measure]:
    """Gives what measures: this process, or so many others that load the pair themselves, a thread each.

    The journal is this process's, a finished block is in it at once, and which process made it does not
    matter: a run may go on with another number of them.
    """
    if processes < 2:
        yield partial(measure, pair)
        return
    with closing(_Crew(load_plan, workload, processes)) as crew:
        yield crew.measure


@dataclass
class _Worker(Worker):
    task: Task | None = None
    is_free: bool = False  # it has loaded the pair, and nothing to do

    def give(self, task: Task) -> None:
        self.task, self.is_free = task, False
        self.send(task)


@dataclass
class _Crew(Crew[_Worker]):
    """Processes that are started where there is something to do, and live until all is measured."""

    load_plan: LoadPlan
    workload: Workload
    count: int

    def start(self) -> None:
        worker = _Worker(*start_worker("lvspec_cli.bench.worker"))
        self.workers.append(worker)
        worker.send((self.load_plan, self.workload))

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
        while len(self.workers) < min(self.count, len(tasks)):
            self.start()
        while tasks or not all(worker.task is None for worker in self.workers):
            for worker in self.workers:
                if tasks and worker.is_free:
                    worker.give(tasks.popleft())
            for worker, message in self.heard():
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

    def worker_ended(self, worker: _Worker) -> None:
        """A run with fewer processes than were asked for would take too long: it ends.

        :raises PairError: always.
        """
        raise PairError(
            f"a process that measured ended by itself ({worker.wait()[1]})",
            "take fewer --processes; what is measured is kept",
        )


def _tasks(clips: Sequence[BenchClip], plan: Plan, journal: Journal) -> Iterator[Task]:
    """One for each clip of which something is left."""
    for clip, place in zip(clips, places(clips), strict=True):
        asked = {(item.id, repeat) for item in clip.items for repeat in range(plan.repeat)}
        done = frozenset(asked & journal.blocks.keys())
        if done != asked:
            yield Task(plan, clip, place, done)
