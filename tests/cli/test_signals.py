"""What a signal does, by what is under way."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

import pytest
import typer

from lvspec_cli.cli.reporting import Stop, reporting, stopping
from lvspec_cli.errors import OutputError
from lvspec_cli.events import QuestionStarted, RoundDone
from lvspec_cli.types import Round, TokenKind
from tests.conftest import Shell

ROUND = RoundDone(0, Round((1,), (TokenKind.TARGET,), prefill=True), (), 0.0)


def test_a_signal_before_an_answer_ends_at_once_and_counts_even_if_lost():
    stop = Stop()
    stop.heed()
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGTERM, None)
    # Swallowed on its way, as in a destructor: the next event finds it.
    with pytest.raises(KeyboardInterrupt):
        stop.heed()
    assert stop.exit_code == 143


@pytest.mark.parametrize(("is_shown", "said"), [(False, "stopping\n"), (True, "")])
def test_a_signal_inside_an_answer_waits_for_the_round_a_second_one_does_not(
    is_shown: bool, said: str, capfd: pytest.CaptureFixture[str]
):
    stop = Stop()
    stop.is_shown = is_shown
    stop.listen(ROUND)
    stop.handle(signal.SIGINT, None)
    stop.heed()
    assert (stop.asked(), capfd.readouterr().err) == (True, said)
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT, None)


def test_an_error_that_a_library_makes_of_a_signal_is_none(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(typer.Exit) as ended, reporting(debug=False) as stop:
        try:
            stop.handle(signal.SIGINT, None)
        except KeyboardInterrupt as interrupt:
            raise ImportError("initialization failed") from interrupt
    assert (ended.value.exit_code, capsys.readouterr().err) == (130, "interrupted\n")
    with pytest.raises(typer.Exit) as ended, reporting(debug=False) as stop, stop.holding():
        stop.handle(signal.SIGINT, None)
        raise OutputError("the disk is full", "make room")
    assert ended.value.exit_code == 5


@pytest.mark.parametrize(("error", "is_told"), [("KeyboardInterrupt", False), ("RuntimeError", True)])
def test_a_signal_once_all_is_told_leaves_no_trace_of_what_is_put_away(
    shell: Shell, error: str, is_told: bool
) -> None:
    ended = f"""
from lvspec_cli.cli import main as command
def answer():
    try:
        yield
    finally:
        raise {error}
def main():
    answering = answer()  # goes with the frame, after the exit has been caught
    next(answering)
    raise SystemExit(130)
command.main = main
"""
    done = shell.run(first=ended)
    assert (done.returncode, done.stderr != "") == (130, is_told), done.stderr
    assert is_told == ("Exception ignored in" in done.stderr)


class Last:
    """Does something as it goes."""

    def __init__(self, does: Any) -> None:
        self.does = does

    def __del__(self) -> None:
        self.does()


@pytest.mark.parametrize("answering", [False, True])
def test_a_signal_that_falls_into_a_destructor_is_not_lost(
    answering: bool, capsys: pytest.CaptureFixture[str]
):
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyboardInterrupt), stopping() as stop:
        if answering:
            stop.listen(ROUND)
            signal.raise_signal(signal.SIGINT)
        Last(lambda: signal.raise_signal(signal.SIGINT))
        time.sleep(60)
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_else_a_destructor_raises_is_told_as_ever(monkeypatch: pytest.MonkeyPatch):
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: told.append(found.exc_type))
    with stopping():
        Last(lambda: int("no number"))
    assert told == [ValueError]


def test_what_is_held_is_finished():
    stop = Stop()
    stop.listen(QuestionStarted(1, 1, "What?"))
    with stop.holding():
        stop.handle(signal.SIGINT, None)
    assert stop.asked()
