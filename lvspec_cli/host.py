"""The environment of this process: user folders, processors, messages of libraries, the standard streams."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO


def state_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder for data that is kept between runs (XDG_STATE_HOME)."""
    return _folder(environment.get("XDG_STATE_HOME"), ".local/state")


def config_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder for the user's configuration (XDG_CONFIG_HOME)."""
    return _folder(environment.get("XDG_CONFIG_HOME"), ".config")


def _folder(named: str | None, below_home: str) -> Path | None:
    try:
        return (Path(named) if named else Path.home() / below_home) / "lvspec"
    except RuntimeError:  # HOME is not set, and the system knows of no such user
        return None


def usable_cores() -> int:
    """The number of cores that this process may use, at least 1. A cluster's job often gets only some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def terminal_width(stream: TextIO) -> int | None:
    """The columns of the terminal that a stream writes to; None where it writes to none."""
    if not stream.isatty():
        return None
    named = os.environ.get("COLUMNS", "")
    if named.isdecimal() and int(named):
        return int(named)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def quieten_libraries() -> None:
    """Suppresses warnings of libraries, which are for programmers. Errors are still shown."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # where torchao is installed
    warnings.simplefilter("ignore")


class _Lossy(io.FileIO):
    """A descriptor whose writes never fail. Data that cannot be written is dropped."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            written: int | None = super().write(data)
            if written is not None:  # None: writing would block
                return written
        return len(data)


def steady_streams() -> None:
    """Makes writes to stderr never fail, for the rest of the process: only rows and answers matter.

    First, closed descriptors among 0 to 2 are opened as the null device. Otherwise the next file would get
    such a number, and libraries would write into it. Python sets such a stdin or stdout to None.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    raw = io.BufferedWriter(_Lossy(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(raw, encoding, errors="backslashreplace", line_buffering=True)
