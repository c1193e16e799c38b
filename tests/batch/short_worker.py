"""A worker without models, for tests of workers: one clip ends it, one takes long, all others fail."""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import count

from lvspec_cli.batch.serve import Loaded, Row, Setup, WantsWork, WorkDone
from lvspec_cli.batch.work import Work
from lvspec_cli.errors import NoInputError, VideoError
from lvspec_cli.output.records import failed_record
from lvspec_cli.system import parent_of

KILLER, SLEEPER = b"killer.mp4", b"sleeper.mp4"


def main(argument: str) -> None:
    connection = parent_of(argument)
    setup: Setup = connection.recv()
    connection.send(Loaded())
    for number in count():
        connection.send(WantsWork())
        work: Work | None = connection.recv()
        if work is None:
            return
        if work.name == KILLER:
            os.kill(os.getpid(), signal.SIGKILL)
        if work.name == SLEEPER:
            time.sleep(600)
        there = work.request.video.path.exists()
        error = VideoError("read") if there else NoInputError("no such file")
        for prompt in work.numbers:
            connection.send(
                Row(failed_record(setup.plan.load_plan, work.request, work.identity, prompt, error))
            )
        connection.send(WorkDone(number))


if __name__ == "__main__":
    main(sys.argv[1])
