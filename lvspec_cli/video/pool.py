"""Decodes videos in advance in several child processes, with a limit on the memory of their frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from copy import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Condition
from types import TracebackType
from typing import TypeVar
from weakref import WeakSet

from lvspec_cli.errors import LvspecError, MachineError, VideoError
from lvspec_cli.host import usable_cores
from lvspec_cli.types import Clip, VideoInfo, VideoRequest
from lvspec_cli.video.decode import TIMEOUT, Child, decoding_child, probe_job, receive_clip
from lvspec_cli.video.messages import Cue, Job, Subtitles
from lvspec_cli.video.sample import check_request

JOBS_PER_CHILD = 256  # then a new child, should FFmpeg or decord leak memory
_AHEAD = 2  # videos that are being decoded or waiting, for each child
_POLL = 0.1  # seconds between checks for an interruption

Item = TypeVar("Item")
Result = TypeVar("Result")
Interrupted = Callable[[], bool]


@dataclass(frozen=True)
class Decoded:
    """The result of a request: a clip, or an error; without either it is not there yet."""

    request: VideoRequest
    clip: Clip | None = None
    error: LvspecError | None = None

    @property
    def is_missing(self) -> bool:
        return self.clip is None and self.error is None


class DecodePool:
    """Decodes videos in up to ``workers`` processes, in advance, and returns them in the order of requests.

    With 0 workers one process decodes each video when it is requested, and none in advance.

    A file that hangs or crashes a process costs only that process and its own result. If the limits on open
    files or processes are too low for all ``workers``, fewer are used; if they are too low for one,
    MachineError is raised. The processes of an iterator end with it: at its end, when it is closed or
    dropped, and with the pool.

    :param max_bytes: limit on frames that are decoded or being decoded, and not consumed yet. The next clip
        to be consumed may exceed it, alone or together with waiting ones.
    :param threads: of FFmpeg in each process; None divides the cores.
    """

    def __init__(self, workers: int, max_bytes: int, *, threads: int | None = None) -> None:
        self._workers = max(1, workers)
        self._most_ahead = max(1, _AHEAD * workers)
        self._max_bytes = max_bytes
        self._threads = threads or max(1, usable_cores() // max(1, workers))
        self._runs: WeakSet[Generator[object, None, None]] = WeakSet()
        self._crews: WeakSet[_Crew] = WeakSet()

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for run in list(self._runs):
            run.close()

    @property
    def cores_taken(self) -> int:
        """How many threads decode at this moment."""
        return self._threads * sum(crew.decoding for crew in list(self._crews))

    def clips(
        self,
        requests: Iterable[VideoRequest],
        *,
        interrupted: Interrupted = lambda: False,
        waits: Callable[[], bool] = lambda: True,
    ) -> Generator[Decoded, None, None]:
        """Decodes each request. A few requests are read in advance, in the consumer's thread.

        :param interrupted: checked while waiting; if true, the iterator ends.
        :param waits: asked for each clip; if false, one that is not decoded yet is given as missing, and then
            asked for again.
        """

        def decode(crew: _Crew, number: int, request: VideoRequest) -> Decoded:
            try:
                return Decoded(request, crew.clip(number, request, self._threads), None)
            except MachineError:
                raise
            except LvspecError as error:
                return Decoded(request, None, _bare(error))

        return self._in_order(requests, decode, interrupted, lambda item: None if waits() else Decoded(item))

    def probes(
        self,
        paths: Iterable[Path],
        *,
        timeout: float | None = TIMEOUT,
        interrupted: Interrupted = lambda: False,
    ) -> Generator[VideoInfo | LvspecError, None, None]:
        """The facts about each file, as in ``probe``. Paths are read and interrupted as in ``clips``.

        :param timeout: seconds for a file, all of whose packets may have to be read; None: no limit.
        """

        def look(crew: _Crew, number: int, path: Path) -> VideoInfo | LvspecError:
            try:
                return crew.serve(number, probe_job(path, timeout), Child.receive)
            except MachineError:
                raise
            except LvspecError as error:
                return _bare(error)

        return self._in_order(paths, look, interrupted)

    def subtitles(
        self, paths: Iterable[Path], *, timeout: float | None = TIMEOUT
    ) -> Generator[tuple[Cue, ...] | LvspecError, None, None]:
        """What is said in each file, a video or one of subtitles. Paths are read as in ``clips``."""

        def look(crew: _Crew, number: int, path: Path) -> tuple[Cue, ...] | LvspecError:
            job = Job("subtitles", VideoRequest(path, timeout=timeout))
            try:
                found: Subtitles = crew.serve(number, job, Child.receive)
            except MachineError:
                raise
            except LvspecError as error:
                return _bare(error)
            return found.cues

        return self._in_order(paths, look, lambda: False)

    def _in_order(
        self,
        items: Iterable[Item],
        work: Callable[[_Crew, int, Item], Result],
        interrupted: Interrupted,
        meanwhile: Callable[[Item], Result | None] = lambda item: None,
    ) -> Generator[Result, None, None]:
        """:param meanwhile: what is given for an item that is not done yet; None: it is waited for."""
        run = self._run(items, work, interrupted, meanwhile)
        self._runs.add(run)
        return run

    def _run(
        self,
        items: Iterable[Item],
        work: Callable[[_Crew, int, Item], Result],
        interrupted: Interrupted,
        meanwhile: Callable[[Item], Result | None],
    ) -> Generator[Result, None, None]:
        crew = _Crew(Room(self._max_bytes))
        self._crews.add(crew)
        numbered = enumerate(items)
        ahead: deque[tuple[Item, Future[Result]]] = deque()
        count = 0
        with ExitStack() as stack:
            threads = ThreadPoolExecutor(self._workers, "decoding")
            stack.callback(threads.shutdown, cancel_futures=True)
            stack.callback(crew.close)
            while True:
                for number, item in islice(numbered, self._most_ahead - len(ahead)):
                    ahead.append((item, threads.submit(work, crew, number, item)))
                if not ahead:
                    return
                if not ahead[0][1].done() and (other := meanwhile(ahead[0][0])) is not None:
                    yield other
                    continue
                if not _is_done(ahead[0][1], interrupted):
                    return
                crew.room.take(count)
                count += 1
                yield ahead.popleft()[1].result()  # no reference is kept here


@contextmanager
def reading() -> Iterator[Callable[[VideoRequest], Clip]]:
    """Yields a ``read_clip`` that reuses its process for the next video."""
    requests: deque[VideoRequest] = deque()
    with DecodePool(0, 0) as pool, closing(pool.clips(iter(requests.popleft, None))) as clips:

        def read(request: VideoRequest) -> Clip:
            requests.append(request)  # the pool reads nothing in advance: one request for each result
            decoded = next(clips)
            if decoded.clip is None:
                raise decoded.error or VideoError("nothing was decoded")
            return decoded.clip

        yield read


class _Crew:
    """The child processes of one iterator, busy or idle, and the memory limit for their clips."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._changed = Condition()
        self._turn = 0  # the number that may begin
        self._idle: list[Child] = []
        self._at_work: set[Child] = set()
        self._is_closed = False

    @property
    def decoding(self) -> int:
        """How many children are at work and do not wait for memory."""
        return max(0, len(self._at_work) - self.room.waiting)

    def clip(self, number: int, request: VideoRequest, threads: int) -> Clip:
        """Raises LvspecError, and CancelledError once closed."""

        def receive(child: Child) -> Clip:
            def admit(size: int) -> None:
                with child.kept_waiting():
                    self.room.enter(number, size)

            return receive_clip(child, request, admit=admit)

        try:
            return self.serve(number, Job("read", request, threads), receive)
        except BaseException:
            self.room.leave(number)
            raise

    def serve(self, number: int, job: Job, receive: Callable[[Child], Result]) -> Result:
        """The result of ``receive`` for a child with ``job``.

        A child may crash because of an earlier video, or because it lacked resources before it opened this
        one. Then another child tries again.
        """
        with ExitStack() as stack:
            child = self._begin_in_turn(number, job, stack)
            try:
                return receive(child)
            except LvspecError:
                if not child.crashed or (child.jobs == 1 and child.is_taken):
                    raise
        with decoding_child(job, self._fresh if child.is_taken else self._idle_or_fresh, self._put) as child:
            return receive(child)

    def _begin_in_turn(self, number: int, job: Job, stack: ExitStack) -> Child:
        """Starts a job in a child, in the order of numbers, so that earlier jobs are never blocked."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._turn == number)
        try:
            check_request(job.request)
            while True:
                try:
                    return stack.enter_context(decoding_child(job, self._idle_or_fresh, self._put))
                except MachineError:
                    if not self._has_more_room():
                        raise
        finally:
            with self._changed:
                self._turn += 1
                self._changed.notify_all()

    def _has_more_room(self) -> bool:
        """Ends an idle child or waits for a busy one; returns whether a child may have room now."""
        with self._changed:
            idle, at_work = self._idle[:1], bool(self._at_work)
            del self._idle[:1]
            if not idle:
                self._changed.wait_for(lambda: self._is_closed or bool(self._idle) or not self._at_work)
        for child in idle:
            child.close()
        return bool(idle) or at_work

    def close(self) -> None:
        """Ends all children. The threads of busy ones notice it."""
        self.room.close()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            for child in self._at_work:
                child.kill()
            idle, self._idle = self._idle, []
        for child in idle:
            child.close()

    def _idle_or_fresh(self) -> Child:
        with self._changed:
            if self._idle:
                self._at_work.add(child := self._idle.pop())
                return child
        return self._fresh()

    def _fresh(self) -> Child:
        if self._is_closed:
            raise CancelledError
        child = Child()
        with self._changed:
            if not self._is_closed:
                self._at_work.add(child)
                return child
        child.close()
        raise CancelledError

    def _put(self, child: Child) -> None:
        if not (child.is_idle and child.jobs < JOBS_PER_CHILD):
            child.close()  # before it is removed, so that its resources are free
        with self._changed:
            self._at_work.discard(child)
            if is_kept := child.is_idle and not self._is_closed:
                self._idle.append(child)
            self._changed.notify_all()
        if not is_kept:
            child.close()


def _is_done(future: Future[Result], interrupted: Interrupted) -> bool:
    """Waits for it, or for the wish to stop."""
    while not interrupted():
        if wait([future], _POLL).done:
            return True
    return False


def _bare(error: LvspecError) -> LvspecError:
    """The error without its traceback, whose frames hold the clip's."""
    return copy(error)


class Room:
    """A limit of ``most`` bytes on clips that are decoded or being decoded, and not consumed yet.

    Clips are consumed in the order of their numbers, from 0. The next one is always admitted, so that there
    is no deadlock. The limit may be exceeded by its size.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[int, int] = {}
        self.waiting = 0  # clips that have no room yet
        self._next = 0
        self._is_closed = False
        self._changed = Condition()

    @property
    def held(self) -> int:
        """Bytes."""
        with self._changed:
            return sum(self._held.values())

    def enter(self, number: int, size: int) -> None:
        """Waits until the clip ``number`` of ``size`` bytes has room. Raises CancelledError once closed."""
        with self._changed:
            self.leave(number)  # what an earlier attempt took
            self.waiting += 1
            self._changed.wait_for(lambda: self._is_closed or self._has_room(number, size))
            self.waiting -= 1
            if self._is_closed:
                raise CancelledError
            self._held[number] = size

    def leave(self, number: int) -> None:
        """The clip's bytes are free again, if it had any."""
        with self._changed:
            self._held.pop(number, None)
            self._changed.notify_all()

    def take(self, number: int) -> None:
        """The clip was consumed: the one after it is next."""
        with self._changed:
            self._next = number + 1
            self.leave(number)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _has_room(self, number: int, size: int) -> bool:
        return number == self._next or sum(self._held.values()) + size <= self._most
