"""A limit on the time that something takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


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
            left = min(max(0.0, self._limit - self._earlier), threading.TIMEOUT_MAX)
            self._timer = threading.Timer(left, self._due)
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        with self._lock:
            self._earlier, self._began = self.seconds, None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _due(self) -> None:
        with self._lock:
            if threading.current_thread() is self._timer:
                self.rang = True
                self._ring()
