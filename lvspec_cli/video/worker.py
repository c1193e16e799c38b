"""The child process that decodes videos: ``python -m lvspec_cli.video.worker SOCKET``.

It receives open file descriptors, never opens a path, and ends when its parent ends.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from queue import SimpleQueue

from lvspec_cli.errors import LvspecError, VideoError
from lvspec_cli.system import parent_of, receive_file
from lvspec_cli.video.messages import Job, Subtitles, Taken
from lvspec_cli.video.source import shown

_PR_SET_PDEATHSIG = 1  # of Linux' <sys/prctl.h>


def main(argument: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _be_killed_with_parent()
    connection = parent_of(argument)
    jobs: SimpleQueue[tuple[Job, int]] = SimpleQueue()
    threading.Thread(target=_take_jobs, args=(connection, jobs), daemon=True).start()
    from lvspec_cli.video.reading import probe_file, read_file, read_subtitles
    from lvspec_cli.video.survey import Surveyor

    surveyor = Surveyor()
    gc.freeze()  # so that collecting after each job is cheap
    while True:
        job, descriptor = jobs.get()
        try:
            connection.send(Taken())
            if job.task == "probe":
                connection.send(probe_file(descriptor, job.request, surveyor))
            elif job.task == "subtitles":
                connection.send(Subtitles(read_subtitles(descriptor, job.request)))
            else:
                read_file(descriptor, job, connection, surveyor)
        except LvspecError as error:
            connection.send(error)
        except MemoryError:
            name = shown(job.request.path)
            connection.send(VideoError(f"not enough memory: {name}", "lower --frames or --max-pixels"))
        finally:
            os.close(descriptor)
        gc.collect()  # frames at full size can hang in cycles


def _be_killed_with_parent() -> None:
    """Makes the system kill this process with its parent, even while it is stopped. Without support for that,
    a running process still notices the end of the socket."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _take_jobs(connection: Connection, jobs: SimpleQueue[tuple[Job, int]]) -> None:
    try:
        while True:
            jobs.put((connection.recv(), receive_file(connection)))
    finally:
        os._exit(1)  # the parent has ended, and nobody reads the results


if __name__ == "__main__":
    main(sys.argv[1])
