from __future__ import annotations

import io
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from lvspec_cli.events import (
    Event,
    QuestionStarted,
    RoundDone,
    Stage,
    StageAdvanced,
    StageFinished,
    StageStarted,
)
from lvspec_cli.types import Piece, Round, TokenKind
from lvspec_cli.ui.render import (
    STEP,
    STYLES,
    Picture,
    answer_text,
    bars,
    current_text,
    kept_answer,
    last_pieces,
)
from lvspec_cli.ui.state import View, fold
from tests.ui.test_state import CLIP, EMPTY, PREFILL, ROUND, SHORT


def draw(
    view: View, columns: int = 80, rows: int = 24, elapsed: float = 0.0, stopping: bool = False
) -> list[str]:
    console = Console(file=io.StringIO(), width=columns, height=rows, markup=False)
    picture = Picture(view, elapsed=elapsed, stopping=stopping)
    lines = console.render_lines(picture, console.options.update(height=rows), pad=False)
    return ["".join(segment.text for segment in line) for line in lines]


EVENTS: list[Event] = [
    StageFinished(Stage.DECODING, 0.4),
    CLIP,
    StageFinished(Stage.LOADING, 2.0),
    QuestionStarted(1, 3, "What [bold]moves?"),
    StageStarted(Stage.ANSWERING),
    PREFILL,
    ROUND,
    SHORT,
]
FULL = reduce(fold, EVENTS, EMPTY)


def test_everything_the_user_is_promised_is_there():
    text = "\n".join(draw(FULL))
    for part in (
        "a.mp4", "6.0 s", "12 frames of 320x240", "decoding 0.4 s", "loading 2.0 s", "encoding the video",
        "answering", "1/3 What [bold]moves?", "A red ball.",
        "same as the large model 1   draft's wording 1   the large model's own 3",
        "5.0 tokens/s   2.0 tokens a step of the large model   25% of the draft kept", "2 steps",
    ):  # fmt: skip
        assert part in text, part


def test_four_stages_fit_into_80_columns_and_the_running_one_counts_seconds():
    took = ((Stage.DECODING, 9.96), (Stage.LOADING, 123.4), (Stage.ENCODING, 9.94))
    view = reduce(fold, (StageFinished(stage, seconds) for stage, seconds in took), FULL)
    line = draw(view, elapsed=42.9)[1]
    assert line == "✓ decoding 10 s  ✓ loading 123 s  ✓ encoding the video 9.9 s  ● answering 42 s"
    assert draw(fold(view, StageAdvanced(Stage.LOADING, 1, 4)), elapsed=3.0)[1].split("  ")[1] == (
        "● loading 25% 3 s"
    )
    assert draw(view, elapsed=0.9)[1].endswith("● answering")
    auditing = fold(fold(view, StageFinished(Stage.ANSWERING, 9.9)), StageStarted(Stage.AUDITING))
    assert draw(auditing, elapsed=5.0)[1].endswith("● audit 5 s")
    audited = fold(auditing, StageFinished(Stage.AUDITING, 9.9))
    assert draw(audited)[1].endswith("✓ answering 9.9 s")


long_words = st.lists(st.text(st.characters(exclude_categories=()), max_size=60), max_size=60)


@given(long_words, st.integers(1, 130), st.integers(1, 40))
def test_it_never_leaves_the_terminal(words: list[str], columns: int, rows: int):
    view = replace(FULL, pieces=tuple(Piece(word, TokenKind.FILLER) for word in words))
    lines = draw(view, columns, rows)
    assert len(lines) <= rows
    assert all(cell_len(line) <= columns for line in lines)


def test_a_long_answer_shows_its_end():
    words = tuple(Piece(f"word{index} ", TokenKind.EXACT) for index in range(2000))
    text = "\n".join(draw(replace(FULL, pieces=words)))
    assert "word1999" in text
    assert "word0 " not in text


@given(st.lists(st.text(min_size=1, max_size=9), max_size=600), st.integers(0, 2000))
def test_the_end_of_an_answer_is_long_enough_and_not_much_longer(words: list[str], characters: int):
    pieces = [Piece(word, TokenKind.EXACT) for word in words]
    end = last_pieces(pieces, characters)
    assert list(end) == pieces[len(pieces) - len(end) :]
    assert sum(len(piece.text) for piece in end) >= min(characters, sum(map(len, words)))
    assert (len(pieces) - len(end)) % STEP == 0
    assert sum(len(piece.text) for piece in end[STEP:]) <= characters + 9


def test_each_kind_has_its_own_look_without_colour_too():
    pieces = [Piece(kind.value, kind) for kind in TokenKind]
    spans = {str(span.style) for span in answer_text(pieces).spans}
    assert len(spans) == len(TokenKind)
    plain = {
        " ".join(w for w in s.split() if w not in ("green", "yellow", "magenta")) for s in STYLES.values()
    }
    assert len(plain) == len(TokenKind)


def test_active_characters_of_the_model_do_not_reach_the_screen():
    text = answer_text([Piece("\x1b[2Jred\u202e", TokenKind.EXACT)]).plain
    assert text == "\\x1b[2Jred\\u202e"


@pytest.mark.parametrize(
    ("lengths", "wanted"), [((1, 5, 3), "▂█▅"), ((3,), "▅"), ((), ""), ((5,) * 9, "████")]
)
def test_bars(lengths: tuple[int, ...], wanted: str):
    assert bars(replace(EMPTY, lengths=lengths), 4) == wanted


def test_before_the_first_sign_of_a_clip():
    assert draw(EMPTY)[0] == "reading the video"


def test_the_panel_stands_at_the_bottom_and_shows_the_last_rounds():
    lines = draw(replace(FULL, lengths=(1,) * 200 + (5, 3)))
    assert len(lines) == 24
    assert lines[-1].startswith("202 steps ▂")
    assert lines[-1].endswith("▂█▅")
    assert cell_len(lines[-1]) == 80
    assert draw(replace(FULL, lengths=(3,)))[-1].startswith("1 step ▅")


def test_a_low_terminal_keeps_stages_and_answer():
    assert [line for line in draw(FULL, rows=11) if line][1] == "A red ball."
    assert "tokens/s" in "\n".join(draw(FULL, rows=12))
    assert draw(FULL, rows=11, stopping=True)[0] == "stopping"


LONG_NAME = replace(FULL, clip=replace(CLIP, path=Path("x" * 200)))


def test_a_line_that_is_too_long_says_that_it_goes_on():
    assert draw(LONG_NAME)[0] == "x" * 79 + "…"


def test_a_terminal_without_utf_8_gets_ascii():
    class Latin(io.StringIO):
        encoding = "latin-1"

    console = Console(file=Latin(), width=80, height=24, markup=False)
    lines = console.render_lines(Picture(replace(LONG_NAME, seconds=0.0)), console.options.update(height=24))
    text = "".join(segment.text for line in lines for segment in line)
    assert text.isascii(), [char for char in text if not char.isascii()]


def test_rounds_of_one_answer_only():
    later = fold(
        FULL, RoundDone(3, Round((6, 7), (TokenKind.SHIFT, TokenKind.TARGET), drafted=(6,)), (), 1.0)
    )
    assert later.lengths == (3, 1, 2)


def test_an_answer_is_kept_with_its_colours_and_what_they_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    words = (
        "A",
        " large",
        " red",
        " ball",
        " rolls",
        " from",
        " left",
        " to",
        " right",
        " slowly",
        ".\x1b[2J",
    )
    view = replace(FULL, pieces=tuple(Piece(word, TokenKind.FILLER) for word in words))
    drawn = kept_answer(view)
    assert "\x1b[4;33m" in drawn
    assert [line.rstrip() for line in Text.from_ansi(drawn).plain.splitlines()] == [
        "A large red ball rolls from",
        "left to right slowly.\\x1b[2J",
        "same as the large model 1",
        "draft's wording 1",
        "the large model's own 3",
    ]
    alone = kept_answer(replace(view, gamma=None))
    assert "same as" not in alone  # nothing was drafted


def test_of_thoughts_only_their_length_is_shown() -> None:
    view = replace(FULL, thinking=True)
    assert current_text(view, 100).plain == f"thinking, {view.tokens} tokens so far"
    assert current_text(FULL, 10**6).plain == answer_text(FULL.pieces).plain
