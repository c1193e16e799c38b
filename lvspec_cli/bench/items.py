"""The clips and prompts of a bench: demo clips, the user's clips and prompts, or a file of questions."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field

from lvspec_cli.batch.inputs import collect
from lvspec_cli.batch.lists import ClipRow, read_row
from lvspec_cli.batch.names import Input
from lvspec_cli.demo.texts import CAPTION_PROMPTS
from lvspec_cli.errors import NoInputError
from lvspec_cli.figures.answers import Item
from lvspec_cli.figures.fidelity import label_of
from lvspec_cli.figures.labels import read_scene_labels, with_labels
from lvspec_cli.output.records import encode_name, identify
from lvspec_cli.text_file import LISTS, lines_of, read_file, text_of
from lvspec_cli.types import DEFAULT_PROMPT, VideoRequest
from lvspec_cli.video.source import shown


@dataclass(frozen=True)
class BenchClip:
    """A clip, decoded once, and the prompts about it."""

    video: VideoRequest
    items: tuple[Item, ...]

    @property
    def sample(self) -> str:
        """A digest of the file's content; empty if it cannot be read, which decoding will report."""
        with suppress(OSError):
            return identify(self.video.path, b"").sample
        return ""


def clips_of(
    sources: Sequence[Path],
    video: VideoRequest,
    *,
    prompts: Sequence[str] = (),
    questions: int = 0,
    limit: int | None = None,
) -> tuple[BenchClip, ...]:
    """The videos named by ``sources``, each with prompts for captions.

    A clip written by ``lvspec demo``, with its scene next to it, gets labels (``with_labels``), the first
    ``questions`` of its questions, and, without ``prompts``, a caption prompt of the demo world.

    :param video: the request for every clip; its path is filled in.
    :param limit: the number of clips, from the first.
    :raises NoInputError: there is no video.
    :raises UsageError: a scene's file is damaged.
    """
    collected = collect(sources)
    # Unreadable inputs appear in the results with their error.
    inputs = [*collected.inputs, *(Input(problem.path, problem.name) for problem in collected.problems)]
    clips = []
    for number, source in enumerate(inputs[:limit]):
        start, end = source.start, source.end
        request = replace(
            video,
            path=source.path,
            start=video.start if start is None else start,
            end=video.end if end is None else end,
        )
        name = encode_name(source.name)[0] + _stretch(request, video)
        items = tuple(_items_of(source.path, name, number, source.prompts or tuple(prompts), questions))
        clips.append(BenchClip(request, items))
    return tuple(clips)


def are_labelled(clips: Sequence[BenchClip]) -> bool:
    """Whether the right answer to every question is known."""
    return all(label_of(item) is not None for clip in clips for item in clip.items)


def _items_of(path: Path, name: str, number: int, prompts: Sequence[str], questions: int) -> Iterator[Item]:
    labels = read_scene_labels(path)
    default = CAPTION_PROMPTS[number % len(CAPTION_PROMPTS)] if labels else DEFAULT_PROMPT
    for index, prompt in enumerate(prompts or (default,), 1):
        yield with_labels(Item(id=f"{name}#{index}", file_name=name, prompt=prompt), labels)
    for index, question in enumerate(labels.questions[:questions] if labels else (), 1):
        yield with_labels(Item(id=f"{name}#q{index}", file_name=name, prompt=question.question), labels)


class QuestionRow(ClipRow):
    """A line of a file of questions. ``answer``: a right one; with ``choices``, one of them or its letter."""

    question: str = Field(min_length=1)
    answer: str | None = None
    choices: tuple[str, ...] = Field(default=(), max_length=len(string.ascii_uppercase))


def clips_of_questions(file: Path, video: VideoRequest, *, limit: int | None = None) -> tuple[BenchClip, ...]:
    """The clips named by a JSONL file of questions, in its order, each with all questions about it.

    Relative paths are relative to the file's folder.

    :param limit: the number of clips, from the first.
    :raises NoInputError: the file cannot be read, or is empty.
    :raises UsageError: a line is invalid; the cause names it.
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
    """The question followed by its lettered choices and an instruction; unchanged without choices."""
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
            location = f"{shown(file)}, line {number}"
            yield number, read_row(QuestionRow, line, location, "end is not after start")


def _stretch(request: VideoRequest, base: VideoRequest) -> str:
    """The suffix that distinguishes stretches of one file; empty for the default stretch."""
    if (request.start, request.end) == (base.start, base.end):
        return ""
    return f"@{request.start or 0:g}-" + ("" if request.end is None else f"{request.end:g}")
