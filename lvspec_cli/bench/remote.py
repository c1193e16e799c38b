"""Untimed measurements by several processes, with one list of clips and one journal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import Journal
from lvspec_cli.bench.measure import ClipPosition, Plan, Progress, check_measured, clip_positions, measure
from lvspec_cli.errors import LvspecError, PairError
from lvspec_cli.figures.answers import Block, Item
from lvspec_cli.memory.plan import Workload
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.request import LoadPlan
from lvspec_cli.workers import Crew, Worker, start_worker


@dataclass(frozen=True)
class Task:
    """A clip and what to run on it; ``done`` holds (item, repeat) of the blocks that are finished."""

    plan: Plan
    clip: BenchClip
    position: ClipPosition
    done: frozenset[tuple[str, int]]

    @property
    def size(self) -> int:
        """The number of blocks to run."""
        return len(self.clip.items) * self.plan.repeat - len(self.done)


@dataclass(frozen=True)
class WarningSent:
    text: str


@dataclass(frozen=True)
class TaskDone:
    """The worker is ready for a task."""


Message = Item | Block | WarningSent | TaskDone | LvspecError


class Measure(Protocol):
    """``bench.measure.measure`` for a given pair."""

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
def measurer(pair: LoadedPair, load_plan: LoadPlan, workload: Workload, processes: int) -> Iterator[Measure]:
    """Yields a ``Measure``: in this process, or by several others that load the pair with one thread each.

    Only this process writes the journal, and stores every finished block immediately. A run can be continued
    with another number of processes.
    """
    if processes < 2:
        yield partial(measure, pair)
        return
    with closing(_Crew(load_plan, workload, processes)) as crew:
        yield crew.measure


@dataclass
class _Worker(Worker):
    task: Task | None = None
    is_free: bool = False  # it has loaded the pair and has no task

    def assign(self, task: Task) -> None:
        self.task, self.is_free = task, False
        self.send(task)


@dataclass
class _Crew(Crew[_Worker]):
    """Processes that are started when there are tasks, and kept until the crew is closed."""

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
                    worker.assign(tasks.popleft())
            for worker, message in self.heard():
                match message:
                    case Item():
                        journal.add_item(message)
                    case Block():
                        journal.add_block(message)
                    case WarningSent(text):
                        warn(text)
                    case TaskDone():
                        done += (
                            worker.task.size if worker.task else 0
                        )  # the first message only says that it is ready
                        worker.task, worker.is_free = None, True
                        progress(done, total)
        check_measured(journal)

    def worker_ended(self, worker: _Worker) -> None:
        """Ends the run: with fewer processes than asked for it would take too long.

        :raises PairError: always.
        """
        raise PairError(
            f"a process that measured ended by itself ({worker.wait()[1]})",
            "take fewer --processes; what is measured is kept",
        )


def _tasks(clips: Sequence[BenchClip], plan: Plan, journal: Journal) -> Iterator[Task]:
    """One for each clip with unfinished blocks."""
    for clip, position in zip(clips, clip_positions(clips), strict=True):
        blocks = {(item.id, repeat) for item in clip.items for repeat in range(plan.repeat)}
        done = frozenset(blocks & journal.blocks.keys())
        if done != blocks:
            yield Task(plan, clip, position, done)
