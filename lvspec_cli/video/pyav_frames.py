"""Chosen frames of a stream by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.sidedata.sidedata import Type
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from lvspec_cli.video.container import decoder_of, stream_packets
from lvspec_cli.video.geometry import Orientation, orientation
from lvspec_cli.video.timeline import KeyFrame, Timeline

_WORTH_A_SEEK = 32  # frames: a seek empties FFmpeg's threads, which takes about as long as they


class _SeekError(Exception):
    """The container did not land where its index said."""


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
        try:
            for tick, frame in self._taken(wanted, may_seek=True):
                yield tick, frame
                last = tick
        except _SeekError:
            ticks = self.timeline.ticks
            rest = [ordinal for ordinal in wanted if last is None or ticks[ordinal] > last]
            self.container.seek(int(ticks[0]), stream=self.stream)
            self.decoder.flush_buffers()
            yield from self._taken(rest, may_seek=False)

    def _taken(self, wanted: list[int], *, may_seek: bool) -> Iterator[tuple[int, VideoFrame]]:
        runs = _runs(wanted, self.timeline) if may_seek else [(None, wanted)]
        last = None
        for key_frame, ordinals in runs:
            left = [int(self.timeline.ticks[ordinal]) for ordinal in reversed(ordinals)]
            for tick, frame in self._decoded(key_frame):
                if tick >= left[-1]:
                    if last is None or tick > last:
                        yield tick, frame
                        last = tick
                    while left and left[-1] <= tick:
                        left.pop()
                    if not left:
                        break

    def _decoded(self, key_frame: KeyFrame | None) -> Iterator[tuple[int, VideoFrame]]:
        """Frames with their ticks in order of presentation, from ``key_frame`` on."""
        if key_frame is not None:
            self.container.seek(key_frame.index_time, stream=self.stream)
            self.decoder.flush_buffers()
        count, last = 0, None
        for packet in self._packets(key_frame):
            for frame in self._decode(packet):
                if self.timeline.has_pts:
                    tick = frame.pts
                else:
                    tick = int(self.timeline.ticks[min(count, len(self.timeline.ticks) - 1)])
                count += 1
                if tick is not None and (last is None or tick > last):
                    last = tick
                    yield tick, frame

    def _packets(self, key_frame: KeyFrame | None) -> Iterator[Packet[Any] | None]:
        """Packets from ``key_frame`` on; None at the end, for what the decoder still holds."""
        is_first = True
        try:
            for packet in stream_packets(self.container, self.stream):
                if is_first and key_frame is not None and packet.pts != key_frame.pts:
                    raise _SeekError
                is_first = False
                yield packet
        except FFmpegError:
            self.damaged += 1
        yield None

    def _decode(self, packet: Packet[Any] | None) -> list[VideoFrame]:
        try:
            frames = self.decoder.decode(packet)
        except FFmpegError:
            self.damaged += 1
            return []
        self.damaged += sum(frame.is_corrupt for frame in frames)
        return frames


def orientation_of(frame: VideoFrame) -> Orientation:
    side_data: Any = frame.side_data
    matrix = side_data.get(Type.DISPLAYMATRIX)
    return orientation(None if matrix is None else bytes(matrix))


def _runs(wanted: list[int], timeline: Timeline) -> list[tuple[KeyFrame | None, list[int]]]:
    """``wanted`` cut where skipping to a key frame pays. The first run may begin where reading is: None."""
    runs: list[tuple[KeyFrame | None, list[int]]] = []
    position = 0
    keys = list(timeline.key_frames)
    key: KeyFrame | None = None
    place = 0
    for ordinal in wanted:
        while place < len(keys) and keys[place].ordinal <= ordinal:
            key = keys[place]
            place += 1
        if key is not None and key.ordinal - position > _WORTH_A_SEEK:
            runs.append((key, [ordinal]))
        elif runs:
            runs[-1][1].append(ordinal)
        else:
            runs.append((None, [ordinal]))
        position = ordinal
    return runs
