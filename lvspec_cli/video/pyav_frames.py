"""Chosen frames of a stream by PyAV."""

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
from lvspec_cli.video.geometry import Orientation, orientation
from lvspec_cli.video.scan import INDEXED, SEEKABLE, WITHOUT_HEADER, format_of
from lvspec_cli.video.timeline import REORDERED, UNKNOWN, KeyFrame, Timeline

_WORTH_A_SEEK = 32  # frames: a seek empties FFmpeg's threads, which takes about as long as they
_EARLIER = (0, 1, 3, 7)  # key frames before the one that should do, where it does not
_SECONDS_BACK = (0, 1, 4, 16, 64)  # before a key frame, at which reading may have to begin to meet it
_BYTES_BACK = (0, 1 << 16, 1 << 20, 1 << 23)


@dataclass
class PyavReader:
    """Reads frames of one freshly opened stream; ``damaged`` counts what could not be decoded."""

    container: InputContainer
    stream: VideoStream
    timeline: Timeline
    damaged: int = 0
    decoder: VideoCodecContext = field(init=False)

    def __post_init__(self) -> None:
        self.decoder = decoder_of(self.stream)

    def frames(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """The frames at the ascending ordinals ``wanted`` with their ticks.

        A frame that never comes is replaced by the next one that does, once. Damage costs frames, and
        raises nothing.
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
        """The frames at the ticks ``wanted``, from the key frame ``key`` on.

        What arrives decides: where the first one is missing or broken, reading begins a group earlier.
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
        """Frames with their ticks in order of presentation, from the key frame ``key`` on."""
        timeline = self.timeline
        counted = _Counted(timeline) if timeline.by_count else None
        last = None
        for packet in self._packets(None if key is None else timeline.key_frames[key]):
            for frame in self._decode(packet):
                tick = frame.pts if counted is None or frame.pts is None else counted.tick(frame.pts)
                if tick is not None and (last is None or tick > last):
                    last = tick
                    yield tick, frame

    def _packets(self, key: KeyFrame | None) -> Iterator[Packet[Any] | None]:
        """Packets from ``key`` on, stamped if need be; None at the end, for what the decoder still holds."""
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
        """Packets from ``key`` on with their indices in the timeline, found by what arrives."""
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
        """To a tick, or a byte."""
        self.container.seek(landing, stream=self.stream, unsupported_byte_offset=self._by_bytes)
        self.decoder.flush_buffers()

    def _from_beginning(self, packets: Iterator[Packet[Any]]) -> Iterator[tuple[int, Packet[Any]]]:
        yield from _counted_from(0, islice(packets, self.timeline.skipped, None))

    @property
    def _by_bytes(self) -> bool:
        """Whether a time may be met more than once in the file, so that only a place in it is sure."""
        return self.timeline.pieces > 1

    def _landings(self, key: KeyFrame) -> Iterator[int]:
        """Where to seek for ``key``, in turn: ticks or bytes."""
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
        try:  # such frames stand alone: what can be made of this one is better than none
            frames = cast(VideoCodecContext, CodecContext.create(self.decoder.name, "r")).decode(packet)
        except FFmpegError:
            return []
        for frame in frames:
            frame.pts = packet.pts
        return frames


class _Counted:
    """Ticks of frames that are told apart by the index of their packet alone.

    All frames of earlier groups are shown before a key frame, and so are those that are decoded after it but
    come out before it. Between key frames each frame is the next one.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._ticks = timeline.ticks
        self._keys = {key.index for key in timeline.key_frames}
        self._since: list[int] = []  # indices of what came out since the last key frame
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
    side_data: Any = frame.side_data
    matrix = side_data.get(Type.DISPLAYMATRIX)
    return orientation(None if matrix is None else bytes(matrix))


def runs(wanted: list[int], timeline: Timeline) -> list[tuple[int | None, list[int]]]:
    """``wanted`` cut where skipping to a key frame pays, with the number of that key frame.

    The first run may begin where reading is: None. Where frames are counted a run begins a group early, as
    only the next key frame shows where counting stands.
    """
    if timeline.by_count:
        ordinals = np.asarray([key.index for key in timeline.key_frames])  # each at least: see REORDERED
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
    """Whether ``packet`` is the one that was scanned as ``key``: a time may be lacking after a seek."""
    if not packet.is_keyframe or packet.size != key.size:
        return False
    times = [(packet.pts, key.pts), (packet.dts, key.dts)]
    known = [here == there for here, there in times if here is not None and there != UNKNOWN]
    return any(known)
