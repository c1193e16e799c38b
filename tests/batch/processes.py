"""Real processes of the command line, forked from one that has imported everything: each starts at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.conftest import LEAN_PATH

FORKER = """
import json, os, sys
import torch
import lvspec_cli.models.load, lvspec_cli.speculation.engine
import lvspec_cli.cli.caption_run, lvspec_cli.models.prompt
import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl
import transformers.models.qwen2_5_vl.processing_qwen2_5_vl
import transformers.models.qwen2_vl.video_processing_qwen2_vl
from lvspec_cli.cli.main import entry

for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.chdir(job["folder"])
        for stream, name in ((0, "/dev/null"), (1, "stdout.txt"), (2, "stderr.txt")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if stream else 0), 0o666), stream)
        sys.stdin = open(0)
        os.environ.update(job["environment"])
        for limit, value in job["limits"]:
            import resource
            resource.setrlimit(limit, (value, value))
        sys.argv = ["lvspec", *job["arguments"]]
        exec(job["before"])
        entry()
    print(pid, flush=True)
"""


@dataclass(frozen=True)
class Run:
    """One process of ``lvspec``; its streams are files in ``folder``."""

    forker: subprocess.Popen[str]
    pid: int
    folder: Path
    mark: str  # in the environment of all its children

    def wait(self) -> int:
        """The exit code; minus the signal where one ended it."""
        return int(_tell(self.forker, {"wait": self.pid}))

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr.txt").read_text()

    def family(self) -> list[int]:
        """Processes that run and were started by this one, itself included."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                # What a fork changes of its environment does not show here.
                marked = entry.name == str(self.pid) or self.mark.encode() in (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except (OSError, IndexError):
                continue
            if marked and state not in "ZX":
                found.append(int(entry.name))
        return found

    def decoders(self) -> list[int]:
        """Those of its processes that decode videos."""
        found = []
        for pid in self.family():
            with suppress(OSError):
                if b"lvspec_cli.video.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found


class Processes:
    """Starts runs."""

    def __init__(self, forker: subprocess.Popen[str], environment: dict[str, str]) -> None:
        self._forker = forker
        self.temporary = Path(environment["TMPDIR"])
        self._environment = environment
        self._runs: list[Run] = []

    def start(
        self, folder: Path, *arguments: object, limits: tuple[tuple[int, int], ...] = (), before: str = ""
    ) -> Run:
        """``before`` is Python that the process runs first: a fault of the system that it will meet."""
        mark = uuid4().hex
        job = {
            "folder": str(folder),
            "arguments": list(map(str, arguments)),
            "environment": {**self._environment, "LVSPEC_TEST_MARK": mark},
            "limits": limits,
            "before": before,
        }
        self._runs.append(run := Run(self._forker, int(_tell(self._forker, job)), folder, mark))
        return run

    def kill_all(self) -> None:
        """What a failed test left running."""
        for run in self._runs:
            with suppress(ProcessLookupError, FileNotFoundError):
                if "lvspec" not in Path(f"/proc/{run.pid}/cmdline").read_text():
                    continue
                run.kill(signal.SIGKILL)


def _tell(forker: subprocess.Popen[str], job: dict[str, Any]) -> str:
    assert forker.stdin
    assert forker.stdout
    forker.stdin.write(json.dumps(job) + "\n")
    forker.stdin.flush()
    return forker.stdout.readline()


@contextmanager
def processes(home: Path, models: Path) -> Iterator[Processes]:
    (home / "tmp").mkdir()
    own = {
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_STATE_HOME": str(home / "state"),
        "LVSPEC_MODELS": str(models),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": LEAN_PATH,
    }
    forker = subprocess.Popen(
        [sys.executable, "-c", FORKER],
        env={**os.environ, **own},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with forker:
        started = Processes(forker, own)
        try:
            yield started
        finally:
            started.kill_all()
            assert forker.stdin
            forker.stdin.close()


def until(holds: Callable[[], bool], seconds: float = 300.0) -> bool:
    """Whether it came to hold in time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
