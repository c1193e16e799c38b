"""When each frame of a stream is shown, read from its packets without decoding them."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from numpy.typing import NDArray

from lvspec_cli.errors import VideoLimitError
from lvspec_cli.types import VideoLimits
from lvspec_cli.video.container import encrypted, is_encrypted, stream_packets
from lvspec_cli.video.sample import Times
from lvspec_cli.video.source import damaged, shown
from lvspec_cli.video.times import format_time

_INDEXED = {"mov": "dts", "matroska": "pts"}  # formats with an index, and the times it holds
_FALLBACK_RATE = Fraction(25)  # frames per second where neither packets nor header tell


@dataclass(frozen=True)
class KeyFrame:
    """A key frame at which reading can begin: no frame from it on needs an earlier one."""

    ordinal: int  # place among the stream's frames, in order of presentation
    pts: int  # ticks
    index_time: int  # ticks, as the container's index has it


@dataclass(frozen=True)
class Timeline:
    """Presentation times of a stream's frames.

    Without ``has_pts`` the container stores none: the k-th frame that comes out of the decoder is
    shown at the k-th time.
    """

    ticks: NDArray[np.int64]  # (frames,) ascending, in units of the time base
    time_base: Fraction  # seconds a tick
    has_pts: bool
    key_frames: tuple[KeyFrame, ...]  # ascending
    random_access: bool  # reading can begin at every key frame
    last_duration: float  # seconds for which the last frame is shown
    error: str | None  # what stopped the scan, None at the end of the file or of the stretch
    whole: bool  # false when the scan ended with the stretch

    @property
    def times(self) -> Times:
        """Seconds from the first frame, ascending."""
        since = (self.ticks - self.ticks[0]).astype(np.float64)
        return since * self.time_base.numerator / self.time_base.denominator

    @property
    def duration(self) -> float:
        """Seconds that were scanned."""
        return float(self.times[-1]) + self.last_duration

    @property
    def frame_rate(self) -> float | None:
        span = float(self.times[-1])
        return (len(self.ticks) - 1) / span if span > 0 else None


@dataclass
class _Packets:
    """What is kept of the packets, in decoding order."""

    pts: array[int]
    dts: array[int]
    key_places: list[int]
    has_pts: bool = True
    has_dts: bool = True
    last_duration: int = 0
    error: str | None = None
    whole: bool = True


def scan(
    container: InputContainer, stream: VideoStream, end: float | None, limits: VideoLimits, path: Path
) -> Timeline:
    """The timeline of ``stream`` up to ``end`` (seconds from its first frame) at least.

    Raises DamagedVideoError without a single packet, EncryptedVideoError, and VideoLimitError.
    """
    time_base = stream.time_base or Fraction(1, 1000)
    packets = _Packets(array("q"), array("q"), [])
    try:
        _collect(packets, container, stream, time_base, end, limits, path)
    except FFmpegError as error:
        packets.error = str(error.strerror)
    if not packets.pts:
        raise damaged("no frame can be read", path)
    return _timeline(packets, time_base, stream.average_rate or _FALLBACK_RATE, container.format.name)


def _collect(
    packets: _Packets,
    container: InputContainer,
    stream: VideoStream,
    time_base: Fraction,
    end: float | None,
    limits: VideoLimits,
    path: Path,
) -> None:
    first: int | None = None
    last_wanted = None if end is None else int(end / time_base)
    most_ticks = int(limits.duration / time_base)
    for packet in stream_packets(container, stream):
        if packet.is_discard:
            continue
        pts, dts = packet.pts, packet.dts
        if not packets.pts and is_encrypted(stream, packet):
            raise encrypted(path)
        if packet.is_keyframe:
            packets.key_places.append(len(packets.pts))
        packets.has_pts &= pts is not None
        packets.has_dts &= dts is not None
        packets.pts.append(pts or 0)
        packets.dts.append(dts or 0)
        packets.last_duration = packet.duration or packets.last_duration
        time = pts if pts is not None else dts
        if time is None:
            continue
        first = time if first is None else min(first, time)
        if time - first > most_ticks:
            raise VideoLimitError(
                f"longer than the limit of {format_time(limits.duration)}: {shown(path)}",
                "cut the part you need out of it first",
            )
        if last_wanted is not None and dts is not None and dts - first > last_wanted:
            packets.whole = False
            return


def _timeline(packets: _Packets, time_base: Fraction, rate: Fraction, format_name: str) -> Timeline:
    pts = np.frombuffer(packets.pts, np.int64)
    if packets.has_pts:
        ticks = np.unique(pts)
    elif packets.has_dts:
        ticks = np.unique(np.frombuffer(packets.dts, np.int64))
    else:
        ticks = np.round(np.arange(len(pts)) * float(1 / rate / time_base)).astype(np.int64)
    keys: tuple[KeyFrame, ...] = ()
    index_time = _INDEXED.get(format_name.split(",")[0])
    if index_time and packets.has_pts:
        held = pts if index_time == "pts" else np.frombuffer(packets.dts, np.int64)
        keys = tuple(
            KeyFrame(int(np.searchsorted(ticks, pts[place])), int(pts[place]), int(held[place]))
            for place in clean_places(pts, packets.key_places)
        )
    step = packets.last_duration or (int(ticks[-1] - ticks[-2]) if len(ticks) > 1 else 0)
    return Timeline(
        ticks=ticks,
        time_base=time_base,
        has_pts=packets.has_pts,
        key_frames=keys,
        random_access=bool(keys) and len(keys) == len(packets.key_places),
        last_duration=float(step * time_base),
        error=packets.error,
        whole=packets.whole,
    )


def clean_places(pts: NDArray[np.int64], key_places: list[int]) -> list[int]:
    """Those of ``key_places`` at which reading can begin, of frames with ``pts`` in decoding order.

    All that is decoded before such a frame is shown before it, all that is decoded after it, after it.
    Then its group is closed, as far as times can tell.
    """
    places = np.asarray(key_places, dtype=np.int64)
    smallest_after = np.minimum.accumulate(pts[::-1])[::-1]
    largest_before = np.concatenate([[np.iinfo(np.int64).min], np.maximum.accumulate(pts)[:-1]])
    is_clean = (smallest_after[places] == pts[places]) & (largest_before[places] < pts[places])
    return [int(place) for place in places[is_clean]]
