from __future__ import annotations

import io
import os
import termios
import time

import pyte

from lvspec_cli.events import Noted, RoundDone, Stage, StageAdvanced, StageFinished, StageStarted
from lvspec_cli.types import Round, TokenKind
from lvspec_cli.ui import progress
from lvspec_cli.ui.progress import PlainProgress


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_each_stage_leaves_one_plain_line():
    stream = io.StringIO()
    plain = PlainProgress(stream)
    plain.listen(StageStarted(Stage.DECODING))
    for done in range(12):
        plain.listen(StageAdvanced(Stage.DECODING, done, 12))
    plain.listen(StageFinished(Stage.DECODING, 0.4))
    assert stream.getvalue() == "decoding: 0.4 s\n"


def test_a_slow_stage_says_how_far_it_is(monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    stream = io.StringIO()
    plain = PlainProgress(stream)
    plain.listen(StageStarted(Stage.LOADING))
    plain.listen(StageAdvanced(Stage.LOADING, 0, 66e9))  # what has not begun is no progress
    plain.listen(StageAdvanced(Stage.LOADING, 16.5e9, 66e9))
    plain.listen(StageStarted(Stage.DECODING))
    plain.listen(StageAdvanced(Stage.DECODING, 6, 24))
    assert stream.getvalue() == ("loading: 25 %, 16.5 GB of 66.0 GB, after 0 s\ndecoding: 25 %, after 0 s\n")


def test_what_was_decided_is_a_line():
    stream = io.StringIO()
    PlainProgress(stream).listen(Noted("target in nf4: \x1b[31mas asked"))
    assert stream.getvalue() == "target in nf4: \\x1b[31mas asked\n"


def shown(stream: Tty) -> str:
    """What is on the screen in the end."""
    screen = pyte.Screen(80, 24)
    screen.set_mode(pyte.modes.LNM)  # a line feed begins a new line, as a terminal's driver makes it
    pyte.Stream(screen).feed(stream.getvalue())
    return "\n".join(line.rstrip() for line in screen.display).strip()


def waited(stream: Tty, text: str) -> bool:
    """Whether the text is written within some seconds, by the bar's own clock."""
    end = time.monotonic() + 20
    while text not in stream.getvalue() and time.monotonic() < end:
        time.sleep(0.02)
    return text in stream.getvalue()


def test_a_terminal_gets_a_bar_that_is_taken_away_and_notes_stay(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Tty()
    plain = PlainProgress(stream)
    plain.listen(StageStarted(Stage.LOADING))
    plain.listen(StageAdvanced(Stage.LOADING, 6e6, 12e6))
    assert waited(stream, "50% 6.00M/12.0MB")
    plain.listen(Noted("target in nf4"))
    plain.listen(StageStarted(Stage.DECODING))  # while the other has not ended
    plain.listen(StageFinished(Stage.DECODING, 0.4))
    assert shown(stream) == "target in nf4"


def test_the_clock_of_a_bar_runs_by_itself(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Tty()
    with PlainProgress(stream).counting("loading"):
        assert waited(stream, "loading 00:01")


def test_a_bar_is_as_wide_as_the_terminal_that_it_is_drawn_in(monkeypatch):
    """Not as that of stdin, of stdout or of the log of libraries, which are none here."""
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 60))
    with os.fdopen(theirs, "w") as stream:
        assert PlainProgress(stream)._bar(stream).console.width == 60
    os.close(ours)


def test_nothing_is_shown_before_a_stage_begins():
    stream = io.StringIO()
    PlainProgress(stream).advance("writing", 1, 2)
    assert stream.getvalue() == ""


def test_an_answer_that_nothing_else_shows_is_counted(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for answering, wanted in ((True, "answering 3 tokens"), (False, "")):
        stream = Tty()
        plain = PlainProgress(stream, answering=answering)
        plain.listen(StageStarted(Stage.ANSWERING))
        plain.listen(RoundDone(1, Round((1, 2, 3), (TokenKind.TARGET,) * 3), (), 0.1))
        assert waited(stream, wanted)
        plain.close()
        assert bool(stream.getvalue()) == answering


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Tty()
    plain = PlainProgress(stream, answering=True)
    plain.listen(StageStarted(Stage.LOADING))
    plain.listen(StageFinished(Stage.LOADING, 1.0))
    assert stream.getvalue() == "loading: 1.0 s\n"
