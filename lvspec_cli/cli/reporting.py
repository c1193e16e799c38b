"""How a command ends: a line of cause, a line of remedy, an exit code; a traceback only on request.

SIGINT and SIGTERM: an answer under way ends with what there is, anything else ends at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer

from lvspec_cli.errors import LvspecError, MachineError, OutputError, check_machine, shortage_behind
from lvspec_cli.escape import visible_line
from lvspec_cli.events import Answered, Event, Noted, RoundDone

CLOSED_PIPE = 128 + 13  # as a program that SIGPIPE ends


@contextmanager
def reporting(debug: bool) -> Iterator[Stop]:
    """Runs a command's body: what it raises becomes messages on stderr and an exit code."""
    with stopping() as stop:
        try:
            if sys.stdout is None:
                raise OutputError("standard output is closed", "send it to a file or a pipe")
            yield stop
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(stop.exit_code) from None
        except BrokenPipeError:
            _silence_stdout()
            raise typer.Exit(CLOSED_PIPE) from None
        except typer.Exit:
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
            if stop.asked() and not isinstance(error, LvspecError):
                # A library made an error of its own of what the signal raised, as extensions do at import.
                say("interrupted")
                raise typer.Exit(stop.exit_code) from None
            raise typer.Exit(explain(in_words(error))) from None


def write_out(text: str) -> None:
    """Writes to stdout and flushes.

    :raises BrokenPipeError: the reader has gone.
    :raises OutputError: it cannot be written for another reason.
    """
    with _explained():
        sys.stdout.write(text)
        sys.stdout.flush()


def write_json(line: str) -> None:
    """As ``write_out``, a line in UTF-8 whatever the locale says: JSON is in nothing else."""
    with _explained():
        sys.stdout.flush()
        sys.stdout.buffer.write(line.encode() + b"\n")
        sys.stdout.buffer.flush()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence_stdout()
        raise OutputError(
            f"cannot write to standard output: {error.strerror}", "make room, or send it elsewhere"
        ) from error


def in_words(error: Exception) -> LvspecError:
    """Any error as one that a user can act on."""
    if isinstance(error, MachineError):
        return error
    if short := shortage_behind(error):
        return short
    if isinstance(error, LvspecError):
        return error
    try:
        check_machine(error, "the machine has not enough for this")
    except LvspecError as shortage:
        return shortage
    return LvspecError(
        f"{type(error).__name__}: {error}", "run it again with --debug, and report what it prints"
    )


def explain(error: LvspecError) -> int:
    """Says what failed in one line and what to do in another; gives the exit code."""
    say(f"error: {error.cause}")
    if error.remedy:
        say(f"try: {error.remedy}")
    return error.exit_code


def say_note(event: Event) -> None:
    """Says what was decided; of other events nothing."""
    if isinstance(event, Noted):
        say(event.text)


def say(text: str) -> None:
    """One line on stderr, made safe for a terminal."""
    sys.stderr.write(visible_line(text) + "\n")
    sys.stderr.flush()


def _silence_stdout() -> None:
    """Python flushes stdout once more at its end; let that succeed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


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
