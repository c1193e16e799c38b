from __future__ import annotations

from dataclasses import replace
from functools import reduce
from pathlib import Path

from lvspec_cli.events import (
    ClipReady,
    Event,
    QuestionStarted,
    RoundDone,
    Stage,
    StageAdvanced,
    StageFinished,
    StageStarted,
)
from lvspec_cli.types import Piece, Round, TokenKind
from lvspec_cli.ui.render import BARS, bars, clip_line
from lvspec_cli.ui.state import StageView, View, fold

EXACT, FILLER, SHIFT, TARGET = TokenKind.EXACT, TokenKind.FILLER, TokenKind.SHIFT, TokenKind.TARGET
EMPTY = View("demo", "lvspec", 4)
CLIP = ClipReady(Path("a.mp4"), 6.0, 0.0, None, 12, 12, 320, 240)
PREFILL = RoundDone(0, Round((1,), (TARGET,), prefill=True), (Piece("A", TARGET),), 0.0)
ROUND = RoundDone(
    1,
    Round((2, 3, 4), (EXACT, FILLER, TARGET), drafted=(2, 3, 9, 9)),
    (Piece(" red", EXACT), Piece(" ball", TARGET)),
    0.5,
)
SHORT = RoundDone(2, Round((5,), (TARGET,), drafted=(9, 9, 9, 9)), (Piece(".", TARGET),), 0.8)


def after(*events: Event) -> View:
    return reduce(fold, events, EMPTY)


def test_a_stage_waits_runs_and_ends():
    stage = Stage.DECODING
    assert stage not in EMPTY.stages
    assert after(StageStarted(stage)).stages[stage] == StageView(running=True)
    assert after(StageStarted(stage), StageAdvanced(stage, 3, 12)).stages[stage].share == 0.25
    assert after(StageAdvanced(stage, 3, 0)).stages[stage].share is None
    assert after(StageAdvanced(stage, 15, 12)).stages[stage].share == 1.0
    assert after(StageStarted(stage), StageFinished(stage, 0.5)).stages[stage] == StageView(seconds=0.5)


def test_figures_are_those_of_the_finished_answer():
    view = after(PREFILL, ROUND, SHORT)
    assert view.tokens == 5
    assert view.kinds == {TARGET: 3, EXACT: 1, FILLER: 1}
    assert view.lengths == (3, 1)
    assert view.mean_accepted_length == (5 - 1) / 2
    assert view.acceptance_rate == 2 / 8
    assert view.tokens_per_second == (5 - 1) / 0.8
    assert "".join(piece.text for piece in view.pieces) == "A red ball."


def test_rounds_without_the_draft_are_noted_for_the_rest_of_the_clip():
    alone = RoundDone(2, Round((5,), (TARGET,), fallback=True), (Piece(".", TARGET),), 0.8)
    assert not after(PREFILL, ROUND).fallback
    view = after(PREFILL, ROUND, alone, QuestionStarted(2, 2, "Why?"))
    assert view.fallback
    assert "without the draft" in clip_line(fold(view, CLIP)).plain


def test_bars_reach_from_nothing_to_the_most_that_could_be_accepted():
    assert bars(after(PREFILL, ROUND, SHORT), 10, plain=True) == bars(
        replace(after(PREFILL, ROUND, SHORT), gamma="auto"), 10, plain=True
    )
    wide = RoundDone(3, Round((1,) * 10, (EXACT,) * 9 + (TARGET,), drafted=(1,) * 9), (), 1.0)
    grown = reduce(fold, (PREFILL, SHORT, wide), replace(EMPTY, gamma="auto"))
    assert grown.widest == 9
    assert bars(grown, 10) == BARS[1] + BARS[-1]


def test_nothing_to_say_before_the_first_round():
    view = after(PREFILL)
    assert view.mean_accepted_length is None
    assert view.acceptance_rate is None
    assert view.tokens_per_second is None


def test_another_question_starts_afresh_and_keeps_the_clip():
    view = after(CLIP, StageFinished(Stage.LOADING, 2.0), PREFILL, ROUND, QuestionStarted(2, 2, "Why?"))
    assert view.clip == CLIP
    assert view.stages[Stage.LOADING].seconds == 2.0
    assert (view.tokens, view.lengths, view.pieces, view.drafted) == (0, (), (), 0)
    assert view.question == QuestionStarted(2, 2, "Why?")


def test_a_target_that_thinks_is_seen_to() -> None:
    thinking = fold(EMPTY, replace(PREFILL, pieces=(), thinking=True))
    assert (thinking.thinking, thinking.tokens, thinking.pieces) == (True, 1, ())
    assert not fold(thinking, ROUND).thinking
