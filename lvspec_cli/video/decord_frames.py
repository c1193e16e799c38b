"""Chosen frames of a file by decord, which brings an FFmpeg of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvspec_cli.video.picture import Look
from lvspec_cli.video.pixels import BT709, Orientation
from lvspec_cli.video.timeline import Timeline

# Containers whose frames decord gives right. It loses the first frames of MPEG-TS, and reads no GIF.
_CONTAINERS = ("mov", "matroska", "avi")


class UnfitError(Exception):
    """decord cannot give this video's frames; the text says why."""


def check_fit(container: str | None, streams: int, looks: Sequence[Look]) -> None:
    """Raise UnfitError for what decord gets wrong, of a file that begins as ``container`` does.

    The first bytes decide, not PyAV's verdict: decord's older FFmpeg would follow the addresses in a file
    that only it takes for a playlist. ``looks`` are those of the first and the last frame that are taken.
    """
    if container not in _CONTAINERS:
        raise UnfitError("it does not read this format reliably")
    if streams > 1:
        raise UnfitError("it may choose another of the video streams")
    for look in looks:
        if look.upright != Orientation():  # in some containers not at all, in the others not at a given size
            raise UnfitError("it does not turn the picture upright")
        if look.colours:
            raise UnfitError("it shows HDR and wide colours washed out")
        if look.matrix == BT709 and not look.is_tagged:
            raise UnfitError("it takes the colours of untagged HD for those of SD")
        if look.has_alpha:
            raise UnfitError("it shows what is transparent")
        if look.interlaced:
            raise UnfitError("it leaves two moments in an interlaced frame")
        if look.shape != looks[0].shape:
            raise UnfitError("the picture's shape changes")


def decord_frames(
    descriptor: int, timeline: Timeline, wanted: list[int], size: tuple[int, int]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The frames at the ascending ordinals ``wanted`` with their ticks; RGB (height, width, 3).

    decord scales them to ``size``, width and height: it decodes ahead of a slower reader, without a
    bound, and frames of full size would fill the memory.
    """
    try:
        import resource  # noqa: F401 - Windows has neither this nor /dev/fd
    except ImportError as error:
        raise UnfitError("this system cannot keep it to one file") from error
    try:
        import decord
    except (ImportError, OSError) as error:
        raise UnfitError("it is not installed") from error
    decord.logging.set_level(decord.logging.QUIET)
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        with _one_more_file():
            reader = decord.VideoReader(f"/dev/fd/{descriptor}", width=size[0], height=size[1], num_threads=1)
            if len(reader) != len(timeline.ticks):
                raise UnfitError(f"it counts {len(reader)} frames, there are {len(timeline.ticks)}")
            for ordinal, frame in _taken(reader, wanted, random_access=timeline.random_access):
                yield int(timeline.ticks[ordinal]), frame
    except (decord.DECORDError, AssertionError, RuntimeError, StopIteration) as error:
        raise UnfitError("it fails on this file") from error


def _taken(reader: Any, wanted: list[int], *, random_access: bool) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    if random_access:
        for ordinal in wanted:
            yield ordinal, reader[ordinal].asnumpy()
        return
    # Where groups are open, decord's own seeking gives other frames than it says: read all of them.
    ordinals = set(wanted)
    for ordinal in range(wanted[-1] + 1):
        frame = reader.next()
        if ordinal in ordinals:
            yield ordinal, frame.asnumpy()


@contextmanager
def _one_more_file() -> Iterator[None]:
    """Let this process open one more file and nothing else: no address, no second file, whatever is asked."""
    if sys.platform == "win32":
        raise UnfitError("Windows cannot keep it to one file")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
