"""Kills, signals, full disks and hangs: nothing is lost and nothing doubled. Real processes."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.batch.conftest import rows
from tests.batch.processes import Processes, Run, until
from tests.conftest import Shell, write_video

COUNT = 16


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short videos, of which one cannot be read."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(COUNT):
        write_video(folder / f"{number:02}.mp4", seconds=0.5 + number / 40)
    (folder / "07.mp4").write_bytes(b"no video")
    return folder


def size_of(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def has_grown(file: Path, size: int) -> bool:
    return size_of(file) > size


def has_ended(run: Run) -> bool:
    return not run.family()


def processor_seconds(pid: int) -> float:
    """Of a process by itself, also of one that has ended and was not waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def whole_rows(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def assert_complete(file: Path) -> None:
    """Every input has exactly one row."""
    assert sorted(row["file_name"] for row in rows(file)) == [f"{number:02}.mp4" for number in range(COUNT)]
    assert [row["file_name"] for row in rows(file) if row["status"] == "error"] == ["07.mp4"]


def test_kill_9_at_random_moments_six_times_loses_and_doubles_nothing(
    lvspec: Processes, many: Path, tmp_path: Path
) -> None:
    dice, out = random.Random(5), tmp_path / "out.jsonl"
    kills = 0
    while kills < 6:
        before = size_of(out)
        run = lvspec.start(tmp_path, "caption", many, "--out", out, "--at-once", 4)
        if dice.random() < 0.7:  # while rows are written, rather than while it starts
            until(partial(has_grown, out, before), 20)
        time.sleep(dice.uniform(0, 0.15))
        run.kill(signal.SIGKILL)
        ended = run.wait()
        assert until(partial(has_ended, run), 10), "a child outlived its parent"
        if ended == -signal.SIGKILL:
            kills += 1
        else:
            assert_complete(out)
            out.unlink()
    assert lvspec.start(tmp_path, "caption", many, "--out", out).wait() == 1
    assert_complete(out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_within_a_second_and_leaves_a_file_that_resumes(
    lvspec: Processes, many: Path, tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "out.jsonl"
    run = lvspec.start(tmp_path, "caption", many, "--out", out, "--at-once", 4)
    assert until(lambda: whole_rows(out) >= 3)
    before = processor_seconds(run.pid)
    run.kill(number)
    assert until(partial(has_ended, run))
    # Not of the clock: other work on the machine would fail it. Taking torch apart alone is over a second.
    assert processor_seconds(run.pid) - before < 1.0
    assert run.wait() == code
    done = whole_rows(out)
    assert 3 <= done < COUNT
    assert len(rows(out)) == done
    assert not run.family()
    assert "interrupted" in run.stderr
    assert re.search(r"^\d+ left: the same command goes on from there$", run.stderr, re.MULTILINE)
    assert lvspec.start(tmp_path, "caption", many, "--out", out).wait() == 1
    assert_complete(out)


def test_a_second_signal_ends_at_once(
    lvspec: Processes, many: Path, endless_models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    run = lvspec.start(tmp_path, "caption", many, "--out", out, "--models", endless_models, "--quiet")
    assert until(lambda: len(run.family()) > 1)
    time.sleep(1.0)
    run.kill(signal.SIGINT)
    time.sleep(0.02)  # while it puts its things away
    run.kill(signal.SIGINT)
    assert run.wait() == 130
    assert until(lambda: not run.family(), 10), "a child outlived its parent"
    assert not rows(out)
    assert (
        run.stderr.removeprefix("stopping\n") == "interrupted\n"
    )  # the first signal may find nothing to finish


def test_a_full_disk_stops_with_one_error_and_keeps_the_rows(
    lvspec: Processes, many: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    # As a disk with room for so much: the system refuses to write beyond it.
    run = lvspec.start(tmp_path, "caption", many, "--out", out, limits=((resource.RLIMIT_FSIZE, 8_000),))
    assert run.wait() == 5
    assert run.stderr.count("error: ") == 1
    assert "make room" in run.stderr
    done = len(rows(out))
    assert 0 < done < COUNT
    assert lvspec.start(tmp_path, "caption", many, "--out", out).wait() == 1
    assert_complete(out)


@pytest.mark.parametrize(
    "fate", ["moved", *(pytest.param(fate, marks=pytest.mark.thorough) for fate in ("deleted", "replaced"))]
)
def test_a_file_that_goes_while_it_is_written_stops_the_run_and_nothing_is_claimed(
    lvspec: Processes, many: Path, tmp_path: Path, fate: str
) -> None:
    (tmp_path / "folder").mkdir()
    out, aside = tmp_path / "folder" / "out.jsonl", tmp_path / "aside.jsonl"
    run = lvspec.start(tmp_path, "caption", many, "--out", out, "--to", "csv")
    assert until(lambda: whole_rows(out) >= 2)
    if fate == "moved":
        out.rename(aside)
    elif fate == "replaced":
        aside.touch()
        aside.replace(out)
    else:
        out.unlink()
    assert run.wait() == 5
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    said = f"moved while it was written: what it held is in {aside}" if fate == "moved" else "is lost"
    assert len(errors) == 1
    assert said in errors[0]
    assert "what is missing is done again" in run.stderr
    assert "captioned" not in run.stderr
    assert "records: " not in run.stderr
    assert not list(tmp_path.rglob("*.csv"))
    assert (whole_rows(aside) >= 2) == (fate == "moved")
    if fate == "moved":
        aside.rename(out)
    assert lvspec.start(tmp_path, "caption", many, "--out", out).wait() == 1
    assert_complete(out)


def test_a_second_run_on_the_same_file_is_refused(lvspec: Processes, many: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out.jsonl", tmp_path / "other"
    other.mkdir()
    first = lvspec.start(tmp_path, "caption", many, "--out", out)
    assert until(lambda: whole_rows(out) >= 1)
    second = lvspec.start(other, "caption", many, "--out", out)
    assert second.wait() == 5
    assert str(first.pid) in second.stderr
    assert first.wait() == 1
    assert_complete(out)


def test_a_decoder_that_hangs_costs_its_clip(lvspec: Processes, tmp_path: Path) -> None:
    folder, out = tmp_path / "clips", tmp_path / "out.jsonl"
    folder.mkdir()
    for number in range(6):
        write_video(folder / f"{number}.mp4", seconds=20, size=256)
    run = lvspec.start(
        tmp_path, "caption", folder, "--out", out, "--decode-timeout", 5, "--decode-workers", 1, "--fps", 8
    )
    # The first one only looks whether there is anything to read.
    assert until(lambda: whole_rows(out) >= 1 and bool(run.decoders()))
    os.kill(run.decoders()[0], signal.SIGSTOP)
    assert run.wait() == 1
    failed = [row for row in rows(out) if row["status"] == "error"]
    assert [row["error"]["kind"] for row in failed] == ["decode_timeout"]
    assert len(rows(out)) == 6
    assert not run.family()


def test_two_devices_with_four_captions_at_once_each_write_the_rows_of_one(
    lvspec: Processes, many: Path, cheap_models: Path, tmp_path: Path
) -> None:
    from tests.batch.conftest import lasting

    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    pair = ("--models", cheap_models)
    assert lvspec.start(tmp_path, "caption", many, "--out", one, *pair).wait() == 1
    run = lvspec.start(tmp_path, "caption", many, "--out", two, *pair, "--devices", "cpu,cpu", "--at-once", 4)
    assert run.wait() == 1, run.stderr
    assert_complete(two)

    def in_order(file: Path) -> list[dict[str, object]]:
        return sorted((lasting(row) for row in rows(file)), key=lambda row: row["file_name"])

    assert in_order(one) == in_order(two)
    assert not run.family()


def test_a_worker_that_dies_gives_its_clips_back_and_is_started_again(
    lvspec: Processes, many: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    run = lvspec.start(tmp_path, "caption", many, "--out", out, "--workers", 2, "--at-once", 4)
    assert until(lambda: whole_rows(out) >= 5)
    # The other one may be loading yet, on a busy machine: that one's end would be the run's.
    os.kill(max(workers_of(run), key=processor_seconds), signal.SIGKILL)
    assert run.wait() == 1
    assert_complete(out)


def workers_of(run: Run) -> list[int]:
    return run.running("batch.worker")


def test_workers_that_die_while_they_load_leave_the_work_to_the_others(
    lvspec: Processes, many: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    run = lvspec.start(tmp_path, "caption", many, "--out", out, "--workers", 2)
    assert until(lambda: whole_rows(out) >= 3)
    first = set(workers_of(run))
    os.kill(max(first, key=processor_seconds), signal.SIGKILL)
    assert until(lambda: bool(set(workers_of(run)) - first))
    (successor,) = set(workers_of(run)) - first
    os.kill(successor, signal.SIGKILL)
    assert run.wait() == 1
    assert "a worker ended while it loaded the pair (SIGKILL): 1 go on" in run.stderr
    assert len(rows(out)) == COUNT
    assert [row["file_name"] for row in rows(out) if row["status"] == "error"].count("07.mp4") == 1


def test_no_worker_left_to_load_is_one_error(lvspec: Processes, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run = lvspec.start(tmp_path, "caption", many, "--out", out, "--workers", 2)
    assert until(lambda: len(workers_of(run)) == 2)
    for pid in workers_of(run):
        os.kill(pid, signal.SIGKILL)
    assert run.wait() == 3
    assert run.stderr.count("error: a worker ended while it loaded the pair (SIGKILL)") == 1
    assert not rows(out)


@pytest.mark.parametrize("files", [24])
def test_few_open_files_mean_fewer_decoders(
    lvspec: Processes, many: Path, tmp_path: Path, files: int
) -> None:
    out, limits = tmp_path / "out.jsonl", ((resource.RLIMIT_NOFILE, files),)
    run = lvspec.start(tmp_path, "caption", many, "--out", out, "--decode-workers", 8, limits=limits)
    assert run.wait() == 1, run.stderr
    assert_complete(out)


def test_too_few_open_files_stop_with_one_error_and_leave_the_clips_undone(
    lvspec: Processes, many: Path, tmp_path: Path
) -> None:
    out, limits = tmp_path / "out.jsonl", ((resource.RLIMIT_NOFILE, 13),)
    run = lvspec.start(tmp_path, "caption", many, "--out", out, limits=limits)
    assert run.wait() == 3, run.stderr
    assert run.stderr.count("error: ") == 1
    assert "(Too many open files)" in run.stderr
    assert "ulimit -n" in run.stderr
    assert not rows(out)
    assert lvspec.start(tmp_path, "caption", many, "--out", out).wait() == 1
    assert_complete(out)


@pytest.mark.parametrize("files", [5, 6, 9])
def test_hardly_any_open_files_are_said_to_be_too_few_whatever_could_not_be_opened(
    tiny_shell: Shell, video_file: Path, tmp_path: Path, files: int
) -> None:
    """The output, a model's folder, a decoder: no remedy speaks of a folder or of another file."""
    limit = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))"
    done = tiny_shell.run("caption", video_file, "--out", tmp_path / "out.jsonl", first=limit)
    assert done.returncode == 3, done.stderr
    cause, remedy = done.stderr.splitlines()[-2:]
    assert cause.startswith("error: ")
    assert "Too many open files" in cause
    assert remedy.startswith("try: raise the limit (ulimit -n")
    assert done.stderr.count("error: ") == 1


def test_no_room_for_temporary_files_costs_no_clip(lvspec: Processes, many: Path, tmp_path: Path) -> None:
    # No file may be written at all: Python finds no folder for temporary ones then. Pipes are no files.
    limits = ((resource.RLIMIT_FSIZE, 0),)
    os.mkfifo(tmp_path / "stderr.txt")
    os.mkfifo(tmp_path / "stdout.txt")
    read = [os.open(tmp_path / name, os.O_RDWR | os.O_NONBLOCK) for name in ("stdout.txt", "stderr.txt")]
    run = lvspec.start(tmp_path, "caption", many / "00.mp4", many / "01.mp4", "--out", "-", limits=limits)
    assert run.wait() == 0, os.read(read[1], 65536)
    assert [json.loads(line)["status"] for line in os.read(read[0], 65536).splitlines()] == ["ok", "ok"]
    for descriptor in read:
        os.close(descriptor)


def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_run(
    lvspec: Processes, many: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "clips", tmp_path / "out.jsonl"
    folder.mkdir()
    for name in ("00.mp4", "01.mp4"):
        (folder / name).write_bytes((many / name).read_bytes())
    run = lvspec.start(tmp_path, "caption", folder, "--out", out)
    assert until(lambda: size_of(tmp_path / "stderr.txt") > 0 and "2 to do" in run.stderr)
    (folder / "new").write_bytes((many / "05.mp4").read_bytes())
    (folder / "new").rename(folder / "01.mp4")
    assert run.wait() == 1
    assert run.stderr.count("01.mp4; run it again") == 1
    assert [row["file_name"] for row in rows(out)] == ["00.mp4"]
    assert lvspec.start(tmp_path, "caption", folder, "--out", out).wait() == 0
    first, second = rows(out)
    assert second["file_name"] == "01.mp4"
    assert second["key"] != first["key"]


def test_stopping_ends_every_worker(lvspec: Processes, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run = lvspec.start(tmp_path, "caption", many, "--out", out, "--workers", 2)
    assert until(lambda: whole_rows(out) >= 2)
    run.kill(signal.SIGTERM)
    assert run.wait() == 143
    assert run.stderr.splitlines()[-1] == "interrupted"
    assert until(lambda: not run.family(), 10)
    assert len(rows(out)) == whole_rows(out) < COUNT


@pytest.mark.thorough
def test_memory_stays_flat_over_many_clips(lvspec: Processes, tmp_path: Path) -> None:
    """100 clips by default; ``LVSPEC_TEST_CLIPS=2000`` for more."""
    count = int(os.environ.get("LVSPEC_TEST_CLIPS", "100"))
    folder, out = tmp_path / "clips", tmp_path / "out.jsonl"
    folder.mkdir()
    clip = write_video(tmp_path / "clip.mp4", seconds=0.5).read_bytes()
    for number in range(count):
        (folder / f"{number:05}.mp4").write_bytes(clip)
    run = lvspec.start(tmp_path, "caption", folder, "--out", out, "--max-new-tokens", 12)
    assert until(lambda: whole_rows(out) >= count // 4, 600)
    early = resident(run.pid)
    assert until(lambda: whole_rows(out) >= count - 5, 1800)
    late = resident(run.pid)
    assert run.wait() == 0
    assert len({row["key"] for row in rows(out)}) == count
    assert late - early < 32 * 2**20, f"{(late - early) / 2**20:.0f} MiB more than after a quarter of them"


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024
