"""The entry to video: what was asked of one file becomes a Clip, or what is known of it without decoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lvspec_cli.types import Clip, VideoInfo, VideoRequest
from lvspec_cli.video.child import Child, decoding_child
from lvspec_cli.video.messages import Finished, Job, Opened
from lvspec_cli.video.sample import check_request


def read_clip(request: VideoRequest, *, progress: Callable[[int, int], None] | None = None) -> Clip:
    """Decode the frames that ``request`` asks for, in a child process.

    ``progress`` is called with the frames read so far and the frames expected. With neither ``fps`` nor
    ``max_frames`` 2 frames a second are taken, evenly spread 128 at most; without ``max_pixels`` a frame
    has at most 602,112. Raises UsageError, NoInputError and VideoError with its kinds.
    """
    check_request(request)
    with decoding_child(Job("read", request)) as child:
        return receive_clip(child, request, progress=progress)


def receive_clip(
    child: Child,
    request: VideoRequest,
    *,
    admit: Callable[[int], None] = lambda size: None,
    progress: Callable[[int, int], None] | None = None,
) -> Clip:
    """The clip that ``child`` is decoding for ``request``.

    ``admit`` is called with the bytes of its frames before memory is taken for them.
    """
    opened: Opened = child.receive()
    admit(opened.expected * opened.frame_bytes)
    frames, times, finished = _receive_frames(child, opened, progress or (lambda done, expected: None))
    return Clip(
        path=request.path,
        frames=frames,
        timestamps=tuple(times),
        frame_rate=finished.frame_rate,
        duration=finished.duration,
        begins=finished.begins,
        start=request.start or 0.0,
        end=request.end if request.end is not None else finished.duration,
        source_width=opened.source_width,
        source_height=opened.source_height,
        frames_expected=opened.expected,
        decoder=finished.decoder,
        decode_seconds=child.seconds,
        warnings=finished.warnings,
    )


def _receive_frames(
    child: Child, opened: Opened, progress: Callable[[int, int], None]
) -> tuple[np.ndarray, list[float], Finished]:
    frames = np.empty((opened.expected, opened.height, opened.width, 3), np.uint8)
    times: list[float] = []
    progress(0, opened.expected)
    while not isinstance(message := child.receive(), Finished):
        child.receive_into(memoryview(frames[len(times)].reshape(-1)))
        times.append(message)
        progress(len(times), opened.expected)
    return frames[: len(times)], times, message


TIMEOUT = 20.0  # seconds


def probe(path: Path, *, timeout: float = TIMEOUT) -> VideoInfo:
    """Format, size and rate as the header of ``path`` has them, times as its packets do; by a child process.

    Raises NoInputError and VideoError with its kinds.
    """
    with decoding_child(probe_job(path, timeout)) as child:
        info: VideoInfo = child.receive()
        return info


def probe_job(path: Path, timeout: float | None = TIMEOUT) -> Job:
    return Job("probe", VideoRequest(path, timeout=timeout))
