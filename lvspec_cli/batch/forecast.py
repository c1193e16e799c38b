"""What decoding would take of a video, without decoding it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lvspec_cli.types import VideoInfo, VideoRequest

FALLBACK_RATE = 25.0  # frames a second, where the header says nothing
_MOST_FRAMES = 10_000_000  # of a video: a header may give it any rate


@dataclass(frozen=True)
class Forecast:
    """Frames that would be taken and their size in pixels; ``timestamps`` in seconds."""

    timestamps: tuple[float, ...]
    width: int
    height: int


def forecast(info: VideoInfo, request: VideoRequest) -> Forecast:
    """As ``read_clip`` would choose them were the header's frame rate true and even."""
    import numpy as np

    from lvspec_cli.video.geometry import fitted_size
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
