"""Worker processes, each with a connection to this one: starting them, receiving messages, ending them.

They run on this machine, or on others: ``Process`` and ``Channel`` are all that is asked of them.

Subclasses of ``Crew`` decide what happens with the work of a worker that dies (``worker_ended``).
"""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar

from lvspec_cli.errors import LvspecError
from lvspec_cli.system import connect_child, how_ended, start_child


class Process(Protocol):
    """A worker's process, as ``subprocess.Popen`` is one."""

    def kill(self) -> None: ...

    def wait(self) -> int | str:
        """Its exit code when it has ended; or in words how it was lost, where there is no code."""


class Channel(Protocol):
    """The connection to a worker, as ``multiprocessing.Pipe`` makes it."""

    def send(self, message: Any, /) -> None: ...

    def recv(self) -> Any:
        """The next message.

        :raises EOFError: the worker has ended.
        """

    def close(self) -> None: ...


@dataclass
class Worker:
    """The parent's side of one worker process."""

    process: Process
    connection: Channel

    def send(self, message: object) -> None:
        """Sends a message. If the worker has ended, receiving will report it."""
        with suppress(OSError):
            self.connection.send(message)

    def wait(self) -> tuple[int | None, str]:
        """Waits for its end; returns its exit code, if there is one, and how it ended as text."""
        ended = self.process.wait()
        return (None, ended) if isinstance(ended, str) else (ended, how_ended(ended))

    def end(self) -> None:
        """Ends it, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self.connection.close()


W = TypeVar("W", bound=Worker)


@dataclass
class Crew(ABC, Generic[W]):
    """Workers, and the policy for workers that die."""

    workers: list[W] = field(default_factory=list, init=False)

    def heard(self, timeout: float | None = None) -> Iterator[tuple[W, Any]]:
        """One message from each worker that has sent one; waits for the first.

        :param timeout: seconds to wait at most.
        :raises LvspecError: ``worker_failed`` or ``worker_ended`` does.
        """
        by_connection: dict[Any, W] = {worker.connection: worker for worker in self.workers}
        for connection in self.ready(list(by_connection), timeout):
            worker = by_connection[connection]
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                self.worker_ended(worker)
                continue
            if isinstance(message, LvspecError):
                self.worker_failed(worker, message)
                continue
            yield worker, message

    def ready(self, connections: Sequence[Any], timeout: float | None) -> Sequence[Any]:
        """Those connections that have a message, or whose worker has ended; waits for the first."""
        return wait(connections, timeout)

    def worker_failed(self, worker: W, error: LvspecError) -> None:
        """Called when a worker has sent an error, which is its last message.

        :raises LvspecError: the error, by default.
        """
        raise error

    @abstractmethod
    def worker_ended(self, worker: W) -> None:
        """Called when a worker has ended."""

    def close(self) -> None:
        """Ends all workers."""
        for worker in self.workers:
            worker.end()


def start_worker(module: str) -> tuple[subprocess.Popen[bytes], Connection]:
    """Runs a module in a process that gets the other end of a connection.

    :raises OSError: no process can be started.
    """
    ours, theirs = connect_child()
    with theirs:
        return start_child(module, theirs), ours
