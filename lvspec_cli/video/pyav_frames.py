"""Decodes chosen frames of a stream with PyAV, seeking to key frames where that saves time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

import numpy as np
from av.codec.context import CodecContext
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.sidedata.sidedata import Type
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from lvspec_cli.video.container import SILENT_CODECS, decoder_of, stream_packets
from lvspec_cli.video.pixels import Orientation, orientation
from lvspec_cli.video.scan import INDEXED, SEEKABLE, WITHOUT_HEADER, format_of
from lvspec_cli.video.timeline import REORDERED, UNKNOWN, KeyFrame, Timeline

# Codecs that mark, in each packet, whether another frame may refer to its own, and whose decoders heed that.
_MARKS_REFERRED = frozenset({"h264", "mpeg4", "mpeg2video", "mpeg1video"})
_WORTH_A_SEEK = 32  # frames; a seek flushes FFmpeg's threads, which costs about as much as decoding these
_EARLIER = (0, 1, 3, 7)  # how many key frames earlier to start if the first try fails, in this order
_SECONDS_BACK = (0, 1, 4, 16, 64)  # before a key frame: where to seek so that reading meets it, in order
_BYTES_BACK = (0, 1 << 16, 1 << 20, 1 << 23)


@dataclass
class PyavReader:
    """Reads frames of one freshly opened stream; ``damaged`` counts decoding errors."""

    container: InputContainer
    stream: VideoStream
    timeline: Timeline
    damaged: int = 0
    decoder: VideoCodecContext = field(init=False)
    _needed: frozenset[int] | None = field(init=False, default=None)  # ticks; None: all frames are decoded

    def __post_init__(self) -> None:
        self.decoder = decoder_of(self.stream)

    @property
    def leaves_out(self) -> bool:
        """Whether :meth:`sure_frames` decodes less than :meth:`frames`."""
        return self.decoder.name in _MARKS_REFERRED and not self.timeline.by_count

    def sure_frames(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """As :meth:`frames`, but frames that are neither wanted nor referred to are left out.

        In files with B-frames these are some or all of them. It ends early at the first sign that a frame may
        be another than :meth:`frames` would give: at damage, or if one does not arrive at its tick.
        """
        ticks = [int(self.timeline.ticks[ordinal]) for ordinal in wanted]
        self._needed = frozenset(ticks) if self.leaves_out else None
        for expected, (tick, frame) in zip(ticks, self.frames(wanted), strict=False):
            if tick != expected or self.damaged:
                return
            yield tick, frame

    def frames(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """The frames with the ascending indices ``wanted``, and their ticks.

        A frame that cannot be decoded is replaced by the next one that can; no frame comes twice. Damage
        raises no error: there are fewer frames.
        """
        last = None
        can_seek = format_of(self.container) in (WITHOUT_HEADER if self._by_bytes else SEEKABLE)
        for key, ordinals in runs(wanted, self.timeline) if can_seek else [(None, wanted)]:
            for tick, frame in self._run(key, [int(self.timeline.ticks[ordinal]) for ordinal in ordinals]):
                if last is None or tick > last:
                    self.damaged += frame.is_corrupt
                    yield tick, frame
                    last = tick

    def _run(self, key: int | None, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """The frames at the ticks ``wanted``, decoded from key frame number ``key`` on.

        If the first one does not arrive, or arrives broken, decoding starts again from an earlier key frame.
        """
        faults = self.damaged
        for earlier in _EARLIER:
            begin = None if key is None else max(0, key - earlier)
            is_last = not begin or earlier == _EARLIER[-1]
            pending, is_right = wanted[::-1], True
            self.damaged = faults
            for tick, frame in self._decoded(begin):
                if tick < pending[-1]:
                    continue
                is_right = len(pending) < len(wanted) or (tick == pending[-1] and not frame.is_corrupt)
                if not (is_right or is_last):
                    break
                yield tick, frame
                while pending and pending[-1] <= tick:
                    pending.pop()
                if not pending:
                    return
            if is_last or (is_right and len(pending) < len(wanted)):
                return

    def _decoded(self, key: int | None) -> Iterator[tuple[int, VideoFrame]]:
        """Frames and their ticks in order of presentation, decoded from key frame number ``key`` on."""
        timeline = self.timeline
        counted = _Counted(timeline) if timeline.by_count else None
        last, is_behind = None, False
        for packet in self._packets(None if key is None else timeline.key_frames[key]):
            if self._needed is not None:
                is_needed = packet is None or packet.pts is None or packet.pts in self._needed
                # The packet behind a needed one may be its second field.
                self.decoder.skip_frame = "DEFAULT" if is_needed or is_behind else "NONREF"
                is_behind = is_needed
            for frame in self._decode(packet):
                tick = frame.pts if counted is None or frame.pts is None else counted.tick(frame.pts)
                if tick is not None and (last is None or tick > last):
                    last = tick
                    yield tick, frame

    def _packets(self, key: KeyFrame | None) -> Iterator[Packet[Any] | None]:
        """Packets from ``key`` on, with new time stamps if needed; a final None flushes the decoder."""
        stamps = self.timeline.stamps
        try:
            for index, packet in self._numbered(key):
                if self.timeline.restamped:
                    stamp = int(stamps[index]) if index < len(stamps) else UNKNOWN
                    packet.pts = packet.dts = None if stamp == UNKNOWN else stamp
                yield packet
        except (FFmpegError, OSError):
            self.damaged += 1
        yield None

    def _numbered(self, key: KeyFrame | None) -> Iterator[tuple[int, Packet[Any]]]:
        """Packets from ``key`` on and their indices in the timeline. ``key`` is searched by its metadata."""
        packets = stream_packets(self.container, self.stream)
        if key is None:
            yield from self._from_beginning(packets)
            return
        for landing in self._landings(key):
            self._seek(landing)
            packets = stream_packets(self.container, self.stream)
            for packet in packets:
                if _is(packet, key):
                    yield key.index, packet
                    yield from _counted_from(key.index + 1, packets)
                    return
                if self._is_past(packet, key):
                    break
        self._seek(0 if self._by_bytes else int(self.timeline.ticks[0]))
        yield from self._from_beginning(stream_packets(self.container, self.stream))

    def _seek(self, landing: int) -> None:
        """Seek to a tick, or to a byte position where times are ambiguous."""
        self.container.seek(landing, stream=self.stream, unsupported_byte_offset=self._by_bytes)
        self.decoder.flush_buffers()

    def _from_beginning(self, packets: Iterator[Packet[Any]]) -> Iterator[tuple[int, Packet[Any]]]:
        yield from _counted_from(0, islice(packets, self.timeline.skipped, None))

    @property
    def _by_bytes(self) -> bool:
        """Whether one time may occur more than once in the file, so that seeks have to use byte positions."""
        return self.timeline.pieces > 1

    def _landings(self, key: KeyFrame) -> Iterator[int]:
        """Where to seek to find ``key``, in the order to try: ticks or byte positions."""
        if self._by_bytes:
            yield from (max(0, key.position - back) for back in _BYTES_BACK if key.position != UNKNOWN)
            return
        indexed = format_of(self.container) in INDEXED
        known = key.dts if key.pts == UNKNOWN or (key.dts != UNKNOWN and not indexed) else key.pts
        yield from (known - int(back / self.timeline.time_base) for back in _SECONDS_BACK)

    def _is_past(self, packet: Packet[Any], key: KeyFrame) -> bool:
        if self._by_bytes:
            return packet.pos is not None and packet.pos > key.position
        return packet.dts is not None and key.dts != UNKNOWN and packet.dts > key.dts

    def _decode(self, packet: Packet[Any] | None) -> list[VideoFrame]:
        try:
            return self.decoder.decode(packet)
        except FFmpegError:
            self.damaged += 1
        if packet is None or self.decoder.name not in SILENT_CODECS:
            return []
        try:  # these codecs have only key frames: a new decoder may salvage this one
            frames = cast(VideoCodecContext, CodecContext.create(self.decoder.name, "r")).decode(packet)
        except FFmpegError:
            return []
        for frame in frames:
            frame.pts = packet.pts
        return frames


class _Counted:
    """Finds the tick of each decoded frame by counting, where packets have no presentation times.

    A key frame's position in the count is known: all frames of earlier groups are shown before it, and so are
    those that are decoded after it but returned before it. Every other frame is the one after the last.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._ticks = timeline.ticks
        self._keys = {key.index for key in timeline.key_frames}
        self._since: list[int] = []  # packet indices of the frames returned since the last key frame
        self._ordinal = -1

    def tick(self, index: int) -> int:
        if index in self._keys or self._ordinal < 0:
            self._ordinal = index + sum(earlier > index for earlier in self._since)
            self._since.clear()
        else:
            self._ordinal += 1
        self._since.append(index)
        return int(self._ticks[min(self._ordinal, len(self._ticks) - 1)])


def orientation_of(frame: VideoFrame) -> Orientation:
    try:
        side_data: Any = frame.side_data
    except ValueError:  # PyAV knows no name for some of it, such as a photo's Exif; it knows the turn
        return Orientation(round(frame.rotation / 90) % 4)
    matrix = side_data.get(Type.DISPLAYMATRIX)
    return orientation(None if matrix is None else bytes(matrix))


def runs(wanted: list[int], timeline: Timeline) -> list[tuple[int | None, list[int]]]:
    """``wanted`` split into runs, each with the number of the key frame to seek to.

    A new run starts where a seek is faster than decoding on. The first run may need no seek: None. If frames
    are identified by counting, a run starts one group early, because the count is certain only at the next
    key frame.
    """
    if timeline.by_count:
        ordinals = np.asarray([key.index for key in timeline.key_frames])  # lower bounds: see REORDERED
    else:
        ordinals = np.searchsorted(timeline.ticks, [key.tick for key in timeline.key_frames])
    result: list[tuple[int | None, list[int]]] = []
    position = 0 if timeline.from_first else -_WORTH_A_SEEK - 1
    for ordinal in wanted:
        ordinal_or_index = ordinal - REORDERED if timeline.by_count else ordinal
        key = int(np.searchsorted(ordinals, ordinal_or_index, side="right")) - 1
        key = max(0, key - 1) if timeline.by_count else key
        if 0 <= key < len(ordinals) and ordinals[key] - position > _WORTH_A_SEEK:
            result.append((key, [ordinal]))
        elif result:
            result[-1][1].append(ordinal)
        else:
            result.append((None, [ordinal]))
        position = ordinal
    return result


def _counted_from(index: int, packets: Iterator[Packet[Any]]) -> Iterator[tuple[int, Packet[Any]]]:
    for packet in packets:
        yield index, packet
        index += not packet.is_discard


def _is(packet: Packet[Any], key: KeyFrame) -> bool:
    """Whether ``packet`` is the scan's key frame ``key``. After a seek, one of its times may be missing."""
    if not packet.is_keyframe or packet.size != key.size:
        return False
    times = [(packet.pts, key.pts), (packet.dts, key.dts)]
    known = [here == there for here, there in times if here is not None and there != UNKNOWN]
    return any(known)
