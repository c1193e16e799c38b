"""A system that writes less than it was given, has no room, fails at the disk or cannot lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.batch.conftest import rows
from tests.batch.processes import Processes
from tests.conftest import write_video

NAMES = [f"{number}.mp4" for number in range(4)]
# What stands in for a call of the system, from its n-th on; only files that rows go to are meant.
FAULT = """
import errno, os
real, calls = os.{call}, 0
def faulty(descriptor, *data):
    global calls
    name = os.readlink(f"/proc/self/fd/{{descriptor}}")
    if "out.jsonl" not in name or name.endswith(".lock"):
        return real(descriptor, *data)
    calls += 1
    if calls >= {begin}:
        {fault}
    return real(descriptor, *data)
os.{call} = faulty
"""
SHORT = FAULT.format(call="write", begin=1, fault="data = (data[0][: max(1, len(data[0]) // 3)],)")
NO_ROOM = "if calls == 3: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))"
LAST = "    return real(descriptor, *data)\nos."
SHORT_THEN_FULL = SHORT.replace(LAST, f"    {NO_ROOM}\n{LAST}")


def failing(call: str, name: str, begin: int = 1) -> str:
    return FAULT.format(
        call=call, begin=begin, fault=f"raise OSError(errno.{name}, os.strerror(errno.{name}))"
    )


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    for name in NAMES:
        write_video(folder / name, seconds=0.5)
    return folder


@pytest.mark.parametrize("fault", [SHORT, failing("fsync", "EINVAL"), failing("fsync", "EOPNOTSUPP")])
def test_a_file_system_with_odd_ways_takes_every_row(
    lvspec: Processes, few: Path, tmp_path: Path, fault: str
) -> None:
    run = lvspec.start(tmp_path, "caption", few, "--out", "out.jsonl", before=fault)
    assert (run.wait(), run.family()) == (0, [])
    assert [row["file_name"] for row in rows(tmp_path / "out.jsonl")] == NAMES


@pytest.mark.parametrize(
    ("fault", "words", "whole"),
    [
        (failing("write", "ENOSPC", 3), "No space left", 2),
        pytest.param(failing("write", "EDQUOT", 3), "quota", 2, marks=pytest.mark.thorough),
        (failing("write", "EIO", 1), "Input/output error", 0),
        (failing("fsync", "EIO", 3), "Input/output error", 1),
        pytest.param(failing("fsync", "ENOSPC", 4), "No space left", 2, marks=pytest.mark.thorough),
        (SHORT_THEN_FULL, "No space left", 0),
    ],
)
def test_a_disk_that_fails_ends_the_run_with_one_error_and_keeps_the_rows(
    lvspec: Processes, few: Path, tmp_path: Path, fault: str, words: str, whole: int
) -> None:
    run = lvspec.start(tmp_path, "caption", few, "--out", "out.jsonl", before=fault)
    assert (run.wait(), run.family()) == (5, [])
    assert next(line for line in run.stderr.splitlines() if line.startswith("error: ")).count(words) == 1
    assert "Traceback" not in run.stderr
    assert [row["file_name"] for row in rows(tmp_path / "out.jsonl")] == NAMES[:whole]
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".lock", ".tmp")] == []
    again = lvspec.start(tmp_path, "caption", few, "--out", "out.jsonl")
    assert again.wait() == 0
    assert [row["file_name"] for row in rows(tmp_path / "out.jsonl")] == NAMES


def test_a_disk_that_cannot_lock_is_said(lvspec: Processes, few: Path, tmp_path: Path) -> None:
    fault = """
import errno, fcntl, os
def flock(descriptor, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = flock
"""
    run = lvspec.start(tmp_path, "caption", few, "--out", "out.jsonl", before=fault)
    assert run.wait() == 5
    assert "cannot be locked" in run.stderr
    assert "Traceback" not in run.stderr
