"""A process that measures for another one: ``python -m lvspec_cli.bench.worker SOCKET``.

It gets what it is to load, then clips as it asks for them, and sends what it finds. It ends with its parent.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from lvspec_cli.bench.measure import Run
from lvspec_cli.bench.remote import Task, TaskDone, Warned
from lvspec_cli.errors import LvspecError
from lvspec_cli.figures.answers import Block, Item
from lvspec_cli.host import quieten_libraries, steady_streams
from lvspec_cli.pipeline import load, memory_errors
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
            sent = _Sent(connection, task.done)
            run = Run(pair, task.plan, sent, read, lambda text: connection.send(Warned(text)))
            for _ in run.blocks(task.clip, task.place):
                pass


@dataclass(frozen=True)
class _Sent:
    """A keeper that sends what it is given."""

    connection: Connection
    blocks: frozenset[tuple[str, int]]

    def add_item(self, item: Item) -> None:
        self.connection.send(item)

    def add_block(self, block: Block) -> None:
        self.connection.send(block)


if __name__ == "__main__":
    main(sys.argv[1])
