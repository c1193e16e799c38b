"""Surveys a file without decoding it: which videos it holds, and when each of their frames is shown.

The times come from the packets. What the header says is used only where the packets confirm it.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from lvspec_cli.errors import DamagedVideoError, UsageError, VideoError, VideoLimitError
from lvspec_cli.types import VideoInfo, VideoRequest
from lvspec_cli.video.container import describe, open_video
from lvspec_cli.video.sample import Times, format_time
from lvspec_cli.video.scan import Extent, extent_of, scan, scan_stretch
from lvspec_cli.video.source import Part, Slice, parts_of, shown
from lvspec_cli.video.timeline import Timeline

SMALL = 1 << 20  # bytes; a file up to this size is always scanned completely


@dataclass(frozen=True)
class Track:
    """One of the videos in a file. Nearly every file holds exactly one."""

    part: Part
    timeline: Timeline
    shift: float = 0.0  # seconds on the file's clock at which this video's own clock begins

    def time(self, tick: int) -> float:
        """The time of ``tick`` in seconds on the file's clock."""
        return self.shift + float((tick - self.timeline.origin) * self.timeline.time_base)


@dataclass(frozen=True)
class Header:
    """What a file's header says about its first video."""

    info: VideoInfo
    average_rate: float | None
    pixel_aspect: Fraction | None
    video_streams: int


@dataclass(frozen=True)
class Survey:
    """All videos of a file, presented as one. Times are in seconds on the file's clock."""

    tracks: tuple[Track, ...]
    header: Header
    begins: float  # time of the first frame; the sound may begin earlier
    duration: float  # end of the last frame
    unread: int = 0  # number of videos after the first one that cannot be read

    @property
    def times(self) -> Times:
        return np.concatenate([track.timeline.times + track.shift for track in self.tracks])

    @property
    def is_short(self) -> bool:
        """Whether clearly less can be read than the header states (headers are often a little wrong)."""
        first = self.tracks[0].timeline
        if any(track.timeline.error is not None for track in self.tracks):
            return True
        if len(self.tracks) > 1 or first.pieces > 1:
            return False  # the header describes only one of several videos
        seconds = first.duration if first.whole else self.duration
        # Some containers measure the duration from the first time stamp, others from 0.
        absolute = seconds + float(first.origin * first.time_base)
        missing = (self.header.info.duration or 0.0) - max(seconds, absolute)
        return missing > max(0.25, 0.03 * seconds)

    def doubtful(self, wanted: list[int]) -> int:
        """How many of the frames numbered ``wanted`` may look wrong because data is missing."""
        count = 0
        for track, inside in self.by_track(wanted):
            ticks = track.timeline.ticks[inside]
            broken = [(ticks >= begin) & (ticks < end) for begin, end in track.timeline.broken]
            count += int(np.any(broken, axis=0).sum()) if broken else 0
        return count

    def by_track(self, wanted: list[int]) -> list[tuple[Track, list[int]]]:
        """The frames numbered ``wanted`` for each track that has some, numbered within that track."""
        counts = [len(track.timeline.ticks) for track in self.tracks]
        tracks = []
        for track, after, count in zip(self.tracks, accumulate(counts), counts, strict=True):
            inside = [ordinal - (after - count) for ordinal in wanted if after - count <= ordinal < after]
            if inside:
                tracks.append((track, inside))
        return tracks


@dataclass
class _Memory:
    """Cached facts about one version of a file."""

    identity: tuple[int, ...]
    parts: tuple[Part, ...]
    ends: Extent | None = None
    whole: Survey | None = None
    grows: bool = True  # False once the times are known not to grow evenly through the file


class Surveyor:
    """Surveys files. The last one is cached: segments of a long video are requested one after another."""

    def __init__(self) -> None:
        self._memory: _Memory | None = None

    def look(self, file: io.FileIO, request: VideoRequest) -> Survey:
        """The survey for ``request``. If it asks for a time range of a long file, only that range is read.

        :raises VideoError: the file cannot be read, or exceeds a limit.
        :raises UsageError: the file ends before the range begins.
        """
        memory = self._recall(file)
        is_stretch = request.start is not None or request.end is not None
        # decord addresses frames by their number in the whole file, so all of them have to be counted.
        if is_stretch and request.decoder != "decord":
            survey = self._stretch(file, memory, request)
            if survey is not None:
                return survey
        return self._whole(file, memory, request)

    def info(self, file: io.FileIO, request: VideoRequest) -> VideoInfo:
        """What the file's header says, with begin and duration taken from the packets."""
        memory = self._recall(file)
        if _may_skip(memory):
            with open_video(file, request.path, request.limits) as (container, stream):
                ends = _ends(memory, container, stream, request)
                if ends is not None:
                    info = describe(container, stream, request.path)
                    return replace(info, begins=ends.begins, duration=ends.duration)
        survey = self._whole(file, memory, request)
        return replace(survey.header.info, begins=survey.begins, duration=survey.duration)

    def _recall(self, file: io.FileIO) -> _Memory:
        status = os.fstat(file.fileno())
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._memory is None or self._memory.identity != identity:
            self._memory = _Memory(identity, parts_of(file))
        return self._memory

    def _stretch(self, file: io.FileIO, memory: _Memory, request: VideoRequest) -> Survey | None:
        """The survey of the requested time range only; None if the whole file has to be read."""
        if not _may_skip(memory):
            return None
        with open_video(file, request.path, request.limits) as (container, stream):
            ends = _ends(memory, container, stream, request)
            if ends is None:
                return None
            start = request.start or 0.0
            header = _header(container, stream, request.path)
            if start >= ends.duration:
                raise starts_too_late(start, ends.duration, header.info.duration, shown(request.path))
            end = ends.duration if request.end is None else request.end
            timeline = scan_stretch(container, stream, ends, start, end)
            memory.grows = timeline is not None
            if timeline is None:
                return None
        return Survey((Track(memory.parts[0], timeline),), header, ends.begins, ends.duration)

    def _whole(self, file: io.FileIO, memory: _Memory, request: VideoRequest) -> Survey:
        if memory.whole is None:
            memory.whole = _all(file, memory.parts, request)
        return memory.whole


def opened(file: io.FileIO, part: Part) -> io.RawIOBase:
    """``part`` as a file of its own; ``file`` itself if the part is the whole file."""
    return file if part == Part(0, os.fstat(file.fileno()).st_size) else Slice(file, part)


def starts_too_late(
    start: float, readable: float, declared: float | None, name: str
) -> DamagedVideoError | UsageError:
    """The error for a ``start`` (seconds) after the last frame: the file is damaged, or just shorter."""
    if declared and start < declared:
        return DamagedVideoError(
            f"damaged after {format_time(readable)}, before --start {format_time(start)}: {name}",
            "copy or download it again, or start earlier",
        )
    return UsageError(
        f"--start {format_time(start)} is after the video's end at {format_time(readable)}: {name}",
        "start earlier",
    )


def _may_skip(memory: _Memory) -> bool:
    """Whether a part of the file can be read alone, and whether that saves time."""
    is_long = memory.parts[-1].end > SMALL
    return is_long and len(memory.parts) == 1 and memory.whole is None and memory.grows


def _ends(
    memory: _Memory, container: InputContainer, stream: VideoStream, request: VideoRequest
) -> Extent | None:
    """Begin and end of a freshly opened stream; None if they do not determine the times in between."""
    if memory.ends is None:
        memory.ends = extent_of(container, stream)
        memory.grows = memory.ends is not None
    if memory.ends is not None and memory.ends.duration > request.limits.duration:
        raise too_long(memory.ends.duration, request)
    return memory.ends


def too_long(duration: float, request: VideoRequest) -> VideoLimitError:
    limit = format_time(request.limits.duration)
    return VideoLimitError(
        f"{format_time(duration)} long, the limit is {limit}: {shown(request.path)}",
        "cut the part you need out of it first",
    )


def _all(file: io.FileIO, parts: tuple[Part, ...], request: VideoRequest) -> Survey:
    """All videos of the file, scanned completely. Unreadable ones after the first are counted."""
    tracks: list[Track] = []
    header: Header | None = None
    end, unread = 0.0, 0
    for part in parts:
        try:
            with open_video(opened(file, part), request.path, request.limits) as (container, stream):
                header = header or _header(container, stream, request.path)
                timeline = scan(container, stream, request.path)
        except VideoError:
            if not tracks:
                raise
            unread += 1
            continue
        tracks.append(Track(part, timeline, end))
        end += timeline.duration
        if end > request.limits.duration:
            raise too_long(end, request)
    assert header is not None
    return Survey(tuple(tracks), header, tracks[0].timeline.begins, end, unread)


def _header(container: InputContainer, stream: VideoStream, path: Path) -> Header:
    return Header(
        info=describe(container, stream, path),
        average_rate=float(stream.average_rate) if stream.average_rate else None,
        pixel_aspect=stream.sample_aspect_ratio,
        video_streams=len(container.streams.video),
    )
