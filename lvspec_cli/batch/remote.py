"""Works done in this process with one worker, or in a process each with several, with one writer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from lvspec_cli.batch.serve import (
    Happened,
    Message,
    Ready,
    Row,
    Setup,
    WantsWork,
    WorkDone,
    WorkerPlan,
    serving,
)
from lvspec_cli.batch.work import Work
from lvspec_cli.errors import ENOUGH, LvspecError, MachineError, PairError
from lvspec_cli.events import Listener, Noted
from lvspec_cli.memory.resolve import place, workload_of
from lvspec_cli.output.records import Record, failed_record
from lvspec_cli.workers import Crew, Worker, start_worker

POLL = 0.2  # seconds until a wish to stop is noticed


class WorkerDiedError(LvspecError):
    """A worker ended in the middle of a clip."""

    kind = "worker_died"


@dataclass
class _Worker(Worker):
    setup: Setup
    ready: bool = False
    under_way: deque[Work] = field(default_factory=deque)  # taken and not done, the oldest first
    written: set[str] = field(default_factory=set)  # keys of the oldest one's rows


def run_remote(
    works: Sequence[Work],
    plans: Sequence[WorkerPlan],
    *,
    write: Callable[[Record], None],
    listen: Listener,
    interrupted: Callable[[], bool],
) -> None:
    """As ``run.run``: a worker that dies costs the clip it was at, and is started again.

    One that dies before it is at any, while it loads, is not: the others go on as long as there are some.
    """
    crew = _Crew(deque(works), write, listen)
    setups = [Setup(plan, telling=number == 0) for number, plan in enumerate(plans[: len(works)])]
    with closing(crew):
        for setup in setups:
            crew.start(setup)
        while crew.workers:
            if interrupted() and not crew.stopping:
                crew.stop()
            for worker, message in crew.heard(POLL):
                crew.take(worker, message)
        crew.check_done()


@dataclass
class _Crew(Crew[_Worker]):
    """The workers and what is still to be done."""

    pending: deque[Work]
    write: Callable[[Record], None]
    listen: Listener
    stopping: bool = False
    lost: str = ""  # how the last worker ended that was not started again

    def start(self, setup: Setup) -> None:
        try:
            worker = _Worker(*start_worker("lvspec_cli.batch.worker"), setup)
        except OSError as error:
            raise MachineError(f"no worker can be started ({error.strerror})", ENOUGH) from error
        self.workers.append(worker)
        worker.send(setup)

    def stop(self) -> None:
        """Answers under way end at their next round, and nothing new begins."""
        self.stopping = True
        self.pending.clear()
        for worker in self.workers:
            (worker.process.terminate if worker.ready else worker.process.kill)()

    def take(self, worker: _Worker, message: Message) -> None:
        match message:
            case Ready():
                worker.ready = True
            case WantsWork():
                self._give(worker)
            case Row(record):
                worker.written.add(record.key)
                self.write(record)
            case WorkDone():
                worker.under_way.popleft()
                worker.written.clear()
            case Happened(event):
                self.listen(event)

    def _give(self, worker: _Worker) -> None:
        work = self.pending.popleft() if self.pending else None
        if work is not None:
            worker.under_way.append(work)
        worker.send(work)

    def worker_ended(self, worker: _Worker) -> None:
        """Its oldest work has failed, the others come back, and it is started again where it had loaded."""
        self.workers.remove(worker)
        worker.connection.close()
        code, how = worker.wait()
        if code == 0 or self.stopping:
            return
        if not worker.ready:
            self._go_on_without(f"a worker ended while it loaded the pair ({how})")
            return
        if worker.under_way:
            self._fail(worker, worker.under_way.popleft(), how)
        self.pending.extendleft(reversed(worker.under_way))
        if self.pending:
            try:
                self.start(worker.setup)
            except MachineError as error:
                self._go_on_without(error.cause)

    def _go_on_without(self, cause: str) -> None:
        """The others do what there is to do, as long as there are some."""
        self.lost = cause
        if self.workers:
            self.listen(Noted(f"{cause}: {len(self.workers)} go on"))

    def check_done(self) -> None:
        """For when there are no workers any more: those that went on may have been at their last work.

        :raises PairError: there is still something to do.
        """
        if self.pending:
            raise PairError(self.lost, "take fewer --workers, or see with --workers 1 what is wrong")

    def _fail(self, worker: _Worker, work: Work, how: str) -> None:
        error = WorkerDiedError(f"the worker ended at this clip ({how})", "--retry-errors does it again")
        plan = worker.setup.plan.load_plan
        for number in work.numbers:
            if work.keys[number - 1] not in worker.written:
                self.write(failed_record(plan, work.request, work.identity, number, error))


def run(
    works: Sequence[Work],
    plans: Sequence[WorkerPlan],
    *,
    write: Callable[[Record], None],
    listen: Listener = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Answers all works; ``write`` gets each record when it is finished.

    One plan runs here, and ``listen`` gets the pipeline's events. Several run in a process each, over one
    queue: then the events are those of the first.

    :param interrupted: asked once a round; when true answers under way are dropped and none begins.
    :raises PairError: the pair cannot be had or does not fit.
    """
    if len(plans) > 1:
        from lvspec_cli.batch.remote import run_remote

        # Looked at before any of them takes memory.
        plans = [replace(plan, load_plan=place(plan.load_plan, workload_of(plan.base))) for plan in plans]
        run_remote(works, plans, write=write, listen=listen, interrupted=interrupted)
        return
    # Closed here: what a second Ctrl-C raises in a generator that is only dropped is lost.
    with serving(plans[0], listen, interrupted) as serve, closing(serve(works)) as done:
        for finished in done:
            for record in finished.records:
                write(record)
            if interrupted():
                return
