"""The forecast of ``--dry-run``: the time of past rows on this machine, and the frames of a video."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le
from pydantic import TypeAdapter, ValidationError

from lvspec_cli.errors import OutputError, UsageError
from lvspec_cli.host import state_folder
from lvspec_cli.output.files import replacing
from lvspec_cli.text_file import SETTINGS, read_own
from lvspec_cli.types import VideoInfo, VideoRequest

KEPT_RUNS = 200
ENOUGH_ROWS = 50  # for a forecast


@dataclass(frozen=True)
class PastRun:
    """One run: its settings, the number of rows that it wrote, and its seconds without loading."""

    pair: str
    mode: str
    device: str
    workers: int
    frames: int | None
    rows: Annotated[int, Ge(0)]
    seconds: Annotated[float, Ge(0), Le(1e9)]  # neither infinite nor not-a-number
    audit: float = 0.0  # share of the rows that were answered twice
    think: bool = False
    at_once: int = 1  # captions that each worker decoded together


_RUN = TypeAdapter(PastRun)


def history_file() -> Path | None:
    """``runs.jsonl`` in the user's state folder, if the user has one."""
    folder = state_folder()
    return folder and folder / "runs.jsonl"


def remember(run: PastRun, file: Path | None) -> None:
    """Adds a run to the history. A history that cannot be written is ignored, an unreadable one replaced."""
    if file is None:
        return
    with suppress(OSError, OutputError):
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [_RUN.dump_json(past) for past in [*past_runs(file)[1 - KEPT_RUNS :], run]]
        with replacing(file, sync=False) as stream:
            stream.write(b"".join(line + b"\n" for line in lines))


def past_runs(file: Path | None) -> list[PastRun]:
    """All runs in the history, oldest first. Invalid lines and a file that is too large are skipped."""
    runs: list[PastRun] = []
    with suppress(OSError, UsageError):
        for line in read_own(file, SETTINGS).splitlines() if file else ():
            with suppress(ValidationError):
                runs.append(_RUN.validate_json(line))
    return runs


def seconds_a_row(runs: Sequence[PastRun], like: PastRun) -> float | None:
    """Seconds a row in the newest runs with the same settings; None if there is none.

    As many runs count as it takes to have ENOUGH_ROWS: a few rows alone would tell of a run's start.

    :param runs: oldest first.
    """
    rows, seconds = 0, 0.0
    for run in reversed(runs):
        if rows < ENOUGH_ROWS and replace(run, rows=like.rows, seconds=like.seconds) == like:
            rows, seconds = rows + run.rows, seconds + run.seconds
    return seconds / rows if rows else None


FALLBACK_RATE = 25.0  # frames a second, if the header gives none
_MOST_FRAMES = 10_000_000  # of a video, because a header may give any rate


@dataclass(frozen=True)
class Forecast:
    """The frames that would be sampled, their size in pixels, and their ``timestamps`` in seconds."""

    timestamps: tuple[float, ...]
    width: int
    height: int


def forecast(info: VideoInfo, request: VideoRequest) -> Forecast:
    """The frames that ``read_clip`` would sample if the header's frame rate is true and constant."""
    import numpy as np

    from lvspec_cli.video.pixels import fitted_size
    from lvspec_cli.video.sample import DEFAULT_MAX_PIXELS, Sampling, choose, stretch

    end = info.duration if info.duration is not None else request.end or 1.0
    seconds = max(0.0, min(end - info.begins, request.limits.duration))
    rate = info.frame_rate or FALLBACK_RATE
    rate = min(rate, _MOST_FRAMES / seconds) if seconds else rate
    times = info.begins + np.arange(max(1, math.floor(seconds * rate + 1e-6))) / rate
    times = times[stretch(times, request.start or 0.0, request.end)]
    chosen = choose(times, Sampling.of(request))
    width, height = fitted_size(info.width, info.height, None, request.max_pixels or DEFAULT_MAX_PIXELS)
    return Forecast(tuple(float(times[index]) for index in chosen), width, height)
