"""What becomes of the work of workers that end."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import deque
from dataclasses import replace
from multiprocessing import Pipe

import pytest

from lvspec_cli.batch.answer import DeviceLostError
from lvspec_cli.batch.remote import _Crew, _Worker
from lvspec_cli.batch.serve import Loaded, Row, Setup, WantsWork, WorkDone, WorkerPlan
from lvspec_cli.errors import PairError, VideoError
from lvspec_cli.events import Event, Noted
from lvspec_cli.output.records import Record, failed_record
from lvspec_cli.request import Company
from lvspec_cli.workers import start_worker
from tests.batch.test_moved import PLAN, work
from tests.bench.made import known


def worker(command: str) -> _Worker:
    plan = WorkerPlan(PLAN, work("a.mp4").request, 1, 2**20, "fail")
    return _Worker(subprocess.Popen([command]), Pipe()[0], Setup(plan))


def test_work_that_comes_back_too_late_for_the_others_is_an_error():
    events: list[Event] = []
    crew = _Crew(deque(), lambda record: None, events.append)
    crew.workers = [at_its_last, loading] = [worker("true"), worker("false")]
    crew._send_work(at_its_last)  # there is nothing more for it
    crew.pending.append(work("a.mp4"))
    crew.worker_ended(loading)
    assert events == [Noted("a worker ended while it loaded the pair (exit code 1): 1 go on")]
    crew.worker_ended(at_its_last)
    with pytest.raises(PairError, match="exit code 1"):
        crew.check_done()


def test_a_worker_that_somebody_ends_or_that_loses_its_gpu_gives_all_back_and_another_goes_on(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(
        "lvspec_cli.batch.remote.start_worker", lambda module: (subprocess.Popen(["true"]), Pipe()[0])
    )
    events: list[Event] = []
    rows: list[Record] = []
    crew = _Crew(deque(map(work, ("a.mp4", "b.mp4", "c.mp4"))), rows.append, events.append)

    def working(slots: int = 1) -> _Worker:
        (current,) = crew.workers
        current.setup = replace(current.setup, plan=replace(current.setup.plan, company=Company(slots)))
        for message in (Loaded(), WantsWork(), WantsWork()):
            crew.handle(current, message)
        return current

    crew.start(Setup(WorkerPlan(PLAN, work("a.mp4").request, 1, 2**20, "fail")))
    crew.worker_ended(working())  # SIGTERM, and it ended with code 0
    assert (rows, [each.name for each in crew.pending]) == ([], [b"a.mp4", b"b.mp4", b"c.mp4"])
    assert events == [Noted("a worker was told to end: 2 clips to be done again")]
    lost, at_fault = DeviceLostError("the GPU does not answer"), working()
    failed = failed_record(PLAN, work("a.mp4").request, work("a.mp4").identity, 1, VideoError("broken"))
    crew.handle(at_fault, Row(failed))
    crew.worker_failed(at_fault, lost)
    assert (len(rows), crew.pending) == (1, deque([work("b.mp4"), work("c.mp4")]))
    assert events[-1] == Noted("the GPU does not answer: 1 clip to be done again")
    crew.worker_failed(working(slots=2), lost)  # in a round of both: nobody knows which it was
    assert crew.pending == deque(replace(work(name), alone=True) for name in ("b.mp4", "c.mp4"))
    crew.stop()
    crew.worker_failed(crew.workers[0], lost)
    assert (crew.workers, len(events)) == ([], 3), "nothing begins again where all is to end"


def test_a_clip_that_kills_a_worker_twice_is_a_failed_row(monkeypatch: pytest.MonkeyPatch):
    """The clips beside it, and those that were decoded ahead, are given back."""
    monkeypatch.setattr(
        "lvspec_cli.batch.remote.start_worker",
        lambda module: (subprocess.Popen(["false"]), Pipe()[0]),
    )
    done, bad, beside, ahead, later = (work(f"{name}.mp4", name) for name in "abcde")
    plan = WorkerPlan(PLAN, bad.request, 1, 2**20, "fail", company=Company(2))
    rows: list[Record] = []
    crew = _Crew(deque([done, bad, beside, ahead, later]), rows.append, lambda event: None)

    def started(takes: int) -> _Worker:
        (worker,) = crew.workers
        crew.handle(worker, Loaded())
        for _ in range(takes):
            crew.handle(worker, WantsWork())
        return worker

    crew.start(Setup(plan))
    first = started(4)
    crew.handle(first, WorkDone(0))
    crew.worker_ended(first)
    assert not rows
    assert crew.pending == deque([replace(bad, alone=True), replace(beside, alone=True), ahead, later])
    crew.worker_ended(started(2))
    assert [(row.file_name, known(row.error).kind) for row in rows] == [("b.mp4", "worker_died")]
    assert crew.pending == deque([replace(beside, alone=True), ahead, later])
    (third,) = crew.workers
    third.end()


def test_stopping_does_not_wait_for_workers_and_loses_nothing_that_they_have_sent():
    """A worker that takes the interpreter apart, or a long answer, would hold the terminal for seconds."""
    ours, theirs = Pipe()
    ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    deaf = f"{ignoring}; print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-S", "-c", deaf], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # from now on it ignores SIGTERM
    row = failed_record(PLAN, work("a.mp4").request, work("a.mp4").identity, 1, VideoError("broken"))
    theirs.send(Row(row))
    theirs.close()
    plan = WorkerPlan(PLAN, work("a.mp4").request, 1, 2**20, "fail")
    rows: list[Record] = []
    crew = _Crew(deque([work("b.mp4")]), rows.append, lambda event: None)
    crew.workers = [_Worker(process, ours, Setup(plan), ready=True)]
    crew.stop()
    while crew.workers:
        for who, message in crew.heard():
            crew.handle(who, message)
    crew.check_done()
    assert (process.wait(), rows) == (-signal.SIGKILL, [row])


def test_a_worker_whose_parent_has_gone_ends_without_a_word(capfd: pytest.CaptureFixture[str]):
    """Killed, say, before it has said what is to be done."""
    process, connection = start_worker("lvspec_cli.batch.worker")
    connection.close()
    assert process.wait(120) == 1
    assert capfd.readouterr() == ("", "")
