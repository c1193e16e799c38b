"""Reads a stream's packets without decoding them: all of them, or only those of a time range."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from lvspec_cli.video.container import encrypted, file_begins, is_encrypted, stream_packets
from lvspec_cli.video.source import damaged
from lvspec_cli.video.timeline import (
    REORDERED,
    UNKNOWN,
    Packets,
    StreamClock,
    Ticks,
    Timeline,
    seconds_between,
    timeline_of,
)

INDEXED = frozenset({"mov", "matroska"})
WITHOUT_HEADER = frozenset({"mpegts", "mpeg"})  # reading can start at any byte
SEEKABLE = INDEXED | WITHOUT_HEADER | {"avi"}  # formats in which a seek to any time is fast
_SPLICED = WITHOUT_HEADER | {"flv"}
_FIELD_CODECS = frozenset({"h264", "hevc"})
_FALLBACK_RATE = Fraction(25)  # frames per second if neither packets nor header give a rate
_BACK = (0, 2, 4, 8, 32, 128)  # seconds before the range at which a key frame is searched, in this order
_FAR = 10**7  # seconds; later than the end of any video
_TAIL = 2  # seconds; no frame is decoded longer than this before it is shown
_MOST_TICKS = 1 << 56
_HEAD_PACKETS = 64  # enough to determine when the first frame is shown
_SAMPLES = 24  # positions at which the times of a stream without an index are compared


@dataclass(frozen=True)
class Extent:
    """Begin and end of a stream, determined from its first and last packets. In ticks of ``time_base``."""

    origin: int  # start of the file's clock
    first: int  # the first frame's time
    end: Fraction  # end of the last frame
    time_base: Fraction  # seconds per tick

    @property
    def begins(self) -> float:
        """Seconds on the file's clock at which the first frame is shown."""
        return seconds_between(self.origin, self.first, self.time_base)

    @property
    def duration(self) -> float:
        """Seconds on the file's clock at which the last frame ends."""
        return seconds_between(self.origin, self.end, self.time_base)


def format_of(container: InputContainer) -> str:
    return container.format.name.split(",")[0]


def clock_of(container: InputContainer, stream: VideoStream) -> StreamClock:
    time_base, name = stream.time_base or Fraction(1, 1000), format_of(container)
    return StreamClock(
        time_base=time_base,
        rate=stream.average_rate or _FALLBACK_RATE,
        begins=file_begins(container, time_base),
        stamped=name != "avi",
        indexed=name in INDEXED,
        spliced=name in _SPLICED,
        fields=stream.codec_context.name in _FIELD_CODECS,
    )


def scan(container: InputContainer, stream: VideoStream, path: Path) -> Timeline:
    """The timeline of the complete ``stream`` of a freshly opened file.

    :raises DamagedVideoError: no packet can be read, or the times are impossible.
    :raises EncryptedVideoError: the packets are encrypted.
    """
    collector, error = _Collector(), None
    try:
        for packet in stream_packets(container, stream):
            if not collector.pts and is_encrypted(stream, packet):
                raise encrypted(path)
            collector.take(packet)
    except (FFmpegError, OSError) as failure:
        error = str(failure.strerror)
    if not collector.pts:
        raise damaged("no frame can be read", path)
    try:
        return replace(timeline_of(collector.packets(), clock_of(container, stream)), error=error)
    except OverflowError:
        raise damaged("its times are beyond reason", path) from None


def scan_stretch(
    container: InputContainer, stream: VideoStream, extent: Extent, start: float, end: float
) -> Timeline | None:
    """The timeline from the key frame before ``start`` to ``end`` or later, in seconds on the file's clock.

    None if the whole stream has to be scanned instead.
    """
    clock = clock_of(container, stream)
    begin = max(extent.first, extent.origin + int(start / clock.time_base))
    after = extent.origin + int(end / clock.time_base)
    for back in _BACK:
        tick = begin - int(back / clock.time_base)
        from_first = not clock.indexed and tick <= extent.first  # no index: a seek may land after the first
        try:
            if from_first and clock.stamped:
                container.seek(0, unsupported_byte_offset=True, stream=stream)
            else:
                container.seek(max(tick, extent.first if clock.stamped else 0), stream=stream)
            packets = stream_packets(container, stream)
            collector = _collected(packets, begin, after, clock, from_first)
        except (FFmpegError, OSError):
            return None
        if collector is not None:
            timeline = timeline_of(collector.packets(), clock, at_start=from_first)
            if timeline.pieces > 1:
                return None
            ticks = _settled(timeline, collector)
            return replace(timeline, ticks=ticks, origin=extent.origin, whole=False, from_first=from_first)
        if tick <= extent.first:
            break
    return None


def extent_of(container: InputContainer, stream: VideoStream) -> Extent | None:
    """The extent of the stream of a freshly opened file, from the packets at its begin and end.

    None if it is not certain that the times grow evenly in between.
    """
    if format_of(container) not in SEEKABLE:
        return None
    clock = clock_of(container, stream)
    try:
        head = _taken(islice(stream_packets(container, stream), _HEAD_PACKETS))
        container.seek(int(_FAR / clock.time_base), stream=stream)
        tail = _taken(stream_packets(container, stream))
        if not clock.indexed and clock.stamped and tail.dts:  # the packet shown last may lie before these
            container.seek(max(tail.dts) - int(_TAIL / clock.time_base), stream=stream)
            tail = _taken(stream_packets(container, stream))
        grows = clock.indexed or not clock.stamped or grows_evenly(_samples(container, stream))
    except (FFmpegError, OSError):
        return None
    if not (head.pts and tail.pts and grows):
        return None
    if clock.spliced and not head.keys:  # no key frame yet: the first decodable frame comes later
        return None
    first, last = timeline_of(head.packets(), clock), timeline_of(tail.packets(), clock, at_start=False)
    if first.pieces > 1 or last.pieces > 1 or first.ticks[0] > last.ticks[0]:
        return None
    return Extent(first.origin, int(first.ticks[0]), int(last.ticks[-1]) + last.step, clock.time_base)


def grows_evenly(times: list[float]) -> bool:
    """Whether ``times`` (seconds, at evenly spaced positions of a file) look like those of one recording."""
    steps = np.diff(times)
    if not len(steps):
        return False
    return bool((steps > 0).all() and (steps <= 10 + 10 * np.median(steps)).all())


def _samples(container: InputContainer, stream: VideoStream) -> list[float]:
    """Decoding times in seconds at evenly spaced positions of the file."""
    times = []
    for number in range(_SAMPLES):
        container.seek(number * container.size // _SAMPLES, unsupported_byte_offset=True, stream=stream)
        for packet in stream_packets(container, stream):
            if packet.dts is not None:
                times.append(float(packet.dts * (stream.time_base or 0)))
                break
    return times


def _collected(
    packets: Iterable[Packet[VideoStream]], begin: int, after: int, clock: StreamClock, from_first: bool
) -> _Collector | None:
    """The packets from the last key frame shown at or before ``begin`` to all that are shown by ``after``.

    If frames are identified by counting, reading starts one key frame earlier, or (``from_first``) at the
    stream's first packet. None if ``packets`` start too late for ``begin``.
    """
    collector, keys, late = _Collector(), list[int](), 0
    for packet in packets:
        if not (collector.pts or from_first or packet.is_keyframe):
            continue
        time = packet.dts if packet.dts is not None else packet.pts
        if packet.is_keyframe:
            shown_at = packet.pts if packet.pts is not None or clock.stamped else time
            if not (collector.pts or from_first):
                if shown_at is None:
                    continue  # a start needs a key frame with a known time
                if shown_at > begin:
                    return None
            keys += [] if shown_at is None else [shown_at]
        collector.take(packet)
        if time is not None and time > after:
            late += 1
            # AVI stores only decoding times, and a frame may be decoded later than its neighbours are shown.
            if late > (0 if clock.stamped and packet.dts is not None else REORDERED):
                break
    else:
        collector.to_end = True
    if clock.indexed or UNKNOWN not in collector.pts:
        return collector if keys else None
    # The second key frame, once it is shown, gives the count of the frames before it.
    counted = begin - int(REORDERED * clock.step)
    return collector if from_first or sum(key <= counted for key in keys) > 1 else None


def _settled(timeline: Timeline, collector: _Collector) -> Ticks:
    """The ticks up to the last packet's decoding time: among later ones, frames may still be missing."""
    last = collector.dts[-1]
    if timeline.by_count or collector.to_end or last == UNKNOWN:
        return timeline.ticks
    return timeline.ticks[: max(1, int(np.searchsorted(timeline.ticks, last, side="right")))]


def _taken(packets: Iterable[Packet[VideoStream]]) -> _Collector:
    collector = _Collector()
    for packet in packets:
        collector.take(packet)
    return collector


def _stamp(tick: int | None) -> int:
    """``tick``, or UNKNOWN if it is missing or impossibly large."""
    return tick if tick is not None and abs(tick) < _MOST_TICKS else UNKNOWN


@dataclass
class _Collector:
    """Collects the metadata of packets, in decoding order."""

    pts: array[int] = field(default_factory=lambda: array("q"))
    dts: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    positions: array[int] = field(default_factory=lambda: array("q"))
    keys: array[int] = field(default_factory=lambda: array("q"))
    corrupt: array[int] = field(default_factory=lambda: array("q"))
    duration: int = 0
    to_end: bool = False  # the end of the file was reached

    def take(self, packet: Packet[VideoStream]) -> None:
        if packet.is_discard:
            return
        if packet.is_keyframe:
            self.keys.append(len(self.pts))
        if packet.is_corrupt:
            self.corrupt.append(len(self.pts))
        position = packet.pos
        self.pts.append(_stamp(packet.pts))
        self.dts.append(_stamp(packet.dts))
        self.sizes.append(packet.size)
        if position is None or position < 0:
            position = self.positions[-1] if self.positions else UNKNOWN
        self.positions.append(position)
        self.duration = packet.duration or self.duration

    def packets(self) -> Packets:
        return Packets(
            pts=np.array(self.pts),
            dts=np.array(self.dts),
            sizes=np.array(self.sizes),
            positions=np.array(self.positions),
            keys=np.array(self.keys),
            corrupt=np.array(self.corrupt),
            duration=self.duration,
        )
