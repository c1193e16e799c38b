"""Worker processes, each with a connection to this one: starting them, receiving messages, ending them.

Subclasses of ``Crew`` decide what happens with the work of a worker that dies (``worker_ended``).
"""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from lvspec_cli.errors import LvspecError
from lvspec_cli.system import connect_child, how_ended, start_child


@dataclass
class Worker:
    """The parent's side of one worker process."""

    process: subprocess.Popen[bytes]
    connection: Connection

    def send(self, message: object) -> None:
        """Sends a message. If the worker has ended, receiving will report it."""
        with suppress(OSError):
            self.connection.send(message)

    def wait(self) -> tuple[int, str]:
        """Waits for its end; returns its exit code, and the code as text."""
        code = self.process.wait()
        return code, how_ended(code)

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
        :raises LvspecError: a worker sends one, or ``worker_ended`` does.
        """
        by_connection: dict[Any, W] = {worker.connection: worker for worker in self.workers}
        for connection in wait(list(by_connection), timeout):
            worker = by_connection[connection]
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                self.worker_ended(worker)
                continue
            if isinstance(message, LvspecError):
                raise message
            yield worker, message

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
