"""What becomes of the work of workers that end."""

from __future__ import annotations

import subprocess
from collections import deque
from multiprocessing import Pipe

import pytest

from lvspec_cli.batch.remote import _Crew, _Worker
from lvspec_cli.batch.serve import Setup, WorkerPlan
from lvspec_cli.errors import PairError
from lvspec_cli.events import Event, Noted
from lvspec_cli.workers import start_worker
from tests.batch.test_moved import PLAN, work


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


def test_a_worker_whose_parent_has_gone_ends_without_a_word(capfd: pytest.CaptureFixture[str]):
    """Killed, say, before it has said what is to be done."""
    process, connection = start_worker("lvspec_cli.batch.worker")
    connection.close()
    assert process.wait(120) == 1
    assert capfd.readouterr() == ("", "")
