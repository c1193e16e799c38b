"""The entry point to video: decodes a Clip or probes a file, in a child process."""

from __future__ import annotations

import io
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from lvspec_cli.errors import (
    ENOUGH,
    DamagedVideoError,
    DecodeTimeoutError,
    LvspecError,
    MachineError,
    VideoError,
)
from lvspec_cli.system import connect_child, has_crashed, how_ended, send_file, socket_of, start_child
from lvspec_cli.types import Clip, VideoInfo, VideoRequest
from lvspec_cli.video.messages import LAST, Finished, Job, Opened, Taken
from lvspec_cli.video.sample import check_request
from lvspec_cli.video.source import open_local, shown


def read_clip(request: VideoRequest, *, progress: Callable[[int, int], None] | None = None) -> Clip:
    """Decode the frames that ``request`` asks for, in a child process.

    ``progress`` is called with the frames read so far and the frames expected. With neither ``fps`` nor
    ``max_frames`` 2 frames a second are taken, evenly spread 128 at most; without ``max_pixels`` a frame
    has at most 602,112. Raises UsageError, NoInputError and VideoError with its kinds.
    """
    check_request(request)
    with decoding_child(Job("read", request)) as child:
        return receive_clip(child, request, progress=progress)


def receive_clip(
    child: Child,
    request: VideoRequest,
    *,
    admit: Callable[[int], None] = lambda size: None,
    progress: Callable[[int, int], None] | None = None,
) -> Clip:
    """The clip that ``child`` is decoding for ``request``.

    ``admit`` is called with the bytes of its frames before memory is taken for them.
    """
    opened: Opened = child.receive()
    admit(opened.expected * opened.frame_bytes)
    frames, times, finished = _receive_frames(child, opened, progress or (lambda done, expected: None))
    return Clip(
        path=request.path,
        frames=frames,
        timestamps=tuple(times),
        frame_rate=finished.frame_rate,
        duration=finished.duration,
        begins=finished.begins,
        start=request.start or 0.0,
        end=request.end if request.end is not None else finished.duration,
        source_width=opened.source_width,
        source_height=opened.source_height,
        frames_expected=opened.expected,
        decoder=finished.decoder,
        decode_seconds=child.seconds,
        warnings=finished.warnings,
    )


def _receive_frames(
    child: Child, opened: Opened, progress: Callable[[int, int], None]
) -> tuple[np.ndarray, list[float], Finished]:
    frames = np.empty((opened.expected, opened.height, opened.width, 3), np.uint8)
    times: list[float] = []
    progress(0, opened.expected)
    while not isinstance(message := child.receive(), Finished):
        child.receive_into(memoryview(frames[len(times)].reshape(-1)))
        times.append(message)
        progress(len(times), opened.expected)
    return frames[: len(times)], times, message


TIMEOUT = 20.0  # seconds


def probe(path: Path, *, timeout: float = TIMEOUT) -> VideoInfo:
    """Format, size and rate as the header of ``path`` has them, times as its packets do; by a child process.

    Raises NoInputError and VideoError with its kinds.
    """
    with decoding_child(probe_job(path, timeout)) as child:
        info: VideoInfo = child.receive()
        return info


def probe_job(path: Path, timeout: float | None = TIMEOUT) -> Job:
    return Job("probe", VideoRequest(path, timeout=timeout))


class Child:
    """A decoding process that serves one Job after another.

    One thread at a time may talk to it and close it, any may kill it. It dies with the thread that made it.
    """

    def __init__(self) -> None:
        self.jobs = 0  # that it was given
        self.crashed = False  # it ended by itself before its job did
        self._is_done = True
        self.is_taken = False  # its job: what goes wrong from then on is of the file
        self._clock = Clock(None, self.kill)
        with ExitStack() as stack:
            ours, theirs = connect_child()
            self._connection = stack.enter_context(ours)
            with theirs:
                self._errors: IO[bytes] = stack.enter_context(_for_last_words())
                self._socket = stack.enter_context(socket_of(ours))
                self._process = start_child("lvspec_cli.video.worker", theirs, self._errors)
            stack.callback(self._process.wait)
            stack.callback(self._process.kill)
            self._resources = stack.pop_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_idle(self) -> bool:
        """Its job is done, and it can be given another."""
        return self._is_done and not self._clock.rang and self._process.poll() is None

    @property
    def seconds(self) -> float:
        """How long its job has taken, without what it was kept waiting."""
        return self._clock.seconds

    def begin(self, job: Job, descriptor: int) -> None:
        """Gives it ``job`` and the open file, and kills it when that takes longer than the request allows."""
        self._job, self._is_done, self.is_taken = job, False, False
        self.jobs += 1
        self._clock = Clock(job.request.timeout, self.kill)
        self._clock.start()
        with suppress(OSError):  # receiving will say why it is gone
            self._connection.send(job)
            send_file(self._connection, descriptor, self.pid)

    def receive(self) -> Any:
        """The next message. Raises the error that the child sends, or one that says how it ended."""
        try:
            message = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if isinstance(message, Taken):
            self.is_taken = True
            return self.receive()
        if isinstance(message, LAST):
            self._clock.stop()
            self._is_done = True
        if isinstance(message, LvspecError):
            raise message
        return message

    def receive_into(self, buffer: memoryview) -> None:
        """Receives as many bytes as ``buffer`` has, without a copy."""
        while buffer:
            try:
                # One call a frame: each return would wait for whichever thread holds the interpreter.
                count = self._socket.recv_into(buffer, 0, socket.MSG_WAITALL)
            except OSError as error:
                raise self._ended() from error
            if not count:
                raise self._ended()
            buffer = buffer[count:]

    @contextmanager
    def kept_waiting(self) -> Iterator[None]:
        """The time in the block does not count against the timeout."""
        self._clock.stop()
        try:
            yield
        finally:
            self._clock.start()

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._clock.stop()
        self._resources.close()

    def _ended(self) -> LvspecError:
        code = self._process.wait()
        name = shown(self._job.request.path)
        if self._clock.rang:
            return DecodeTimeoutError(
                f"decoding took longer than {self._job.request.timeout:g} s: {name}",
                "raise --decode-timeout, or take less with --start and --end",
            )
        self.crashed = True
        if how_ended(code) == "SIGKILL":
            return DamagedVideoError(
                f"the decoder was killed, for want of memory perhaps: {name}",
                "lower --frames or --max-pixels",
            )
        if has_crashed(code):
            return DamagedVideoError(
                f"the decoder crashed ({how_ended(code)}): {name}",
                "convert the file to H.264 in MP4 first",
            )
        if not self.is_taken:  # the file has not been looked at
            return MachineError(f"no decoder can be started ({self._last_error()})", ENOUGH)
        return VideoError(
            f"the decoder failed ({self._last_error()}): {name}", "report it with the file if you can"
        )

    def _last_error(self) -> str:
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4096))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"


@contextmanager
def decoding_child(
    job: Job, take: Callable[[], Child] = Child, give_back: Callable[[Child], None] = Child.close
) -> Iterator[Child]:
    """A child at work on ``job``; it is given back when the block is left, however that happens.

    Without ``take`` and ``give_back`` it is a new one, ended with the block. Raises what ``open_local`` does,
    and MachineError when no process can be started.
    """
    with ExitStack() as stack:
        with io.FileIO(open_local(job.request.path)) as file:
            try:
                child = take()
            except OSError as error:
                raise MachineError(f"no decoder can be started ({error.strerror})", ENOUGH) from error
            stack.callback(give_back, child)
            child.begin(job, file.fileno())
        yield child


def _for_last_words() -> IO[bytes]:
    """A file for what a child says as it fails; where none can be made, what it says is lost."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return Path(os.devnull).open("r+b")


STRETCH = 5.0  # seconds: the limit is waited for in stretches


def left_after(left: float, planned: float, passed: float) -> float:
    """Seconds left of a limit when a stretch of ``planned`` took ``passed``.

    One that took far longer does not count: the process was stopped (Ctrl-Z), perhaps its child as well.
    """
    return left - passed if passed < planned + STRETCH else left


class Clock:
    """Calls ``ring``, in a thread of its own, when it has run for ``limit`` seconds in all.

    It never does without a limit, nor once ``stop`` has returned; ``rang`` says whether it did.
    """

    def __init__(self, limit: float | None, ring: Callable[[], None]) -> None:
        self._limit = limit
        self._ring = ring
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._began: float | None = None
        self._earlier = 0.0
        self.rang = False

    @property
    def seconds(self) -> float:
        """For how long it has run."""
        return self._earlier + (0.0 if self._began is None else time.monotonic() - self._began)

    def start(self) -> None:
        self._began = time.monotonic()
        if self._limit is not None:
            self._wait(max(0.0, self._limit - self._earlier))

    def stop(self) -> None:
        with self._lock:
            self._earlier, self._began = self.seconds, None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _wait(self, left: float) -> None:
        planned = min(left, STRETCH)
        self._timer = threading.Timer(planned, self._due, (left, planned, time.monotonic()))
        self._timer.daemon = True
        self._timer.start()

    def _due(self, left: float, planned: float, since: float) -> None:
        with self._lock:
            if threading.current_thread() is not self._timer:
                return
            left = left_after(left, planned, time.monotonic() - since)
            if left > 0:
                self._wait(left)
            else:
                self.rang = True
                self._ring()
