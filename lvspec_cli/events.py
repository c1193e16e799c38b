"""Events of the pipeline, in order. They are plain values, so that a view is a fold over them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from lvspec_cli.types import Piece, Round

if TYPE_CHECKING:
    from lvspec_cli.output.records import Record


class Stage(StrEnum):
    """Stages of one run, in the order in which they happen."""

    DECODING = "decoding"
    LOADING = "loading"
    ENCODING = "encoding the video"
    ANSWERING = "answering"
    AUDITING = "audit"  # of some answers: the same in mode ar


@dataclass(frozen=True)
class StageStarted:
    stage: Stage


@dataclass(frozen=True)
class StageAdvanced:
    """``done`` of ``total`` in the stage's own unit, frames or bytes of weights; total 0 when unknown."""

    stage: Stage
    done: float
    total: float


@dataclass(frozen=True)
class StageFinished:
    stage: Stage
    seconds: float


@dataclass(frozen=True)
class ClipReady:
    """The clip that was sampled from the video. Sizes in pixels, times in seconds."""

    path: Path
    duration: float | None
    start: float
    end: float | None
    frames: int
    frames_expected: int
    width: int
    height: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuestionStarted:
    """``number`` counts from 1."""

    number: int
    count: int
    question: str


@dataclass(frozen=True)
class RoundDone:
    """One complete round. ``seconds`` since the answer's first token.

    ``thinking``: the tokens so far are thoughts, which are in no pieces.
    """

    number: int
    round: Round
    pieces: tuple[Piece, ...]
    seconds: float
    thinking: bool = False


@dataclass(frozen=True)
class Answered:
    """``tail``: text that was not in any round's pieces (an incomplete character at the end)."""

    record: Record
    tail: str = ""


@dataclass(frozen=True)
class Noted:
    """A decision that the user should know."""

    text: str


@dataclass(frozen=True)
class InSlot:
    """An event of one of several answers that are decoded at the same time. ``slot`` counts from 0."""

    slot: int
    event: Event


@dataclass(frozen=True)
class InWorker:
    """An event of one of several workers, which are counted from 0. It may be of one of its slots."""

    number: int
    event: Event


Event = (
    Noted
    | StageStarted
    | StageAdvanced
    | StageFinished
    | ClipReady
    | QuestionStarted
    | RoundDone
    | Answered
    | InSlot
    | InWorker
)
Listener = Callable[[Event], None]


@contextmanager
def timed_stage(stage: Stage, listen: Listener) -> Iterator[None]:
    """Tells that a stage begins, and that it has finished unless it fails."""
    began = time.perf_counter()
    listen(StageStarted(stage))
    yield
    listen(StageFinished(stage, time.perf_counter() - began))
