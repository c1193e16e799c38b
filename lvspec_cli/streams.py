"""The process's own three streams: what goes wrong with stderr is no reason to stop."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any


class _Lossy(io.FileIO):
    """A descriptor whose writes never fail: what cannot be written is dropped."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            written: int | None = super().write(data)
            if written is not None:  # None: it would have to wait
                return written
        return len(data)


def steady_streams() -> None:
    """Makes messages optional, for the rest of the process: rows and answers are what counts.

    A closed one of descriptors 0 to 2 becomes the null device first: the next file that is opened would
    get its number, and with it whatever a library writes there. Python has None for such a stdin or stdout.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    raw = io.BufferedWriter(_Lossy(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(raw, encoding, errors="backslashreplace", line_buffering=True)
