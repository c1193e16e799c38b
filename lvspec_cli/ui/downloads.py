"""Bytes of a download, from the progress bars that the hub's client moves."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

from tqdm import tqdm


def byte_counter(report: Callable[[int, int], None]) -> type[Any]:
    """A class of bars that show nothing and report bytes: done, and 0 for a total that is unknown.

    The client moves several at once, of bytes that came and of bytes that are written: the furthest counts.
    """
    lock = threading.Lock()
    done: dict[int, float] = {}

    class Counter(tqdm):  # type: ignore[type-arg] # it takes none when it runs
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._of_bytes = options.get("unit") == "B"
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "file": io.StringIO(), "mininterval": 1e9})

        def update(self, n: float | None = 1) -> bool | None:
            if self._of_bytes:
                with lock:
                    done[id(self)] = done.get(id(self), 0) + (n or 0)
                    furthest = max(done.values())
                report(int(furthest), 0)
            return super().update(n)

    return Counter
