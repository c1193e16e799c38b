"""The child process that decodes one video: ``python -m lvspec_cli.video.worker SOCKET FILE``.

It gets two open descriptors, never a path to open, and ends when its parent does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from multiprocessing.connection import Connection

from lvspec_cli.errors import LvspecError, VideoError
from lvspec_cli.video.messages import Job
from lvspec_cli.video.source import shown


def main(socket: int, descriptor: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    connection = Connection(socket)
    job: Job = connection.recv()
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    try:
        _serve(connection, job, descriptor)
    except LvspecError as error:
        connection.send(error)
    except MemoryError:
        name = shown(job.request.path)
        connection.send(VideoError(f"not enough memory: {name}", "lower --frames or --max-pixels"))


def _serve(connection: Connection, job: Job, descriptor: int) -> None:
    from lvspec_cli.video.reading import probe_file, read_file

    if job.task == "probe":
        connection.send(probe_file(descriptor, job.request))
    else:
        read_file(descriptor, job.request, connection)


def _end_with_parent(connection: Connection) -> None:
    # The parent sends nothing more: whatever wakes this thread is its end.
    try:
        connection.recv_bytes()
    finally:
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
