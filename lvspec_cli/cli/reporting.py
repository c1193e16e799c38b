"""How a command ends: a line of cause, a line of remedy, an exit code; a traceback only on request."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from lvspec_cli.cli.signals import Stop, stopping
from lvspec_cli.errors import LvspecError, MachineError, OutputError, check_machine, shortage_behind
from lvspec_cli.escape import visible_line
from lvspec_cli.events import Event, Noted

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
