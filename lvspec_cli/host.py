"""What is around this process: the user's folders, the processors, the libraries' talk, the three streams."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def state_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """For what is remembered from run to run (XDG_STATE_HOME)."""
    return _folder(environment.get("XDG_STATE_HOME"), ".local/state")


def config_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """For what the user writes (XDG_CONFIG_HOME)."""
    return _folder(environment.get("XDG_CONFIG_HOME"), ".config")


def _folder(named: str | None, below_home: str) -> Path | None:
    try:
        return (Path(named) if named else Path.home() / below_home) / "lvspec"
    except RuntimeError:  # HOME is not set, and the system knows of no such user
        return None


def usable_cores() -> int:
    """Those that this process may run on, at least 1: a cluster's job often gets a few of many."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quieten_libraries() -> None:
    """Their advice to programmers is not for the user's terminal. Errors still come through."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # where torchao is installed
    warnings.simplefilter("ignore")


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
