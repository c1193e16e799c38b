"""A real pseudo-terminal around the command line, and the screen that a user would see."""

from __future__ import annotations

import copy
import os
import subprocess
import termios
import time
from collections.abc import Callable

import pexpect
import pyte
from pexpect.fdpexpect import fdspawn

from tests.conftest import PATIENCE, Shell

ALTERNATE = 1049


class SecondScreen(pyte.HistoryScreen):
    """pyte's screen with the second screen, which pyte leaves out."""

    saved = None
    switches = 0

    def set_mode(self, *modes: int, **options: bool) -> None:
        if ALTERNATE in modes and self.saved is None:
            self.saved = copy.deepcopy((self.buffer, self.cursor, self.history.top))
            self.switches += 1
            self.erase_in_display(2)
        super().set_mode(*modes, **options)

    def reset_mode(self, *modes: int, **options: bool) -> None:
        if ALTERNATE in modes and self.saved is not None:
            self.buffer, self.cursor, above = self.saved
            self.history = self.history._replace(top=above)
            self.saved = None
        super().reset_mode(*modes, **options)


class Terminal:
    """One run of the command line in a terminal of a given size."""

    def __init__(
        self,
        shell: Shell,
        *arguments: object,
        columns: int = 80,
        rows: int = 24,
        term: str = "xterm-256color",
    ):
        self.screen = SecondScreen(columns, rows, history=2000)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (rows, columns))
        environment = {**shell.environment, "TERM": term}
        command = [*shell.command, *map(str, arguments)]
        self._process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self._child = fdspawn(ours, timeout=PATIENCE)

    def type(self, keys: str) -> None:
        self._child.send(keys)

    def read(self, until: Callable[[str], bool] | None = None, seconds: float = PATIENCE) -> bool:
        """Feeds the screen until the program ends, or until the screen is as wanted."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                chunk = self._child.read_nonblocking(4096, timeout=0.1)
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                return until is None
            self.raw += chunk
            self._stream.feed(chunk)
            if until is not None and until(self.text):
                return True
        raise AssertionError(f"nothing came of it in {seconds} s:\n{self.text}")

    def resize(self, columns: int, rows: int) -> None:
        termios.tcsetwinsize(self._child.fileno(), (rows, columns))
        self.screen.resize(rows, columns)

    def finish(self) -> int:
        """The exit code; minus the signal where one ended it."""
        self.read()
        self._child.close()
        return self._process.wait(PATIENCE)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    @property
    def scrollback(self) -> str:
        """All lines, those that have left the screen first."""
        above = [
            "".join(line[column].data for column in range(self.screen.columns)).rstrip()
            for line in self.screen.history.top
        ]
        return "\n".join([*above, self.text])
