from __future__ import annotations

import io
import time

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
    plain.listen(StageAdvanced(Stage.LOADING, 16.5e9, 66e9))
    plain.listen(StageStarted(Stage.DECODING))
    plain.listen(StageAdvanced(Stage.DECODING, 6, 24))
    assert stream.getvalue() == "loading  25% 16.5G/66.0GB 00:00\ndecoding  25% 00:00\n"


def test_what_was_decided_is_a_line():
    stream = io.StringIO()
    PlainProgress(stream).listen(Noted("target in nf4: \x1b[31mas asked"))
    assert stream.getvalue() == "target in nf4: \\x1b[31mas asked\n"


def test_a_terminal_gets_a_bar_that_is_taken_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Tty()
    plain = PlainProgress(stream)
    plain.listen(StageStarted(Stage.DECODING))
    plain.listen(StageAdvanced(Stage.DECODING, 6, 12))
    assert "50%" in stream.getvalue()
    plain.listen(StageFinished(Stage.DECODING, 0.4))
    assert stream.getvalue().endswith("\r")


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
        time.sleep(0.15)  # longer than a bar waits between two pictures
        plain.listen(RoundDone(1, Round((1, 2, 3), (TokenKind.TARGET,) * 3), (), 0.1))
        plain.close()
        assert wanted in stream.getvalue()
        assert bool(stream.getvalue()) == answering


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Tty()
    plain = PlainProgress(stream, answering=True)
    plain.listen(StageStarted(Stage.LOADING))
    plain.listen(StageFinished(Stage.LOADING, 1.0))
    assert stream.getvalue() == "loading: 1.0 s\n"
