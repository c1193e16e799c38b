"""SIGINT and SIGTERM: an answer under way ends with what there is, anything else ends at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lvspec_cli.events import Answered, Event, RoundDone


class Stop:
    """Whether the user wants to stop. A second signal ends even an answer at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._answering = False
        self._held = 0

    def listen(self, event: Event) -> None:
        if isinstance(event, RoundDone):
            self._answering = True
        elif isinstance(event, Answered):
            self._answering = False

    def asked(self) -> bool:
        return self.signal is not None

    def heed(self) -> None:
        """For between two steps: what a signal raised can be lost, in a destructor or a library's callback.

        :raises KeyboardInterrupt: there was one, and nothing has been answered that could be kept.
        """
        if self.asked() and not self._answering:
            raise KeyboardInterrupt

    @contextmanager
    def holding(self) -> Iterator[None]:
        """What happens in the block is finished: the first signal only shows in ``asked``."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    @property
    def exit_code(self) -> int:
        return 128 + (self.signal or signal.SIGINT)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler.

        :raises KeyboardInterrupt: nothing has been answered that could be kept, or this is the second signal.
        """
        wait = (self._answering or self._held > 0) and self.signal is None
        self.signal = number
        if not wait:
            raise KeyboardInterrupt


@contextmanager
def stopping() -> Iterator[Stop]:
    """Catches both signals within the block."""
    stop = Stop()
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
