"""Runs works in this process, or in several worker processes, here or on the nodes of a cluster.

Only this process writes records.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from lvspec_cli.batch.answer import DeviceLostError
from lvspec_cli.batch.cluster import Cluster, Needed, needed, with_absolute_path
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
from lvspec_cli.errors import ENOUGH, LvspecError, MachineError, NotFiniteError, PairError, UsageError
from lvspec_cli.events import Listener, Noted
from lvspec_cli.memory.resolve import place
from lvspec_cli.output.records import Record, failed_record
from lvspec_cli.table import counted
from lvspec_cli.workers import Channel, Crew, Process, Worker, start_worker

POLL = 0.2  # seconds between checks for an interruption
WORKER = "lvspec_cli.batch.worker"
MOST_TRIES = 3  # to load the pair: a node that is lost may be chosen once more before the cluster knows


class WorkerDiedError(LvspecError):
    """A worker ended in the middle of a clip."""

    kind = "worker_died"


@dataclass
class _Worker(Worker):
    setup: Setup
    ready: bool = False
    looks_ahead: bool = False
    tries: int = 1  # to load the pair, with those that were lost
    sent: int = 0  # works
    dismissed: bool = False  # it was told that there is nothing more
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
    cluster: Cluster | None = None,
) -> None:
    """As ``run``, in worker processes. If a worker dies, its current clip fails and it is started again.

    A worker that dies while it loads is not started again: the other workers continue without it. In a
    cluster workers are also lost with their nodes: there a clip fails with the second one that dies, and
    loading with the third.
    """
    crew = _Crew(deque(works), write, listen, cluster, needed(works, plans[0].load_plan))
    setups = [Setup(plan, number) for number, plan in enumerate(plans[: len(works)])]
    with closing(crew):
        for setup in setups:
            crew.start(setup)
        while crew.workers:
            if interrupted() and not crew.stopping:
                crew.stop()
            for worker, message in crew.heard(POLL):
                crew.handle(worker, message)
            crew.end_idle()
        crew.check_done()


@dataclass
class _Crew(Crew[_Worker]):
    """The workers and the works that are still to be done."""

    pending: deque[Work]
    write: Callable[[Record], None]
    listen: Listener
    cluster: Cluster | None = None
    paths: Needed = field(default_factory=Needed)  # for a cluster
    stopping: bool = False
    lost: LvspecError | None = None  # why the last worker that was not started again ended

    def start(self, setup: Setup, tries: int = 1) -> None:
        process: Process
        connection: Channel
        try:
            if self.cluster is None:
                process, connection = start_worker(WORKER)
            else:
                process = connection = self.cluster.start_worker(WORKER, self.paths)
        except OSError as error:
            raise MachineError(f"no worker can be started ({error.strerror})", ENOUGH) from error
        worker = _Worker(process, connection, setup, tries=tries)
        self.workers.append(worker)
        worker.send(setup)

    def ready(self, connections: Sequence[Any], timeout: float | None) -> Sequence[Any]:
        if self.cluster is None:
            return super().ready(connections, timeout)
        return self.cluster.ready(connections, timeout)

    def stop(self) -> None:
        """Ends all workers. What they have sent is still received: the other answers are dropped."""
        self.stopping = True
        self.pending.clear()
        for worker in self.workers:
            worker.process.kill()

    def handle(self, worker: _Worker, message: Message) -> None:
        match message:
            case Loaded(looks_ahead):
                worker.ready, worker.looks_ahead = True, looks_ahead
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
        worker.dismissed = work is None
        if work is not None:
            worker.in_progress[worker.sent] = work
            worker.sent += 1
        worker.send(work)

    def worker_failed(self, worker: _Worker, error: LvspecError) -> None:
        """Continues without a node on which something is wrong; with another process where a GPU was lost.

        :raises LvspecError: the error, if it is this machine's or would be that of all nodes.
        """
        if isinstance(error, DeviceLostError):  # the row of the clip is written, or it was one of several
            self.workers.remove(worker)
            worker.end()
            slots, rest = worker.setup.plan.company.slots, worker.rest()
            self._start_again(worker, alone(rest, slots) if slots > 1 else rest, error.cause)
            return
        if self.cluster is None or isinstance(error, UsageError | NotFiniteError):
            raise error
        self.workers.remove(worker)
        self.pending.extendleft(reversed(worker.rest()))
        worker.end()
        self._continue_without(error)

    def worker_ended(self, worker: _Worker) -> None:
        """Fails the work that it ended at, takes back the others, and starts it again if it had loaded the
        pair. One that somebody else tells to end (SIGTERM) ends with code 0, and none fails."""
        self.workers.remove(worker)
        worker.connection.close()
        code, how = worker.wait()
        if code == 0:
            if worker.rest() or not worker.dismissed:
                self._start_again(worker, worker.rest(), "a worker was told to end")
            return
        if self.stopping:
            return
        if not worker.ready:
            self._ended_loading(worker, code, how)
            return
        under_way = worker.setup.plan.company.slots + worker.looks_ahead
        failed, left = after_death(worker.rest(), under_way, tries=1 if self.cluster is None else 2)
        who = "the worker" if self.cluster is None else "two workers"
        error = WorkerDiedError(f"{who} ended at this clip ({how})", "--retry-errors does it again")
        for work in failed:
            for number in work.numbers:
                self.write(
                    failed_record(worker.setup.plan.load_plan, work.request, work.identity, number, error)
                )
        is_lost = self.cluster is not None and left and not failed  # maybe with its node
        self._start_again(worker, left, f"a worker has ended ({how})" if is_lost else "")

    def _start_again(self, worker: _Worker, left: Sequence[Work], why: str) -> None:
        """Takes back what it has left undone, and puts another process in its place if there is work.

        :param why: for the user, where it is not told otherwise.
        """
        if self.stopping:
            return
        if why:
            again = f": {counted(len(left), 'clip')} to be done again" if left else ""
            self.listen(Noted(f"{why}{again}"))
        self.pending.extendleft(reversed(left))
        if self.pending:
            try:
                self.start(worker.setup)
            except MachineError as error:
                self._continue_without(error)

    def _ended_loading(self, worker: _Worker, code: int | None, how: str) -> None:
        if code is None and worker.tries < MOST_TRIES and self.pending:  # with its node: there are others
            self.start(worker.setup, worker.tries + 1)
            return
        remedy = "take fewer --workers, or see with --workers 1 what is wrong"
        self._continue_without(PairError(f"a worker ended while it loaded the pair ({how})", remedy))

    def _continue_without(self, error: LvspecError) -> None:
        """Leaves the remaining works to the other workers, if there are any."""
        self.lost = error
        if self.workers:
            self.listen(Noted(f"{error.cause}: {len(self.workers)} go on"))

    def end_idle(self) -> None:
        """When all works are done: ends the workers that still load, or wait for a node, maybe for long."""
        if self.pending or any(worker.in_progress for worker in self.workers):
            return
        for worker in [worker for worker in self.workers if not worker.ready]:
            self.workers.remove(worker)
            worker.end()

    def check_done(self) -> None:
        """Called when no worker is left.

        :raises LvspecError: there are works that nobody has done.
        """
        if self.pending and self.lost is not None:
            raise self.lost


def after_death(
    rest: Sequence[Work], under_way: int, *, tries: int = 1
) -> tuple[Sequence[Work], Sequence[Work]]:
    """The works that a worker which died leaves: one that fails, if it is known, and those to be done again.

    The oldest works were under way. If that is a single one, it was the reason, and fails. If not, each of
    them is done again with nothing beside it.

    :param rest: what it has not finished, oldest first.
    :param under_way: how many works it had in hand: one in each slot, and one whose frames are processed.
    :param tries: 2 if a single one is done again, too, because a worker may have died for another reason.
    """
    if (under_way == 1 and tries == 1) or (rest and rest[0].alone):
        return rest[:1], rest[1:]
    return (), alone(rest, under_way)


def alone(rest: Sequence[Work], under_way: int) -> list[Work]:
    """The works. Those that were under way are done with nothing beside them: one may be the reason."""
    return [*(replace(work, alone=True) for work in rest[:under_way]), *rest[under_way:]]


def run(
    works: Sequence[Work],
    plans: Sequence[WorkerPlan],
    *,
    write: Callable[[Record], None],
    listen: Listener = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
    cluster: Cluster | None = None,
) -> None:
    """Answers all works. ``write`` is called with each record.

    A single plan runs in this process. Several plans run in a process each, with one queue of works, and so
    do those for a cluster. ``listen`` gets their events as ``InWorker``.

    :param interrupted: checked once a round; if true, current answers are dropped and no other starts.
    :raises PairError: the pair cannot be loaded, or does not fit.
    """
    if cluster is not None:
        works = [with_absolute_path(work) for work in works]
        run_remote(works, plans, write=write, listen=listen, interrupted=interrupted, cluster=cluster)
        return
    if len(plans) > 1:
        # The placement is decided before any worker takes memory.
        plans = [replace(plan, load_plan=place(plan.load_plan, plan.workload)) for plan in plans]
        run_remote(works, plans, write=write, listen=listen, interrupted=interrupted)
        return
    # Closed explicitly: the exception of a second Ctrl-C would be lost in a generator that is only dropped.
    with serving(plans[0], listen, interrupted) as serve, closing(serve(works)) as done:
        for record in done:
            if not isinstance(record, Finished):
                write(record)
