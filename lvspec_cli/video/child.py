"""The parent's side of the decoding child: start it, talk, and end it in every case."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

from lvspec_cli.errors import DamagedVideoError, DecodeTimeoutError, LvspecError, VideoError
from lvspec_cli.video.messages import Job
from lvspec_cli.video.source import open_local, shown


class Child:
    """A decoding process at work on one Job."""

    def __init__(
        self, process: subprocess.Popen[bytes], connection: Connection, job: Job, errors: IO[bytes]
    ) -> None:
        self._process = process
        self._connection = connection
        self._job = job
        self._errors = errors
        self._timed_out = threading.Event()

    @property
    def pid(self) -> int:
        return self._process.pid

    def receive(self) -> Any:
        """The next message. Raises the error that the child sends, or one that says how it ended."""
        try:
            message = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if isinstance(message, LvspecError):
            raise message
        return message

    def receive_into(self, buffer: memoryview) -> None:
        """The next message's bytes, straight into ``buffer``."""
        try:
            self._connection.recv_bytes_into(buffer)
        except (EOFError, OSError) as error:
            raise self._ended() from error

    def time_out(self) -> None:
        self._timed_out.set()
        self._process.kill()

    def _ended(self) -> VideoError:
        code = self._process.wait()
        name = shown(self._job.request.path)
        if self._timed_out.is_set():
            return DecodeTimeoutError(
                f"decoding took longer than {self._job.request.timeout:g} s: {name}",
                "raise --decode-timeout, or take less with --start and --end",
            )
        if code == -signal.SIGKILL:
            return DamagedVideoError(
                f"the decoder was killed, for want of memory perhaps: {name}",
                "lower --frames or --max-pixels",
            )
        if code < 0:
            return DamagedVideoError(
                f"the decoder crashed ({signal.Signals(-code).name}): {name}",
                "convert the file to H.264 in MP4 first",
            )
        return VideoError(
            f"the decoder failed ({self._last_error()}): {name}", "report it with the file if you can"
        )

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read()[-4096:].decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"


@contextmanager
def decoding_child(job: Job) -> Iterator[Child]:
    """A child at work on ``job``, killed at the timeout and when the block is left, however that happens."""
    descriptor = open_local(job.request.path)
    ours, theirs = Pipe()
    with ours, tempfile.TemporaryFile() as errors:
        try:
            with theirs:
                process = _start(theirs.fileno(), descriptor, errors)
        finally:
            os.close(descriptor)
        child = Child(process, ours, job, errors)
        timer = threading.Timer(job.request.timeout or 0.0, child.time_out)
        timer.daemon = True
        try:
            if job.request.timeout is not None:
                timer.start()
            with suppress(OSError):  # receiving will say why it is gone
                ours.send(job)
            yield child
        finally:
            timer.cancel()
            process.kill()
            process.wait()


def _start(socket: int, descriptor: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    # Not multiprocessing: its children import the parent's main module, with all that it imports. A process
    # group of its own keeps the terminal's Ctrl-C from it; -P keeps the current folder's modules out.
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", "-m", "lvspec_cli.video.worker", str(socket), str(descriptor)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        pass_fds=(socket, descriptor),
        process_group=0,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},  # noqa: PTH109
    )
