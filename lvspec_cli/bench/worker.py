"""A worker process that measures for its parent: ``python -m lvspec_cli.bench.worker SOCKET``.

It receives the load plan, then requests tasks and sends its measurements. It ends with its parent.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from lvspec_cli.bench.measure import ClipRunner
from lvspec_cli.bench.remote import Task, TaskDone, WarningSent
from lvspec_cli.errors import LvspecError
from lvspec_cli.figures.answers import Block, Item
from lvspec_cli.host import quieten_libraries, steady_streams
from lvspec_cli.memory.short import memory_errors
from lvspec_cli.pipeline import load
from lvspec_cli.system import parent_of
from lvspec_cli.video.pool import reading


def main(argument: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    steady_streams()
    quieten_libraries()
    connection = parent_of(argument)
    try:
        try:
            _work(connection)
        except LvspecError as error:
            connection.send(error)
    except (EOFError, OSError):  # the parent has gone
        return


def _work(connection: Connection) -> None:
    plan, workload = connection.recv()
    plan = replace(plan, choice=replace(plan.choice, threads=1))
    pair = load(plan, workload)
    with memory_errors(plan, workload), reading() as read:
        while True:
            connection.send(TaskDone())
            task: Task = connection.recv()
            sink = _Sender(connection, task.done)
            run = ClipRunner(pair, task.plan, sink, read, lambda text: connection.send(WarningSent(text)))
            for _ in run.blocks(task.clip, task.position):
                pass


@dataclass(frozen=True)
class _Sender:
    """A ``MeasurementSink`` that sends everything to the parent."""

    connection: Connection
    blocks: frozenset[tuple[str, int]]

    def add_item(self, item: Item) -> None:
        self.connection.send(item)

    def add_block(self, block: Block) -> None:
        self.connection.send(block)


if __name__ == "__main__":
    main(sys.argv[1])
