"""Which frames of a video are taken: decisions on times alone.

A frame's time is when it is shown, in seconds of the file's clock. The stretch
holds the frames with ``start <= time < end``; from its first frame's time ``a`` to its last one's ``b``

- at a rate F, the targets are ``a + k / F`` for k = 0, 1, ... while that is at most ``b``;
- evenly, N targets are ``a + k * (b - a) / (N - 1)``, both ends included, and the middle when N is 1.

The frame nearest to a target is taken, the earlier one of two that are equally near, and none twice.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lvspec_cli.errors import UsageError
from lvspec_cli.types import VideoRequest

DEFAULT_FPS = 2.0
DEFAULT_MAX_FRAMES = 128
DEFAULT_MAX_PIXELS = 768 * 28 * 28  # a frame of this size is 768 tokens of Qwen2.5-VL
MAX_FPS = 1000.0
_TOLERANCE = 1e-6  # seconds: far below the distance of two frames, far above rounding

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """How densely frames are taken; ``fps`` None means evenly, ``max_frames`` None no cap."""

    fps: float | None
    max_frames: int | None

    @staticmethod
    def of(request: VideoRequest) -> Sampling:
        if request.fps is None and request.max_frames is None:
            return Sampling(DEFAULT_FPS, DEFAULT_MAX_FRAMES)
        return Sampling(request.fps, request.max_frames)


def most_frames(request: VideoRequest, duration: float | None = None) -> int:
    """Frames that are taken at most. A file of unknown length is taken to give ``DEFAULT_MAX_FRAMES``.

    :param duration: seconds of the file's clock to its end, None when unknown.
    """
    sampling = Sampling.of(request)
    caps = [request.limits.sampled_frames]
    caps += [] if sampling.max_frames is None else [sampling.max_frames]
    ends = [end for end in (request.end, duration) if end is not None]
    if sampling.fps is not None and ends:
        length = max(0.0, min(ends) - (request.start or 0.0))
        caps.append(math.floor(length * sampling.fps) + 1)
    elif sampling.max_frames is None:
        caps.append(DEFAULT_MAX_FRAMES)
    return min(caps)


def is_open_ended(request: VideoRequest) -> bool:
    """Whether only the file's length tells how many frames are taken at most."""
    return request.end is None and Sampling.of(request).max_frames is None


def check_request(request: VideoRequest) -> None:
    """Raise UsageError when no video could satisfy the request."""
    start, end = request.start or 0.0, request.end
    if not (math.isfinite(start) and start >= 0):
        raise UsageError(f"--start {start:g} is not a time in a video", "give 0 or more seconds")
    if end is not None and not (math.isfinite(end) and end > start):
        raise UsageError(f"--end {end:g} is not after --start {start:g}", "give an end after the start")
    if request.fps is not None and not 0 < request.fps <= MAX_FPS:
        raise UsageError(f"--fps {request.fps:g} is out of range", f"give more than 0, at most {MAX_FPS:g}")
    if request.timeout is not None and not request.timeout > 0:
        raise UsageError(f"--decode-timeout {request.timeout:g} is out of range", "give seconds above 0")
    for flag, value in (("--frames", request.max_frames), ("--max-pixels", request.max_pixels)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} {value} is out of range", "give 1 or more")


def stretch(times: Times, start: float, end: float | None) -> slice:
    """The stretch of ``times``, or the one on show at ``start`` when none begins in it."""
    first = int(np.searchsorted(times, start - _TOLERANCE))
    last = len(times) if end is None else int(np.searchsorted(times, end - _TOLERANCE))
    if first >= last:
        first = max(first - 1, 0)
    return slice(first, max(last, first + 1))


def choose(times: Times, sampling: Sampling) -> list[int]:
    """Indices, ascending and unique, of the frames taken of a stretch with ascending ``times``."""
    cap = len(times) if sampling.max_frames is None else sampling.max_frames
    if sampling.fps is not None:
        chosen = nearest(times, rate_targets(times, sampling.fps))
        if len(chosen) <= cap:
            return chosen
    if cap >= len(times):
        return list(range(len(times)))
    return nearest(times, even_targets(times, cap))


def rate_targets(times: Times, fps: float) -> Times:
    """The targets at a rate that can matter: a frame is nearest to none but for the two around it, if to any.

    So the work is bounded by the frames, however high the rate.
    """
    places = (times - times[0]) * fps
    around = np.unique(np.concatenate([np.floor(places + _TOLERANCE), np.ceil(places - _TOLERANCE)]))
    last = math.floor((times[-1] - times[0] + _TOLERANCE) * fps)
    return np.asarray(times[0] + around[around <= last] / fps)


def even_targets(times: Times, count: int) -> Times:
    if count == 1:
        return np.asarray([(times[0] + times[-1]) / 2])
    return np.linspace(times[0], times[-1], count)


def nearest(times: Times, targets: Times) -> list[int]:
    """Indices, ascending and unique, of the times nearest to the targets (the earlier one of a tie)."""
    after = np.clip(np.searchsorted(times, targets), 1, max(len(times) - 1, 1))
    if len(times) == 1:
        return [0]
    before = after - 1
    is_later = times[after] - targets < targets - times[before] - _TOLERANCE
    return [int(index) for index in np.unique(np.where(is_later, after, before))]


_TIME = re.compile(
    r"(?:(?:(?P<hours>\d{1,9}):)?(?P<minutes>\d{1,9}):)?(?P<seconds>\d{1,15}(?:\.\d*)?|\.\d+)", re.ASCII
)
LATEST = 1e6  # seconds


def parse_time(text: str) -> float:
    """Seconds from ``90``, ``1:30`` or ``0:01:30.5``. Raises UsageError for anything else.

    Below an hour or a minute that is written out, minutes and seconds stay under 60.
    """
    match = _TIME.fullmatch(text.strip())
    if match:
        hours, minutes = float(match["hours"] or 0), float(match["minutes"] or 0)
        seconds = float(match["seconds"])
        if (match["hours"] is None or minutes < 60) and (match["minutes"] is None or seconds < 60):
            total = 60 * (60 * hours + minutes) + seconds
            if total > LATEST:
                raise UsageError(
                    f"{total:g} s is later than a video lasts", "give less than a million seconds"
                )
            return total
    raise UsageError(f"{text!r} is not a time", "write it as 90, 1:30 or 0:01:30.5")


def format_time(seconds: float) -> str:
    """``M:SS.s`` or ``H:MM:SS.s``, tenths cut off when they are zero."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    whole, tenth = divmod(tenths, 10)
    clock = f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"
    return f"{clock}.{tenth}" if tenth else clock
