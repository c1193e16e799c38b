"""What is asked of which clip: the demo's own, the user's clips and prompts, questions in a file."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field

from lvspec_cli.batch.inputs import collect
from lvspec_cli.batch.lists import ClipRow, read_row
from lvspec_cli.batch.names import Input
from lvspec_cli.demo.captions import CAPTION_PROMPTS
from lvspec_cli.errors import NoInputError
from lvspec_cli.figures.answers import Item
from lvspec_cli.figures.labels import labelled, labels_beside
from lvspec_cli.output.records import encode_name
from lvspec_cli.text_file import LISTS, lines_of, read_file, text_of
from lvspec_cli.types import DEFAULT_PROMPT, VideoRequest
from lvspec_cli.video.source import shown


@dataclass(frozen=True)
class BenchClip:
    """One clip, decoded once, and what is asked about it."""

    video: VideoRequest
    items: tuple[Item, ...]


def clips_of(
    sources: Sequence[Path],
    video: VideoRequest,
    *,
    prompts: Sequence[str] = (),
    questions: int = 0,
    limit: int | None = None,
) -> tuple[BenchClip, ...]:
    """The videos that ``sources`` name, each to be captioned.

    A clip with its scene beside it, as ``lvspec demo`` writes them, gets a prompt of its world where none is
    given, so many of its ``questions``, and what is known of the answers (``labelled``).

    :param video: what is taken of each; its path is filled in.
    :param limit: the first so many clips.
    :raises NoInputError: there is no video.
    :raises UsageError: a scene's file is damaged.
    """
    collected = collect(sources)
    # What was named and cannot be read stands in the results with its error.
    named = [*collected.inputs, *(Input(each.path, each.name) for each in collected.problems)]
    found = []
    for number, each in enumerate(named[:limit]):
        start, end = each.start, each.end
        request = replace(
            video,
            path=each.path,
            start=video.start if start is None else start,
            end=video.end if end is None else end,
        )
        name = encode_name(each.name)[0] + _stretch(request, video)
        items = tuple(_about(each.path, name, number, each.prompts or tuple(prompts), questions))
        found.append(BenchClip(request, items))
    return tuple(found)


def _about(path: Path, name: str, number: int, prompts: Sequence[str], questions: int) -> Iterator[Item]:
    labels = labels_beside(path)
    usual = CAPTION_PROMPTS[number % len(CAPTION_PROMPTS)] if labels else DEFAULT_PROMPT
    for index, prompt in enumerate(prompts or (usual,), 1):
        yield labelled(Item(id=f"{name}#{index}", file_name=name, prompt=prompt), labels)
    for index, asked in enumerate(labels.questions[:questions] if labels else (), 1):
        yield labelled(Item(id=f"{name}#q{index}", file_name=name, prompt=asked.question), labels)


class QuestionRow(ClipRow):
    """A line of a file of questions. ``answer``: a right one; with ``choices``, one of them or its letter."""

    question: str = Field(min_length=1)
    answer: str | None = None
    choices: tuple[str, ...] = Field(default=(), max_length=len(string.ascii_uppercase))


def clips_of_questions(file: Path, video: VideoRequest, *, limit: int | None = None) -> tuple[BenchClip, ...]:
    """The clips that a JSONL file of questions names, in its order, each with all that it asks about it.

    Relative paths are relative to the file's folder.

    :param limit: the first so many clips.
    :raises NoInputError: the file cannot be read, or is empty.
    :raises UsageError: a line is wrong; the cause names it.
    """
    clips: dict[VideoRequest, list[Item]] = {}
    for number, row in _rows(file):
        request = replace(
            video,
            path=file.parent / row.path,
            start=video.start if row.start is None else row.start,
            end=video.end if row.end is None else row.end,
        )
        name = row.path + _stretch(request, video)
        item = Item(
            id=f"{name}#{number}",
            file_name=name,
            prompt=with_choices(row.question, row.choices),
            task="ask",
            reference=row.answer,
            choices=row.choices,
        )
        clips.setdefault(request, []).append(item)
    if not clips:
        raise NoInputError(f"{shown(file)}: no question in it", 'write {"path": "clip.mp4", "question": "…"}')
    return tuple(BenchClip(request, tuple(items)) for request, items in clips.items())[:limit]


def with_choices(question: str, choices: Sequence[str]) -> str:
    """The question with its choices lettered below it, and how to answer; as it is where there are none."""
    if not choices:
        return question
    letters = string.ascii_uppercase
    lettered = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=False)]
    return "\n".join((question, *lettered, "Answer with the letter of the right choice."))


def _rows(file: Path) -> Iterator[tuple[int, QuestionRow]]:
    try:
        text = text_of(read_file(file, LISTS), shown(file))
    except OSError as error:
        raise NoInputError(f"{shown(file)}: {error.strerror}", "name a file of questions") from error
    for number, line in lines_of(text):
        if line.strip():
            place = f"{shown(file)}, line {number}"
            yield number, read_row(QuestionRow, line, place, "end is not after start")


def _stretch(request: VideoRequest, usual: VideoRequest) -> str:
    """What tells one stretch of a file from another in its name."""
    if (request.start, request.end) == (usual.start, usual.end):
        return ""
    return f"@{request.start or 0:g}-" + ("" if request.end is None else f"{request.end:g}")
