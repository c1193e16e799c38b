"""A limit on the time that something takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

STRETCH = 5.0  # seconds: the limit is waited for in stretches


def left_after(left: float, planned: float, passed: float) -> float:
    """Seconds left of a limit when a stretch of ``planned`` took ``passed``.

    One that took far longer does not count: the process was stopped (Ctrl-Z), perhaps its child as well.
    """
    return left - passed if passed < planned + STRETCH else left


class Clock:
    """Calls ``ring``, in a thread of its own, when it has run for ``limit`` seconds in all.

    It never does without a limit, nor once ``stop`` has returned; ``rang`` says whether it did.
    """

    def __init__(self, limit: float | None, ring: Callable[[], None]) -> None:
        self._limit = limit
        self._ring = ring
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._began: float | None = None
        self._earlier = 0.0
        self.rang = False

    @property
    def seconds(self) -> float:
        """For how long it has run."""
        return self._earlier + (0.0 if self._began is None else time.monotonic() - self._began)

    def start(self) -> None:
        self._began = time.monotonic()
        if self._limit is not None:
            self._wait(max(0.0, self._limit - self._earlier))

    def stop(self) -> None:
        with self._lock:
            self._earlier, self._began = self.seconds, None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _wait(self, left: float) -> None:
        planned = min(left, STRETCH)
        self._timer = threading.Timer(planned, self._due, (left, planned, time.monotonic()))
        self._timer.daemon = True
        self._timer.start()

    def _due(self, left: float, planned: float, since: float) -> None:
        with self._lock:
            if threading.current_thread() is not self._timer:
                return
            left = left_after(left, planned, time.monotonic() - since)
            if left > 0:
                self._wait(left)
            else:
                self.rang = True
                self._ring()
