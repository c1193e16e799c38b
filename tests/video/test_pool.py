"""Decoding ahead: order, what one bad file costs, the bound on memory, and that no process stays."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import weakref
from contextlib import suppress
from itertools import islice, repeat
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvspec_cli.errors import (
    DamagedVideoError,
    DecodeTimeoutError,
    MachineError,
    NoInputError,
    NotAVideoError,
    UsageError,
)
from lvspec_cli.system import start_child
from lvspec_cli.types import VideoInfo, VideoRequest
from lvspec_cli.video import decode as child_module
from lvspec_cli.video import pool as pool_module
from lvspec_cli.video.decode import Child, Clock, left_after
from lvspec_cli.video.pool import DecodePool, Room
from tests.video.clips import make_clip, numbers
from tests.video.test_child import is_gone

PLENTY = 1 << 30


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Eight files that differ in the number of their frames."""
    folder = tmp_path_factory.mktemp("pool")
    return [make_clip(folder / f"{count}.mp4", count=count) for count in range(3, 27, 3)]


@pytest.fixture
def started(monkeypatch):
    """The process ids of the children, as they start."""
    pids = []

    def noted(*arguments):
        process = start_child(*arguments)
        pids.append(process.pid)
        return process

    monkeypatch.setattr(child_module, "start_child", noted)
    return pids


@pytest.fixture
def strike(monkeypatch):
    """Sends a signal to the child that gets the file, each time or the first time, just before it does."""

    def at(path, number, *, always=True):
        begin = Child.begin
        struck: set[int] = set()

        def begin_struck(self, job, descriptor):
            if job.request.path == path and (always or not struck):
                struck.add(self.pid)
                os.kill(self.pid, number)
            begin(self, job, descriptor)

        monkeypatch.setattr(Child, "begin", begin_struck)

    return at


def everything(path, **fields):
    return VideoRequest(path, max_frames=64, **fields)


def frame_counts(results):
    return [result.error or len(result.clip.timestamps) for result in results]


def test_clips_come_whole_and_in_the_order_asked_for(clips, started):
    requests = [everything(path) for path in [*clips, *reversed(clips)]]
    with DecodePool(3, PLENTY) as pool:
        results: Any = list(pool.clips(requests))
    assert [result.request for result in results] == requests
    for result in results:
        assert result.error is None
        assert numbers(result.clip.frames) == list(range(int(result.clip.path.stem)))
        assert result.clip.frames_expected == len(result.clip.timestamps)
        assert 0 < result.clip.decode_seconds < 60
    assert len(started) <= 3


def test_whoever_is_late_the_order_stays(clips, started):
    done = threading.Event()
    dice = random.Random(5)

    def hold_up():
        while not done.is_set():
            for pid in started[:]:
                with suppress(ProcessLookupError):
                    os.kill(pid, dice.choice([signal.SIGSTOP, signal.SIGCONT]))
            time.sleep(dice.uniform(0, 0.02))

    thread = threading.Thread(target=hold_up)
    thread.start()
    try:
        with DecodePool(3, 100_000) as pool:
            results: Any = list(pool.clips(everything(path) for path in clips * 2))
    finally:
        done.set()
        thread.join()
    assert frame_counts(results) == [*range(3, 27, 3)] * 2


def test_a_file_that_cannot_be_read_costs_only_its_place(clips, tmp_path, started):
    text, missing = tmp_path / "text.mp4", tmp_path / "missing.mp4"
    text.write_text("What happens?" * 400)
    requests = [
        everything(clips[0]),
        everything(text),
        everything(missing),
        everything(clips[1], start=60.0),
        everything(clips[1], start=2.0, end=1.0),
        everything(tmp_path),
        everything(clips[2]),
    ]
    with DecodePool(1, 0) as pool:
        results: Any = list(pool.clips(requests))
    kinds = [NotAVideoError, NoInputError, UsageError, UsageError, NoInputError]
    assert [type(result.error) for result in results[1:-1]] == kinds
    assert all(result.clip is None and result.error.remedy for result in results[1:-1])
    assert all(result.error.__traceback__ is None for result in results[1:-1])
    assert (len(results[0].clip.timestamps), len(results[-1].clip.timestamps)) == (3, 9)
    assert len(started) == 1


def test_a_child_is_replaced_after_some_jobs(clips, started, monkeypatch):
    monkeypatch.setattr(pool_module, "JOBS_PER_CHILD", 3)
    with DecodePool(1, PLENTY) as pool:
        assert len(list(pool.clips(everything(clips[0]) for _ in range(7)))) == 7
    assert len(started) == 3
    assert all(is_gone(pid) for pid in started)


def test_a_stopped_child_becomes_a_timeout_and_the_others_go_on(clips, strike, started):
    strike(clips[2], signal.SIGSTOP)
    requests = [everything(path, timeout=0.5 if path == clips[2] else 120.0) for path in clips]
    with DecodePool(2, PLENTY) as pool:
        results: Any = list(pool.clips(requests))
    assert type(results[2].error) is DecodeTimeoutError
    assert f"longer than 0.5 s: {clips[2]}" in results[2].error.cause
    assert frame_counts(results[:2] + results[3:]) == [3, 6, *range(12, 27, 3)]
    assert all(is_gone(pid) for pid in started)


def test_a_crash_costs_one_clip(clips, strike):
    strike(clips[1], signal.SIGSEGV)
    with DecodePool(1, PLENTY) as pool:
        results: Any = list(pool.clips(everything(path) for path in clips[:4]))
    assert type(results[1].error) is DamagedVideoError
    assert "crashed (SIGSEGV)" in results[1].error.cause
    assert frame_counts(results[:1] + results[2:]) == [3, 9, 12]


def test_a_crash_that_an_earlier_video_may_have_caused_is_tried_again(clips, strike, started):
    strike(clips[1], signal.SIGKILL, always=False)
    with DecodePool(1, PLENTY) as pool:
        assert frame_counts(pool.clips(everything(path) for path in clips[:4])) == [3, 6, 9, 12]
    assert len(started) == 2


def start_at_most(monkeypatch, most):
    """The machine has room for so many children at a time."""
    running: list[Any] = []

    def limited(*arguments):
        if sum(process.poll() is None for process in running) >= most:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        running.append(start_child(*arguments))
        return running[-1]

    monkeypatch.setattr(child_module, "start_child", limited)


def test_no_process_to_be_had_is_no_error_of_the_clip(clips, monkeypatch):
    start_at_most(monkeypatch, 0)
    said = r"^no decoder can be started \(Resource temporarily unavailable\)$"
    with DecodePool(3, PLENTY) as pool:
        with pytest.raises(MachineError, match=said):
            list(pool.clips(everything(path) for path in clips))
        with pytest.raises(MachineError, match=said):
            list(pool.probes(clips))


@pytest.mark.parametrize("most_bytes", [PLENTY, 0])
def test_where_the_machine_has_room_for_one_process_it_reads_all(clips, monkeypatch, most_bytes):
    start_at_most(monkeypatch, 1)
    monkeypatch.setattr(pool_module, "JOBS_PER_CHILD", 3)
    requests = [everything(path) for path in clips * 2]
    requests.insert(3, everything(clips[0], start=2.0, end=1.0))
    with DecodePool(4, most_bytes) as pool:
        counts = frame_counts(pool.clips(requests))
        assert type(counts.pop(3)) is UsageError
        assert counts == [*range(3, 27, 3)] * 2
        infos: Any = list(pool.probes(clips))
        assert [info.begins for info in infos] == [0.0] * len(clips)


@pytest.mark.usefixtures("cold")
def test_a_child_that_ends_before_it_has_the_file_is_no_error_of_the_clip(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "av.py").write_text("raise OSError(24, 'Too many open files')")
    with DecodePool(2, PLENTY) as pool, pytest.raises(MachineError, match="Too many open files"):
        list(pool.clips(everything(path) for path in clips))


def test_a_child_that_is_killed_before_it_has_the_file_is_started_again(clips, strike, started):
    strike(clips[0], signal.SIGKILL, always=False)
    with DecodePool(1, PLENTY) as pool:
        assert frame_counts(pool.clips(everything(path) for path in clips[:2])) == [3, 6]
    assert len(started) == 2


def test_without_a_folder_for_temporary_files_it_reads_as_ever(clips, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with DecodePool(1, PLENTY) as pool:
        assert frame_counts(pool.clips([everything(clips[0])])) == [3]


def test_requests_are_pulled_a_few_ahead(clips):
    pulled = []

    def requests():
        for number in range(100):
            pulled.append(number)
            yield everything(clips[0])

    with DecodePool(2, PLENTY) as pool:
        for taken, result in enumerate(islice(pool.clips(requests()), 5), 1):
            assert result.clip is not None
            assert taken <= len(pulled) <= taken + 3


def test_without_workers_nothing_is_read_ahead(clips, started):
    pulled = []

    def requests():
        for path in clips[:4]:
            pulled.append(path)
            yield everything(path)

    with DecodePool(0, PLENTY) as pool:
        for taken, result in enumerate(pool.clips(requests()), 1):
            assert result.clip and len(result.clip.timestamps) == 3 * taken == 3 * len(pulled)
    assert len(started) == 1


def test_what_was_taken_is_kept_by_its_taker_alone(clips):
    with DecodePool(2, PLENTY) as pool:
        results: Any = pool.clips(repeat(everything(clips[-1])))
        for _ in range(5):
            clip = weakref.ref(next(results).clip)
            assert clip() is None


def test_a_taker_that_stops_early_leaves_no_process(clips, started):
    pool = DecodePool(2, 0)
    for _ in pool.clips(repeat(everything(clips[-1]))):
        break
    assert all(is_gone(pid) for pid in started)
    with pool:
        results: Any = pool.clips(repeat(everything(clips[-1])))
        next(results)
        os.kill(started[-1], signal.SIGSTOP)
    assert all(is_gone(pid) for pid in started)
    assert list(results) == []


def test_the_wish_to_stop_is_heard_while_a_child_hangs(clips, strike, started):
    strike(clips[1], signal.SIGSTOP)
    wish = threading.Event()
    with DecodePool(1, PLENTY) as pool:
        requests = (everything(path, timeout=None) for path in clips)
        results: Any = pool.clips(requests, interrupted=wish.is_set)
        assert next(results).clip is not None
        threading.Timer(0.2, wish.set).start()
        began = time.monotonic()
        assert list(results) == []
        assert time.monotonic() - began < 5
        assert all(is_gone(pid) for pid in started)


@pytest.mark.usefixtures("listening")
def test_ctrl_c_while_a_child_hangs_leaves_no_process(clips, strike, started):
    strike(clips[1], signal.SIGSTOP)
    with pytest.raises(KeyboardInterrupt), DecodePool(1, PLENTY) as pool:
        for _ in pool.clips(everything(path, timeout=None) for path in clips):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert all(is_gone(pid) for pid in started)


def test_no_child_outlives_a_parent_that_is_killed(clips):
    code = f"""
import sys
from itertools import repeat
from pathlib import Path
from lvspec_cli.types import VideoRequest
from lvspec_cli.video.pool import DecodePool
with DecodePool(2, 0) as pool:
    results = pool.clips(repeat(VideoRequest(Path({str(clips[-1])!r}))))
    for _ in range(3):
        next(results)
    print("ready", flush=True)
    sys.stdin.read()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout
    assert parent.stdout.readline() == b"ready\n"
    listed = subprocess.run(["pgrep", "-P", str(parent.pid)], capture_output=True, check=True)
    children = [int(pid) for pid in listed.stdout.split()]
    assert len(children) == 2
    os.kill(children[0], signal.SIGSTOP)
    parent.kill()
    parent.wait()
    assert all(is_gone(pid) for pid in children)


def test_being_kept_waiting_is_no_timeout(clips):
    requests = [everything(path, timeout=1.0 if path == clips[2] else 120.0) for path in clips[:4]]
    with DecodePool(1, 0) as pool:
        results: Any = pool.clips(requests)
        taken: list[Any] = [next(results)]
        time.sleep(1.5)  # the third waits for the second to be taken
        taken += results
    assert frame_counts(taken) == [3, 6, 9, 12]
    assert taken[2].clip.decode_seconds < 1.0


def test_who_decodes_takes_cores_and_who_waits_does_not(clips, strike):
    def come_to(wanted, look):
        until = time.monotonic() + 60
        while look() != wanted and time.monotonic() < until:
            time.sleep(0.01)
        return look() == wanted

    strike(clips[4], signal.SIGSTOP)
    with DecodePool(2, 0, threads=3) as pool:
        assert pool.cores_taken == 0
        results: Any = pool.clips([everything(path, timeout=5.0) for path in clips[:5]])
        found = [next(results)]
        (room,) = (crew.room for crew in pool._crews)
        assert come_to(2, lambda: room.waiting), "the third and the fourth, until the second is taken"
        assert pool.cores_taken == 0
        found.append(next(results))
        assert come_to(3, lambda: pool.cores_taken), "the fifth hangs at work"
        found += results
        assert frame_counts(found[:4]) == [3, 6, 9, 12]
        assert type(found[4].error) is DecodeTimeoutError
        assert pool.cores_taken == 0


def test_headers_come_in_order(clips, tmp_path, started):
    (tmp_path / "empty.mp4").touch()
    with DecodePool(2, 0) as pool:
        results: Any = list(pool.probes([*clips, tmp_path / "empty.mp4", *clips]))
    assert type(results[8]) is NotAVideoError
    assert results[8].__traceback__ is None
    found = [(info.path, round(info.duration * 12)) for info in results[:8] + results[9:]]
    assert found == [(path, int(path.stem)) for path in clips] * 2
    assert len(started) <= 2


def test_a_file_is_looked_at_no_longer_than_the_taker_wants(clips):
    with DecodePool(1, 0) as pool:
        hurried, patient = (next(pool.probes(clips, timeout=timeout)) for timeout in (1e-4, None))
    assert type(hurried) is DecodeTimeoutError
    assert isinstance(patient, VideoInfo)


def test_a_slow_taker_keeps_memory_bounded(tmp_path):
    path = make_clip(tmp_path / "large.mp4", size=(640, 480))
    size = 640 * 480 * 3 * 24

    def peak(max_bytes, *, enough, seconds):
        """Bytes, of a taker that waits after each of some clips until there are ``enough``."""
        tracemalloc.start()  # numpy tells it of every array
        try:
            with DecodePool(4, max_bytes) as pool:
                for decoded in islice(pool.clips(repeat(everything(path))), 4):
                    assert decoded.clip and decoded.clip.frames.nbytes == size
                    until = time.monotonic() + seconds
                    while tracemalloc.get_traced_memory()[1] < enough and time.monotonic() < until:
                        time.sleep(0.02)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(100 * size, enough=7 * size, seconds=300) >= 7 * size
    # One waits, one is next, and the taker has two for the moment in which it changes them.
    assert 2 * size < peak(2 * size - 1, enough=7 * size, seconds=1) < 4.3 * size


@settings(max_examples=40)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=12), st.integers(0, 150), st.randoms())
def test_room_is_bounded_and_everybody_gets_on(sizes, most, dice):
    room = Room(most)
    entered = [threading.Event() for _ in sizes]
    over = []

    def enter(number):
        room.enter(number, sizes[number])
        over.append(room.held > most + max(sizes))
        entered[number].set()

    order = list(range(len(sizes)))
    dice.shuffle(order)
    threads = [threading.Thread(target=enter, args=(number,), daemon=True) for number in order]
    for thread in threads:
        thread.start()
    for number, size in enumerate(sizes):
        assert entered[number].wait(10)
        assert room.held <= most + size
        if dice.random() < 0.3:
            room.leave(number)  # it failed
        room.take(number)
    for thread in threads:
        thread.join(10)
    assert room.held == 0
    assert over == [False] * len(sizes)


def test_a_clock_rings_once_it_has_run_for_its_limit():
    rings = []
    clock = Clock(0.3, lambda: rings.append(time.monotonic()))
    clock.start()
    clock.stop()
    time.sleep(0.5)
    assert (rings, clock.rang) == ([], False)
    assert clock.seconds < 0.3
    clock.start()
    time.sleep(0.6)
    assert (len(rings), clock.rang) == (1, True)
    clock.stop()
    assert clock.seconds > 0.5


def test_a_clock_may_have_no_limit_or_one_beyond_all_time(recwarn):
    for limit in (None, 1e300, float("inf")):
        clock = Clock(limit, lambda: pytest.fail("it rang"))
        clock.start()
        time.sleep(0.02)
        clock.stop()
        assert clock.seconds > 0


@pytest.mark.parametrize(
    ("left", "planned", "passed", "wanted"),
    [
        (120.0, 5.0, 5.001, 114.999),
        (120.0, 5.0, 9.0, 111.0),  # a busy machine
        (120.0, 5.0, 600.0, 120.0),  # stopped meanwhile
        (3.0, 3.0, 3.0, 0.0),
        (3.0, 3.0, 600.0, 3.0),
    ],
)
def test_a_stretch_in_which_the_process_was_stopped_does_not_count(left, planned, passed, wanted):
    assert left_after(left, planned, passed) == pytest.approx(wanted)


def test_a_limit_of_many_stretches_is_kept(monkeypatch):
    monkeypatch.setattr("lvspec_cli.video.decode.STRETCH", 0.05)
    rang = threading.Event()
    began = time.monotonic()
    clock = Clock(0.3, rang.set)
    clock.start()
    assert rang.wait(60)
    assert clock.rang
    assert time.monotonic() - began >= 0.29
