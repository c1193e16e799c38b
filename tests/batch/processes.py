"""Real processes of the command line: what they say, which others they start, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.warm import FORKER, LEAN_PATH, entry_after


@dataclass(frozen=True)
class Run:
    """One process of ``lvspec`` in a session of its own; its streams are files in ``folder``."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self) -> int:
        """The exit code; minus the signal where one ended it."""
        return self.process.wait()

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr.txt").read_text()

    def family(self) -> list[int]:
        """Processes that run and were started by this one, itself included."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                name, _, fields = (entry / "stat").read_text().partition("(")[2].rpartition(") ")
                state, _, _, session, *_ = fields.split()
                if int(session) == self.pid and state not in "ZX" and name != FORKER:
                    found.append(int(entry.name))
        return found

    def running(self, module: str) -> list[int]:
        """Those of its processes that run a module of lvspec.

        A child looks like its parent until it runs a program of its own, and does not count.
        """
        parents = {}
        for pid in self.family():
            with suppress(OSError):
                folder = Path(f"/proc/{pid}")
                is_forked = (folder / "comm").read_text().strip() == module
                if is_forked or f"lvspec_cli.{module}".encode() in (folder / "cmdline").read_bytes():
                    parents[pid] = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
        return [pid for pid, parent in parents.items() if parent not in parents]

    def decoders(self) -> list[int]:
        """Those of its processes that decode videos."""
        return self.running("video.worker")


class Processes:
    """Starts runs."""

    def __init__(self, home: Path, models: Path) -> None:
        self.temporary = home / "tmp"
        self.temporary.mkdir()
        self._environment = {
            "HOME": str(home),
            "TMPDIR": str(self.temporary),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_STATE_HOME": str(home / "state"),
            "LVSPEC_MODELS": str(models),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": LEAN_PATH,
        }
        self._runs: list[Run] = []

    def start(
        self, folder: Path, *arguments: object, limits: tuple[tuple[int, int], ...] = (), before: str = ""
    ) -> Run:
        """``before`` is Python that the process runs first: a fault of the system that it will meet."""
        set_limits = "".join(f"resource.setrlimit({name}, ({value},) * 2)\n" for name, value in limits)
        with (folder / "stdout.txt").open("wb") as out, (folder / "stderr.txt").open("wb") as errors:
            process = subprocess.Popen(
                [*entry_after(set_limits + before), *map(str, arguments)],
                env={**os.environ, **self._environment},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                start_new_session=True,
            )
        self._runs.append(run := Run(process, folder))
        return run

    def kill_all(self) -> None:
        """What a failed test left running."""
        for run in self._runs:
            if run.process.poll() is None:
                run.kill(signal.SIGKILL)
                run.wait()


def until(holds: Callable[[], bool], seconds: float = 300.0) -> bool:
    """Whether it came to hold in time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
