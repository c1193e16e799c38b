"""The live view in a real pseudo-terminal."""

from __future__ import annotations

import io
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from lvspec_cli.cli import caption_run, show
from lvspec_cli.cli.reporting import Stop
from lvspec_cli.host import may_be_seen
from lvspec_cli.types import TokenKind
from lvspec_cli.ui.lines import WordLines
from lvspec_cli.ui.progress import PlainProgress
from tests.cli.terminal import Terminal
from tests.conftest import Shell


@pytest.fixture(scope="module")
def evil_pair(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pair under the name of one that knows little."""
    models = tmp_path_factory.mktemp("evil") / "models.yaml"
    folder = tiny_models.parent
    models.write_text(
        "default: tiny\npairs:\n  tiny:\n    world: noise\n"
        f"    target: {{folder: {folder}/target}}\n    draft: {{folder: {folder}/draft}}\n"
        "    defaults: {frames: 4, gamma: 4, max_new_tokens: 120, fallback: false}\n"
    )
    return models


@pytest.fixture
def named(evil_pair: Path, tmp_path: Path) -> Shell:
    return Shell(tmp_path, {"LVSPEC_MODELS": str(evil_pair)})


def test_the_live_view_and_what_stays(named: Shell, video_file: Path, tmp_path: Path):
    evil = tmp_path / "a\x1b]0;owned\x07[red]\u202e.mp4"
    shutil.copy(video_file, evil)
    terminal = Terminal(named, "ask", evil, "What [bold]moves[/bold]?", "--question", "Why?")
    terminal.read(lambda text: "What [bold]moves[/bold]?" in text)
    top = terminal.text.splitlines()
    assert top[0].startswith("a\\x1b]0;owned\\x07[red]\\u202e.mp4")
    assert "decoding" in top[1]
    assert "1/2 What" in terminal.text
    for part in (
        "same as the large model",
        "draft's wording",
        "the large model's own",
        "tokens/s",
        "tokens a step of the large model",
        "of the draft kept",
    ):
        assert part in terminal.text, part

    terminal.resize(60, 18)
    terminal.read(lambda text: "2/2 Why?" in text)
    assert terminal.finish() == 0

    left = terminal.scrollback
    assert terminal.screen.switches == 1
    assert terminal.screen.saved is None, "the second screen was left"
    assert " ".join(left.split()).count("the large model's own") == 2, (
        "each answer keeps its colours, and a line that explains them"
    )
    assert "○" not in left, "the live view leaves nothing else behind"
    assert any(cell.underscore for line in terminal.screen.buffer.values() for cell in line.values())
    assert left.count("tokens in") == 2
    assert "tiny knows only noise" in left.replace("\n", " ")
    assert terminal.screen.title == ""
    assert b"\x07" not in terminal.raw
    assert "\u202e".encode() not in terminal.raw


def test_a_dumb_terminal_gets_plain_text(named: Shell, video_file: Path):
    terminal = Terminal(named, "ask", video_file, "What?", term="dumb")
    assert terminal.finish() == 0
    assert terminal.screen.switches == 0
    assert "of the draft kept" in terminal.text


def test_no_color_keeps_the_view_and_drops_the_colours(named: Shell, video_file: Path, tmp_path: Path):
    shell = Shell(tmp_path, {**named.extra, "NO_COLOR": "1"})
    terminal = Terminal(shell, "ask", video_file, "What?")
    assert terminal.finish() == 0
    assert terminal.screen.switches == 1
    assert not any(b"\x1b[%dm" % code in terminal.raw for code in (32, 33, 35, 36))
    assert b"\x1b[4m" in terminal.raw


def test_records_are_no_view(named: Shell, video_file: Path):
    terminal = Terminal(named, "ask", video_file, "What?", "--json")
    assert terminal.finish() == 0
    assert terminal.screen.switches == 0
    assert '"tokens_per_s"' in terminal.scrollback.replace("\n", "")


def test_control_c_leaves_the_view_and_prints_what_there_is(
    endless_models: Path, video_file: Path, tmp_path: Path
):
    rows = tmp_path / "rounds"
    shell = Shell(tmp_path, {"LVSPEC_MODELS": str(endless_models)})
    terminal = Terminal(shell, "ask", video_file, "What?", "--trace", rows)
    terminal.read(lambda _: rows.is_file() and rows.read_text().count("\n") >= 3)
    terminal.type("\x03")
    assert terminal.finish() == 130
    assert terminal.screen.saved is None
    assert "tokens in" in terminal.text
    assert "interrupted" in terminal.text


def test_a_file_that_cannot_be_read_does_not_flash_the_view(named: Shell, tmp_path: Path):
    (tmp_path / "notes.mp4").write_text("not a video\n" * 100)
    terminal = Terminal(named, "ask", tmp_path / "notes.mp4", "What?")
    assert terminal.finish() == 1
    assert terminal.screen.switches == 0
    assert "error: " in terminal.text


words = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=12)


@settings(max_examples=30)
@example(["00000000000々"], 9, 12)
@given(st.lists(words, max_size=20), st.integers(1, 9), st.integers(12, 60))
def test_streamed_text_ends_its_lines_between_words(parts: list[str], size: int, width: int) -> None:
    text = " ".join(parts)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    passed, lines = WordLines(None), WordLines(width)
    assert "".join(map(passed.feed, pieces)) + passed.end() == text
    shown = "".join(map(lines.feed, pieces)) + lines.end()
    assert "".join(shown.split()) == "".join(text.split())
    assert all(cell_len(line) <= width for line in shown.split("\n"))
    if text.isascii():
        assert shown.split() == parts


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (("A re", "d ba", "ll ro", "lls."), "A red ball\nrolls."),
        (("one\n\ntwo th", "ree four"), "one\n\ntwo three\nfour"),
        (("a-word-without-end and", " more"), "a-word-with\nout-end and\nmore"),
        (("赤い", "ボールが", "転がる"), "赤いボール\nが転がる"),
    ],
)
def test_streamed_text_by_hand(pieces: tuple[str, ...], shown: str) -> None:
    lines = WordLines(11)
    assert "".join(map(lines.feed, pieces)) + lines.end() == shown
    assert lines.feed("one ") + lines.end() + lines.feed("two ") + lines.end() == "onetwo"


def test_a_word_of_several_tokens_keeps_their_colours() -> None:
    lines = WordLines(8, lambda text, kind: f"<{kind.value}:{text}>")
    feeds = [("A re", TokenKind.EXACT), ("dder", TokenKind.FILLER), (" ball", TokenKind.TARGET)]
    shown = "".join(lines.feed(text, kind) for text, kind in feeds) + lines.end()
    assert shown == "<exact:A> <exact:re><filler:dder>\n<target:ball>"


def test_models_is_a_table(named: Shell):
    terminal = Terminal(named, "models", columns=100)
    assert terminal.finish() == 0
    assert "tiny (default)" in terminal.scrollback
    assert "──" in terminal.scrollback
    assert "\t" not in terminal.text


def test_nothing_moves_over_what_another_program_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As with `| tee` in a terminal: stderr is the terminal, stdout a pipe that ends there."""
    terminal, nothing = (
        io.StringIO(),
        SimpleNamespace(pair=SimpleNamespace(world=None), questions=(), total=1),
    )
    anything: Any = nothing
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    counted, lively = list[bool](), list[bool]()

    def plain(stream: object, *, answering: bool) -> PlainProgress:
        counted.append(answering)
        return PlainProgress(None)

    @contextmanager
    def batch_show(start: object, *, live: bool, stopping: object):
        lively.append(live)
        yield SimpleNamespace(listen=None, add=None)

    monkeypatch.setattr(show, "PlainProgress", plain)
    monkeypatch.setattr("lvspec_cli.ui.batch.batch_show", batch_show)
    for module in (show, caption_run):
        monkeypatch.setattr(module, "message_stream", lambda: terminal)
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe, (tmp_path / "file").open("w") as file:
        for stream in (pipe, file):
            monkeypatch.setattr(sys, "stdout", stream)
            with show.showing(anything, anything, Stop(), as_json=False, quiet=False):
                pass
            for printed in (True, False):
                with caption_run._showing(anything, Stop(), False, printed):
                    pass
        assert [may_be_seen(stream) for stream in (pipe, file, terminal)] == [True, False, True]
    os.close(reading)
    assert counted == [False, True]
    assert lively == [False, True, True, True]
