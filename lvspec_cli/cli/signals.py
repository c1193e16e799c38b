"""SIGINT and SIGTERM: an answer under way ends with what there is, anything else ends at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lvspec_cli.events import Answered, Event, RoundDone

_AGAIN = 0.02  # seconds after which a signal that was lost is raised again


class Stop:
    """Whether the user wants to stop. A second signal ends even an answer at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._answering = False
        self._held = 0
        self._is_second = False

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
        self._is_second = self.signal is not None
        self.signal = number
        self.raise_again(number, frame)

    def raise_again(self, number: int, frame: FrameType | None) -> None:
        """The handler of the alarm, for a signal whose exception was lost; raises as ``handle`` did."""
        if self._is_second or not (self._answering or self._held):
            raise KeyboardInterrupt

    def unraisable(self, found: Any, others: Callable[[Any], Any]) -> None:
        """What Python cannot raise, as in a destructor: a signal's exception comes again a little later."""
        if found.exc_type is KeyboardInterrupt:
            _set_alarm(_AGAIN)
        else:
            others(found)


def _set_alarm(seconds: float) -> None:
    """A signal after so long; 0: none any more. Where the system has none (Windows), ``heed`` is enough."""
    if sys.platform != "win32" and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Catches both signals within the block, and sees to it that neither is lost."""
    stop = Stop()
    handlers = {signal.SIGINT: stop.handle, signal.SIGTERM: stop.handle}
    if hasattr(signal, "SIGALRM"):
        handlers[signal.SIGALRM] = stop.raise_again
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    hook = sys.unraisablehook
    sys.unraisablehook = lambda found: stop.unraisable(found, hook)
    try:
        yield stop
    finally:
        _set_alarm(0)
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
