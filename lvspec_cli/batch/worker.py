"""A worker in a process of its own: ``python -m lvspec_cli.batch.worker SOCKET``.

It receives a Setup, asks for works one by one, and sends records and events. It ends when its parent ends.
On SIGTERM the current answer ends at its next round, and the parent takes back what is not done.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from typing import NoReturn

from lvspec_cli.batch.serve import EventSent, Loaded, Message, Row, Setup, WantsWork, WorkDone, serving
from lvspec_cli.batch.slots import Finished
from lvspec_cli.batch.work import Work
from lvspec_cli.errors import LvspecError
from lvspec_cli.events import Event, InWorker, Noted
from lvspec_cli.host import exit_at_once, steady_streams
from lvspec_cli.system import parent_of


def main(argument: str) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    steady_streams()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    connection = parent_of(argument)
    inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
    code = 0
    try:
        setup: Setup = connection.recv()
        threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
        _work(setup, connection, inbox, stop)
    except (EOFError, ConnectionError):  # the parent has ended, and nobody reads the results
        code = 1
    except LvspecError as error:
        with suppress(ConnectionError):
            connection.send(error)
    exit_at_once(code)


def _receive(connection: Connection, inbox: queue.SimpleQueue[Work | None]) -> None:
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(1)  # the parent has ended, and nobody reads the results


def _work(
    setup: Setup, connection: Connection, inbox: queue.SimpleQueue[Work | None], stop: threading.Event
) -> None:
    sending = threading.Lock()  # the thread that decodes ahead also sends messages

    def send(message: Message) -> None:
        with sending:
            connection.send(message)

    numbers: dict[int, int] = {}  # by the id of each work in progress

    def works() -> Iterator[Work]:
        for number in count():
            if stop.is_set():
                return
            send(WantsWork())
            if (work := inbox.get()) is None:
                return
            numbers[id(work)] = number
            yield work

    def listen(event: Event) -> None:
        send(EventSent(event if isinstance(event, Noted) else InWorker(setup.number, event)))

    with serving(setup.plan, listen, stop.is_set) as serve:
        send(Loaded(serve.looks_ahead))
        for done in serve(works()):
            if isinstance(done, Finished):
                send(WorkDone(numbers.pop(id(done.work))))
            else:
                send(Row(done))


if __name__ == "__main__":
    main(sys.argv[1])
