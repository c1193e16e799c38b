"""Questions from arguments, files and stdin."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lvspec_cli.errors import NoInputError, UsageError
from lvspec_cli.text_file import PROMPTS, read_file, read_stream, text_of


def collect_questions(first: str | None, more: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """All questions in order: the argument, each ``--question``, then the lines of ``--questions``.

    ``-`` as a question is all of stdin, as a file its lines.

    :raises UsageError: there is none, one is empty, or a text is not UTF-8.
    :raises NoInputError: the file cannot be read.
    """
    given = [first, *more] if first is not None else list(more)
    if given.count("-") + (file == Path("-")) > 1:
        raise UsageError("stdin can be read only once", "use - for one question or for --questions")
    questions = [
        checked_text(_stdin(), "the question on stdin")
        if question == "-"
        else checked_text(question, "a question")
        for question in given
    ]
    if file is not None:
        text = _stdin() if file == Path("-") else read_text(file)
        questions += [line.strip() for line in text.splitlines() if line.strip()]
        if not text.strip():
            raise UsageError(f"{file}: no question in it", "write one a line")
    if not questions:
        raise UsageError(
            "there is no question", 'write one after the video: lvspec ask VIDEO "What happens?"'
        )
    return tuple(questions)


def checked_text(text: str, name: str) -> str:
    """The text without space around it.

    :raises UsageError: it is empty, or not UTF-8; ``name`` says which text.
    """
    if not text.strip():
        raise UsageError(f"{name} is empty", "write what you mean")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{name} is not UTF-8 text", "write it in UTF-8") from None
    return text.strip()


def _stdin() -> str:
    if sys.stdin is None:
        raise UsageError("stdin is closed", "give the question as an argument")
    return text_of(read_stream(sys.stdin.buffer, "stdin", PROMPTS), "stdin")


def read_text(file: Path) -> str:
    """The file's text.

    :raises NoInputError: it cannot be read.
    :raises UsageError: it is no text, or too much of it.
    """
    try:
        return text_of(read_file(file, PROMPTS), str(file))
    except OSError as error:
        raise NoInputError(f"{file}: {error.strerror}", "name a text file that can be read") from error
