"""Processes of every kind ended at random moments: nothing is lost, nothing doubled, nothing left running.

Three kills with two workers; ``LVSPEC_STRESS_KILLS=40`` makes as many, with four workers as well.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.batch.conftest import rows
from tests.batch.processes import Processes, Run, until
from tests.conftest import write_video

KILLS = int(os.environ.get("LVSPEC_STRESS_KILLS", "3"))
WORKERS = (2, 4) if KILLS > 3 else (2,)
COUNT = 40


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for number in range(COUNT):
        write_video(folder / f"{number:02}.mp4", seconds=0.5)
    return folder


def kind_of(run: Run, pid: int) -> str:
    if pid == run.pid:
        return "main"
    return "decoder" if pid in run.decoders() else "worker"


def victims_of(run: Run, kind: str) -> list[int]:
    """Processes of a kind, in an order of their own."""
    return [pid for pid in run.family() if kind_of(run, pid) == kind]


def there_is(run: Run, kind: str) -> bool:
    """One of its kind, or none of any: it has ended."""
    return bool(victims_of(run, kind)) or not run.family()


def left_running(run: Run) -> list[int]:
    until(lambda: not run.family(), 10)
    return run.family()


@pytest.mark.thorough
@pytest.mark.parametrize("workers", WORKERS)
def test_whoever_is_killed_every_clip_gets_its_row(
    lvspec: Processes, many: Path, tmp_path: Path, workers: int
) -> None:
    dice = random.Random(workers)
    for number in range(KILLS):
        kind, out = ("decoder", "worker", "main")[number % 3], tmp_path / f"{number}.jsonl"
        flags = ("caption", many, "--out", out)
        run = lvspec.start(tmp_path, *flags, "--workers", workers)
        assert until(partial(there_is, run, kind), 120)
        time.sleep(dice.uniform(0.0, 0.4))
        victims = victims_of(run, kind)
        assert victims, "all was done before"
        with suppress(ProcessLookupError):
            os.kill(victims[0], signal.SIGKILL)
        assert run.wait() in (0, 1, -signal.SIGKILL)
        assert not left_running(run)
        assert "Traceback" not in run.stderr
        last = lvspec.start(tmp_path, *flags, "--retry-errors")
        assert last.wait() == 0
        assert sorted(row["file_name"] for row in rows(out)) == [f"{clip:02}.mp4" for clip in range(COUNT)]
        assert {row["status"] for row in rows(out)} == {"ok"}
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith((".lock", ".tmp"))] == []
