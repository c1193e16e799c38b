"""The decoding child: what ends it, what it may open, and what it never imports."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lvspec_cli.errors import DamagedVideoError, DecodeTimeoutError
from lvspec_cli.system import start_child
from lvspec_cli.types import VideoRequest
from lvspec_cli.video import decode as child_module
from lvspec_cli.video.decode import Child, decoding_child, probe_job, read_clip
from lvspec_cli.video.decord_frames import _one_more_file
from lvspec_cli.video.messages import Job
from tests.video.clips import make_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("child") / "clip.mp4", size=(640, 360))


def read_on(child):
    while True:
        child.receive_into(memoryview(bytearray(640 * 360 * 3)))
        child.receive()


def started(clip):
    """A child that has served: no deadline has to hold its start."""
    child = Child()
    with decoding_child(probe_job(clip), lambda: child, lambda served: None):
        child.receive()
    return child


def is_gone(pid, seconds=60.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_a_hung_child_is_ended_at_the_timeout(clip):
    with decoding_child(Job("read", VideoRequest(clip, timeout=1.5)), lambda: started(clip)) as child:
        child.receive()
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(DecodeTimeoutError, match=r"longer than 1\.5 s") as caught:
            read_on(child)
    assert "--decode-timeout" in caught.value.remedy
    assert is_gone(child.pid)


def test_a_frame_that_hangs_half_sent_is_ended_too(clip):
    # The socket holds less than a frame: the child is stopped while it writes one.
    with decoding_child(Job("read", VideoRequest(clip, timeout=1.5)), lambda: started(clip)) as child:
        child.receive()
        child.receive()
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(DecodeTimeoutError):
            read_on(child)


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "was killed"), (signal.SIGSEGV, "crashed \\(SIGSEGV\\)")]
)
def test_a_child_that_dies_is_an_error_of_the_file(clip, number, words):
    with decoding_child(Job("read", VideoRequest(clip))) as child:
        child.receive()
        os.kill(child.pid, number)
        with pytest.raises(DamagedVideoError, match=words):
            read_on(child)


@pytest.mark.usefixtures("listening")
def test_ctrl_c_in_the_parent_ends_the_child(clip):
    child_at_work = decoding_child(Job("read", VideoRequest(clip, timeout=30.0)))
    with pytest.raises(KeyboardInterrupt), child_at_work as child:
        child.receive()
        os.kill(child.pid, signal.SIGSTOP)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        read_on(child)
    assert is_gone(child.pid)


def test_the_terminals_ctrl_c_does_not_reach_the_child(clip):
    with decoding_child(Job("read", VideoRequest(clip))) as child:
        child.receive()
        assert os.getpgid(child.pid) == child.pid != os.getpgrp()
        os.kill(child.pid, signal.SIGINT)
        os.kill(child.pid, 0)
        assert child.receive() == 0.0


def test_a_callback_that_fails_ends_the_child(clip, monkeypatch):
    pids = []

    def started(*arguments):
        process = start_child(*arguments)
        pids.append(process.pid)
        return process

    monkeypatch.setattr(child_module, "start_child", started)

    def fail(done, expected):
        raise RuntimeError("of the caller")

    with pytest.raises(RuntimeError, match="of the caller"):
        read_clip(VideoRequest(clip), progress=fail)
    assert is_gone(pids[0])


def test_the_child_ends_when_its_parent_is_killed(clip):
    code = f"""
import sys
from pathlib import Path
from lvspec_cli.types import VideoRequest
from lvspec_cli.video.decode import decoding_child
from lvspec_cli.video.messages import Job
with decoding_child(Job("read", VideoRequest(Path({str(clip)!r})))) as child:
    child.receive()
    print(child.pid, flush=True)
    sys.stdin.read()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert is_gone(pid)


def test_neither_parent_nor_child_imports_torch(clip):
    """The child's modules as it would have them, in a process that can be asked."""
    code = """
import sys
import lvspec_cli.video.decode, lvspec_cli.video.decode
assert not {"av", "torch", "transformers"} & set(sys.modules), "parent"
import lvspec_cli.video.worker, lvspec_cli.video.reading
assert not {"torch", "transformers", "rich", "typer", "decord"} & set(sys.modules), "child"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("cold")
def test_modules_of_the_current_folder_are_not_the_childs(clip, tmp_path, monkeypatch):
    (tmp_path / "av.py").write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)
    assert len(read_clip(VideoRequest(clip, max_frames=1)).timestamps) == 1


def test_nothing_is_written_to_the_terminal(clip, tmp_path, capfd):
    data = bytearray(clip.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = b"\xff" * 400
    (tmp_path / "hurt.mp4").write_bytes(data)
    for decoder in ("pyav", "decord"):
        read_clip(VideoRequest(tmp_path / "hurt.mp4", decoder=decoder))
    assert capfd.readouterr() == ("", "")


def test_while_decord_reads_no_second_file_can_be_opened(clip):
    with _one_more_file(), clip.open("rb"), pytest.raises(OSError, match="Too many open files"):
        os.open(clip, os.O_RDONLY)
    clip.open("rb").close()
