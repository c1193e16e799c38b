"""The end of a command: a line with the cause, a line with the remedy, an exit code; no traceback by default.

On SIGINT and SIGTERM a current answer ends with the text so far. Anything else ends at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import typer

from lvspec_cli.errors import LvspecError, MachineError, OutputError, check_machine, shortage_behind
from lvspec_cli.escape import shell_words, visible_line
from lvspec_cli.events import Answered, Event, InSlot, InWorker, Noted, RoundDone
from lvspec_cli.host import libraries_logged, message_stream, state_folder, terminal_width
from lvspec_cli.table import command_lines, wrapped

LIBRARY_LOG = "libraries.log"  # in the user's state folder
CLOSED_PIPE = 128 + 13  # the exit code of a program that SIGPIPE ends


@contextmanager
def reporting(debug: bool) -> Iterator[Stop]:
    """Runs a command's body. Its exceptions become messages on stderr and an exit code.

    What libraries print to stderr goes to a log. With ``debug`` it is shown at the end.
    """
    folder = state_folder()
    with libraries_logged(folder and folder / LIBRARY_LOG) as logged, stopping() as stop:
        try:
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
                traceback.print_exc(file=message_stream())
            if stop.asked() and not isinstance(error, LvspecError):
                # A library turned the signal's exception into another one, as extensions do at import.
                say("interrupted")
                raise typer.Exit(stop.exit_code) from None
            raise typer.Exit(explain(as_lvspec_error(error, debug=debug))) from None
        finally:
            if debug:
                for line in logged().splitlines():
                    say(f"library: {line}")


def going_on(arguments: Sequence[str]) -> str:
    """How a run that was stopped is continued. With ``--redo`` it would begin anew."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    command = "the same command" + (" without --redo" if "--redo" in arguments[:end] else "")
    return f"{command} goes on from there"


def check_stdout() -> None:
    """:raises OutputError: stdout is closed."""
    if sys.stdout is None:
        raise OutputError("standard output is closed", "send it to a file or a pipe")


def write_out(text: str) -> None:
    """Writes to stdout and flushes.

    :raises BrokenPipeError: the reader has closed the pipe.
    :raises OutputError: it cannot be written for another reason.
    """
    with as_output_error():
        sys.stdout.write(text)
        sys.stdout.flush()


def write_json(line: str) -> None:
    """As ``write_out``, for a line of JSON, which is always in UTF-8, whatever the locale."""
    write_bytes(line.encode() + b"\n")


def write_bytes(data: bytes) -> None:
    """As ``write_out``, for bytes."""
    with as_output_error():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


@contextmanager
def as_output_error() -> Iterator[None]:
    """
    :raises BrokenPipeError: the reader of stdout has closed the pipe.
    :raises OutputError: it cannot be written for another reason.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence_stdout()
        raise OutputError(
            f"cannot write to standard output: {error.strerror}", "make room, or send it elsewhere"
        ) from error


def as_lvspec_error(error: Exception, *, debug: bool = False) -> LvspecError:
    """Any exception as an error with cause and remedy. With ``debug`` its traceback has been shown."""
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
    remedy = (
        "report it with the lines above" if debug else "run it again with --debug, and report what it prints"
    )
    return LvspecError(f"{type(error).__name__}: {error}", remedy)


def explain(error: LvspecError) -> int:
    """Prints the cause in one line and the remedy in another; returns the exit code."""
    say(f"error: {error.cause}")
    if error.remedy:
        say(f"try: {error.remedy}")
    return error.exit_code


def say_note(event: Event) -> None:
    """Prints the text of a Noted event, and nothing for other events."""
    if isinstance(event, Noted):
        say(event.text)


def say(text: str) -> None:
    """Prints one line to stderr, made safe for a terminal, in which it is broken between words only."""
    stream = message_stream()
    stream.write(wrapped(visible_line(text), terminal_width(stream), "  ") + "\n")
    stream.flush()


def say_command(label: str, words: Sequence[str]) -> None:
    """Prints a command line to stderr. Where a terminal breaks it, it can still be pasted."""
    quoted = [shell_words([word]) for word in words]
    stream = message_stream()
    stream.write(command_lines(label, quoted, terminal_width(stream)) + "\n")
    stream.flush()


def write_line(text: str, indent: str = "  ") -> None:
    """Writes one line to stdout, made safe for a terminal, in which it is broken between words only."""
    write_out(wrapped(visible_line(text), terminal_width(sys.stdout), indent) + "\n")


def _silence_stdout() -> None:
    """Redirects stdout to the null device, because Python flushes it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


_AGAIN = 0.02  # seconds until a lost signal is raised again


class Stop:
    """The user's wish to stop. After a second signal even an answer ends at once.

    The first one is answered with "stopping" if something has to be finished. ``is_shown``: a live view does
    that, which finds the wish in ``asked``.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.is_shown = False
        self._answering = False
        self._blocks = 0  # of ``holding``
        self._is_second = False

    def listen(self, event: Event) -> None:
        while isinstance(event, InWorker | InSlot):
            event = event.event
        if isinstance(event, RoundDone):
            self._answering = True
        elif isinstance(event, Answered):
            self._answering = False

    def asked(self) -> bool:
        return self.signal is not None

    def heed(self) -> None:
        """Checked between two steps, because a signal's exception can be lost in a destructor or a callback.

        :raises KeyboardInterrupt: there was a signal, and no answer has started.
        """
        if self.asked() and not self._answering:
            raise KeyboardInterrupt

    def forget(self) -> None:
        """Makes the next signal the first one again: what was to stop has stopped."""
        self.signal, self._answering, self._is_second = None, False, False

    @contextmanager
    def holding(self) -> Iterator[None]:
        """The first signal does not interrupt the block. It is only visible in ``asked``."""
        self._blocks += 1
        try:
            yield
        finally:
            self._blocks -= 1

    @property
    def exit_code(self) -> int:
        return 128 + (self.signal or signal.SIGINT)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler.

        :raises KeyboardInterrupt: no answer has started, or this is the second signal.
        """
        self._is_second = self.signal is not None
        self.signal = number
        self.raise_again(number, frame)
        if not self.is_shown:
            _write_in_handler("stopping")

    def raise_again(self, number: int, frame: FrameType | None) -> None:
        """The handler of the alarm, after a signal's exception was lost; raises as ``handle`` did."""
        if self._is_second or not (self._answering or self._blocks):
            raise KeyboardInterrupt

    def unraisable(self, unraisable: Any, hook: Callable[[Any], Any]) -> None:
        """Handles an exception that Python cannot raise, in a destructor for example.

        A KeyboardInterrupt is raised again a little later. Others go to ``hook``.
        """
        if unraisable.exc_type is KeyboardInterrupt:
            _set_alarm(_AGAIN)
        else:
            hook(unraisable)


def _write_in_handler(line: str) -> None:
    """Prints a line to stderr. The stream's buffer is left alone: the signal may have interrupted its use."""
    stream = message_stream()
    with suppress(OSError, ValueError, AttributeError):
        before = "\n" if stream.isatty() else ""  # a progress bar may stand there
        os.write(stream.fileno(), f"{before}{line}\n".encode())


def _set_alarm(seconds: float) -> None:
    """Sets an alarm signal; 0 cancels it. Systems without one (Windows) rely on ``heed``."""
    if sys.platform != "win32" and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Handles both signals within the block, and makes sure that neither is lost."""
    stop = Stop()
    handlers = {signal.SIGINT: stop.handle, signal.SIGTERM: stop.handle}
    if hasattr(signal, "SIGALRM"):
        handlers[signal.SIGALRM] = stop.raise_again
    old_handlers = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: stop.unraisable(unraisable, hook)
    try:
        yield stop
    finally:
        _set_alarm(0)
        sys.unraisablehook = hook
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
