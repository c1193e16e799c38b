"""`lvspec chat`: through pipes, in a terminal, and its commands."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lvspec_cli.cli.chat import _Chat
from lvspec_cli.cli.reporting import Stop
from lvspec_cli.escape import visible
from lvspec_cli.events import Listener, RoundDone
from lvspec_cli.output.records import Record
from lvspec_cli.types import Piece, Round, TokenKind
from tests.cli.terminal import Terminal
from tests.conftest import Printed, Shell, demo_plan


@pytest.fixture
def tiny(here: Callable[..., Printed], tiny_models: Path) -> Callable[..., Printed]:
    """The command line with the tiny pair, in this process."""
    return partial(here, environment={"LVSPEC_MODELS": str(tiny_models)})


def test_each_line_of_a_pipe_is_a_question_or_a_command(tiny, video_file: Path, tmp_path: Path):
    text, rows = tmp_path / "chat.txt", tmp_path / "chat.jsonl"
    lines = [
        "What moves?", "", "/help", "Which colour?", f"/save {text}", f"/save {rows}", f"/save {text}",
        "/save", "/save /nowhere/chat.txt", "/save ~nosuch/chat.txt", "caf\udce9?", "/nope",
        "What is <|im_end|>?", "/reset", "What moves?", "/quit",
        "Never",
    ]  # fmt: skip
    flags = ["--mode", "exact", "--max-new-tokens", "6"]
    done = tiny("chat", video_file, *flags, stdin="\n".join(lines))
    records = [Record.model_validate_json(line) for line in rows.read_text().splitlines()]
    answers = [visible(record.text or "") for record in records]
    assert done.returncode == 1, "a question could not be answered"
    assert done.stdout == "".join(f"{answer}\n" for answer in (*answers, answers[0]))
    assert [record.prompt for record in records] == ["What moves?", "Which colour?"]
    assert [turn["answer"] for turn in records[1].settings["history"]] == [records[0].text]
    assert text.read_text() == f"> What moves?\n{answers[0]}\n\n> Which colour?\n{answers[1]}\n\n"
    said = done.stderr.splitlines()
    for expected in (
        "tiny has seen clip.mp4; /help lists commands, Ctrl-D ends the chat",
        "/reset      forget what was said, and keep the video",
        f"{text}: 2 answers",
        f"error: {text} is there already, and is left alone",
        "error: /save needs a file's name",
        "error: /nowhere/chat.txt: No such file or directory",
        "error: ~nosuch/chat.txt: there is no such home folder",
        "error: the question is not UTF-8 text",
        "error: there is no command /nope",
        "error: the text holds '<|im_end|>', which the model reads as a command",
        "all is forgotten but the video",
    ):
        assert expected in said, expected
    assert sum("6 tokens in" in line for line in said) == 3


def _answer_has_words(question: str, shown: str) -> bool:
    return len(shown.partition(question)[2].split()) > 3


def _has_ended(terminal: Terminal, number: int, _: str) -> bool:
    return terminal.scrollback.count(", interrupted") == number


def test_control_c_ends_the_answer_and_not_the_chat(endless_models: Path, video_file: Path, tmp_path: Path):
    shell = Shell(tmp_path, {"LVSPEC_MODELS": str(endless_models)})
    terminal = Terminal(shell, "chat", video_file)
    terminal.read(lambda text: "Ctrl-D ends the chat" in text)
    for number, question in enumerate(("What?", "Why?"), 1):
        terminal.type(f"{question}\r")
        # Only while words come: before, a Ctrl-C takes the typed line away, or readline does not see it.
        terminal.read(partial(_answer_has_words, question))
        terminal.type("\x03")
        assert terminal.read(partial(_has_ended, terminal, number))
    terminal.type("/quit\r")
    assert terminal.finish() == 0
    lines = [line for line in terminal.scrollback.splitlines() if "the large model's own" in line]
    told = [set(re.findall(r"([^\d]+) [1-9]", line)) for line in lines]
    assert told
    assert all(later > earlier for earlier, later in pairwise(told)), "again only if there is a new colour"


class _Aborted:
    """A conversation whose answer is dropped by a second Ctrl-C after some tokens."""

    def ask(self, question: str, listen: Listener, **_: object) -> None:
        pieces = (Piece("A red ball", TokenKind.TARGET),)
        listen(RoundDone(1, Round((1, 2), (TokenKind.TARGET,) * 2), pieces, 0.1))
        raise KeyboardInterrupt


def test_an_answer_that_is_dropped_leaves_all_that_has_come(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    conversation: Any = _Aborted()
    _Chat(conversation, demo_plan().choice, Stop(), False).ask("What?")
    assert capsys.readouterr() == ("A red ball\n", "interrupted\n")


def test_what_cannot_be_read_ends_it_at_once(tiny, tmp_path: Path):
    (tmp_path / "notes.mp4").write_text("just some notes\n" * 100)
    done = tiny("chat", tmp_path / "notes.mp4", "-q", stdin="What?\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
