"""Runs works in this process, or in several worker processes. Only this process writes records."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from lvspec_cli.batch.serve import (
    EventSent,
    Loaded,
    Message,
    Row,
    Setup,
    WantsWork,
    WorkDone,
    WorkerPlan,
    serving,
)
from lvspec_cli.batch.slots import Finished
from lvspec_cli.batch.work import Work
from lvspec_cli.errors import ENOUGH, LvspecError, MachineError, PairError
from lvspec_cli.events import Listener, Noted
from lvspec_cli.memory.resolve import place
from lvspec_cli.output.records import Record, failed_record
from lvspec_cli.workers import Crew, Worker, start_worker

POLL = 0.2  # seconds between checks for an interruption


class WorkerDiedError(LvspecError):
    """A worker ended in the middle of a clip."""

    kind = "worker_died"


@dataclass
class _Worker(Worker):
    setup: Setup
    ready: bool = False
    sent: int = 0  # works
    in_progress: dict[int, Work] = field(default_factory=dict)  # by number, oldest first
    written: set[str] = field(default_factory=set)  # keys of rows

    def rest(self) -> list[Work]:
        """The works in progress without what is written, oldest first."""
        works = (work.only(frozenset(work.keys) - self.written) for work in self.in_progress.values())
        return [work for work in works if work.numbers]


def run_remote(
    works: Sequence[Work],
    plans: Sequence[WorkerPlan],
    *,
    write: Callable[[Record], None],
    listen: Listener,
    interrupted: Callable[[], bool],
) -> None:
    """As ``run``, in worker processes. If a worker dies, its current clip fails and it is started again.

    A worker that dies while it loads is not started again: the other workers continue without it.
    """
    crew = _Crew(deque(works), write, listen)
    setups = [Setup(plan, number) for number, plan in enumerate(plans[: len(works)])]
    with closing(crew):
        for setup in setups:
            crew.start(setup)
        while crew.workers:
            if interrupted() and not crew.stopping:
                crew.stop()
            for worker, message in crew.heard(POLL):
                crew.handle(worker, message)
        crew.check_done()


@dataclass
class _Crew(Crew[_Worker]):
    """The workers and the works that are still to be done."""

    pending: deque[Work]
    write: Callable[[Record], None]
    listen: Listener
    stopping: bool = False
    lost: str = ""  # how the last worker that was not started again ended

    def start(self, setup: Setup) -> None:
        try:
            worker = _Worker(*start_worker("lvspec_cli.batch.worker"), setup)
        except OSError as error:
            raise MachineError(f"no worker can be started ({error.strerror})", ENOUGH) from error
        self.workers.append(worker)
        worker.send(setup)

    def stop(self) -> None:
        """Ends all workers. What they have sent is still received: the other answers are dropped."""
        self.stopping = True
        self.pending.clear()
        for worker in self.workers:
            worker.process.kill()

    def handle(self, worker: _Worker, message: Message) -> None:
        match message:
            case Loaded():
                worker.ready = True
            case WantsWork():
                self._send_work(worker)
            case Row(record):
                worker.written.add(record.key)
                self.write(record)
            case WorkDone(number):
                worker.written -= set(worker.in_progress.pop(number).keys)
            case EventSent(event):
                self.listen(event)

    def _send_work(self, worker: _Worker) -> None:
        work = self.pending.popleft() if self.pending else None
        if work is not None:
            worker.in_progress[worker.sent] = work
            worker.sent += 1
        worker.send(work)

    def worker_ended(self, worker: _Worker) -> None:
        """Fails the work that it ended at, takes back the others, and starts it again if it had loaded the
        pair."""
        self.workers.remove(worker)
        worker.connection.close()
        code, how = worker.wait()
        if code == 0 or self.stopping:
            return
        if not worker.ready:
            self._continue_without(f"a worker ended while it loaded the pair ({how})")
            return
        failed, left = after_death(worker.rest(), worker.setup.plan.company.slots)
        error = WorkerDiedError(f"the worker ended at this clip ({how})", "--retry-errors does it again")
        for work in failed:
            for number in work.numbers:
                self.write(
                    failed_record(worker.setup.plan.load_plan, work.request, work.identity, number, error)
                )
        self.pending.extendleft(reversed(left))
        if self.pending:
            try:
                self.start(worker.setup)
            except MachineError as error:
                self._continue_without(error.cause)

    def _continue_without(self, cause: str) -> None:
        """Leaves the remaining works to the other workers, if there are any."""
        self.lost = cause
        if self.workers:
            self.listen(Noted(f"{cause}: {len(self.workers)} go on"))

    def check_done(self) -> None:
        """Called when no worker is left.

        :raises PairError: there are works that nobody has done.
        """
        if self.pending:
            raise PairError(self.lost, "take fewer --workers, or see with --workers 1 what is wrong")


def after_death(rest: Sequence[Work], slots: int) -> tuple[Sequence[Work], Sequence[Work]]:
    """The works that a worker which died leaves: one that fails, if it is known, and those to be done again.

    The oldest works were under way, one in each of its slots. If that is a single one, it was the reason, and
    fails. If not, each of them is done again with nothing beside it.

    :param rest: what it has not finished, oldest first.
    """
    if slots == 1 or (rest and rest[0].alone):
        return rest[:1], rest[1:]
    return (), [*(replace(work, alone=True) for work in rest[:slots]), *rest[slots:]]


def run(
    works: Sequence[Work],
    plans: Sequence[WorkerPlan],
    *,
    write: Callable[[Record], None],
    listen: Listener = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Answers all works. ``write`` is called with each record.

    A single plan runs in this process. Several plans run in a process each, with one queue of works.
    ``listen`` gets their events as ``InWorker``.

    :param interrupted: checked once a round; if true, current answers are dropped and no other starts.
    :raises PairError: the pair cannot be loaded, or does not fit.
    """
    if len(plans) > 1:
        from lvspec_cli.batch.remote import run_remote

        # The placement is decided before any worker takes memory.
        plans = [replace(plan, load_plan=place(plan.load_plan, plan.workload)) for plan in plans]
        run_remote(works, plans, write=write, listen=listen, interrupted=interrupted)
        return
    # Closed explicitly: the exception of a second Ctrl-C would be lost in a generator that is only dropped.
    with serving(plans[0], listen, interrupted) as serve, closing(serve(works)) as done:
        for record in done:
            if not isinstance(record, Finished):
                write(record)
