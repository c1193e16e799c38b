"""One video read in the child process: scan, choose, decode, send."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing.connection import Connection

import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from lvspec_cli.errors import DamagedVideoError, UsageError, VideoLimitError
from lvspec_cli.types import DecoderName, VideoInfo, VideoRequest
from lvspec_cli.video.container import (
    check_canvas,
    describe,
    file_duration,
    open_video,
    stream_duration,
)
from lvspec_cli.video.decord_frames import UnfitError, check_fit, decord_frames
from lvspec_cli.video.geometry import Frame, fitted_size
from lvspec_cli.video.messages import Finished, Job, Opened
from lvspec_cli.video.picture import Look, Painter, look_of
from lvspec_cli.video.pyav_frames import PyavReader
from lvspec_cli.video.sample import DEFAULT_MAX_PIXELS, Sampling, choose, stretch
from lvspec_cli.video.source import container_of, head_of, shown
from lvspec_cli.video.timeline import Timeline, scan
from lvspec_cli.video.times import format_time


@dataclass(frozen=True)
class Plan:
    """What the scan and the request come to."""

    timeline: Timeline
    wanted: list[int]  # ordinals of the frames taken
    declared: float | None  # seconds that the header gives this stream
    of_file: float | None  # seconds that the header gives the file
    frame_rate: float | None
    pixel_aspect: Fraction | None
    video_streams: int

    @property
    def is_short(self) -> bool:
        """Less can be read than the header promises, beyond its usual carelessness."""
        missing = (self.declared or 0.0) - self.timeline.duration
        is_cut = self.timeline.whole and missing > max(0.25, 0.03 * self.timeline.duration)
        return is_cut or self.timeline.error is not None

    @property
    def duration(self) -> float | None:
        """Seconds of the whole stream, by the header where the scan did not reach its end."""
        reached_end = self.timeline.whole and not self.is_short
        return self.timeline.duration if reached_end else self.declared or self.of_file


def probe_file(descriptor: int, request: VideoRequest) -> VideoInfo:
    """What the header says of the file behind ``descriptor``."""
    with _opened(descriptor) as file, open_video(file, request.path, request.limits) as (container, stream):
        return describe(container, stream, request.path)


def read_file(descriptor: int, job: Job, connection: Connection) -> None:
    """Decode what ``job`` asks of the file behind ``descriptor`` and send it."""
    request = job.request
    with _opened(descriptor) as file:
        plan = make_plan(file, request)
        sender = _Sender(connection, job, plan)
        warnings = notes(plan, request)
        decoder: DecoderName = request.decoder
        if decoder == "decord":
            try:
                _send_by_decord(file, request, plan, sender)
            except UnfitError as reason:
                warnings.append(f"PyAV read it, not decord: {reason}")
                decoder = "pyav"
        errors = _send_by_pyav(file, job, plan, sender) if decoder == "pyav" else 0
    if sender.sent == 0:
        raise DamagedVideoError(
            f"no frame can be decoded: {shown(request.path)}", "copy or download it again"
        )
    warnings += sender.notes
    damage = damage_note(plan, sender.sent, errors)
    warnings += [damage] if damage else []
    connection.send(Finished(plan.frame_rate, plan.duration, decoder, tuple(warnings)))


def make_plan(file: io.FileIO, request: VideoRequest) -> Plan:
    """Scan the stream and decide which frames are taken. Raises the tree's errors."""
    path, limits = request.path, request.limits
    start = request.start or 0.0
    with open_video(file, path, limits) as (container, stream):
        declared = stream_duration(container, stream)
        of_file = file_duration(container)
        known = declared or of_file
        if known and known > limits.duration:
            raise VideoLimitError(
                f"{format_time(known)} long, the limit is {format_time(limits.duration)}: {shown(path)}",
                "cut the part you need out of it first",
            )
        # decord counts all of a file's frames, so their number has to be known.
        scan_end = None if request.decoder == "decord" else request.end
        timeline = scan(container, stream, scan_end, limits, path)
        average = float(stream.average_rate) if stream.average_rate else None
        pixel_aspect, video_streams = stream.sample_aspect_ratio, len(container.streams.video)
    times = timeline.times
    if start > 0 and start >= timeline.duration:
        raise _starts_too_late(start, timeline.duration, known, shown(path))
    inside = stretch(times, start, request.end)
    wanted = [inside.start + index for index in choose(times[inside], Sampling.of(request))]
    if len(wanted) > limits.sampled_frames:
        raise VideoLimitError(
            f"{len(wanted)} frames would be taken, the limit is {limits.sampled_frames}: {shown(path)}",
            "set a cap with --frames, or a lower --fps",
        )
    scanned = timeline.frame_rate
    header_is_right = average and (scanned is None or abs(average - scanned) < 0.02 * scanned)
    return Plan(
        timeline=timeline,
        wanted=wanted,
        declared=declared,
        of_file=of_file,
        frame_rate=average if header_is_right else scanned,
        pixel_aspect=pixel_aspect,
        video_streams=video_streams,
    )


def notes(plan: Plan, request: VideoRequest) -> list[str]:
    """Where what is taken is less than what was asked."""
    found = []
    if request.end is not None and plan.timeline.whole and request.end > plan.timeline.duration + 0.1:
        ends = format_time(plan.timeline.duration)
        found.append(f"the video ends at {ends}, before --end {format_time(request.end)}")
    if request.fps and plan.frame_rate and request.fps > 1.02 * plan.frame_rate:
        found.append(f"--fps {request.fps:g} is more than the video's {plan.frame_rate:.4g} frames a second")
    return found


def damage_note(plan: Plan, sent: int, errors: int) -> str | None:
    """One line on what damage cost, None without damage."""
    lost = len(plan.wanted) - sent
    if not (plan.is_short or lost or errors):
        return None
    read = format_time(plan.timeline.duration)
    of = f" of {format_time(plan.declared)}" if plan.is_short and plan.declared else ""
    failed = f", {errors} decoding errors" if errors else ""
    return f"the file is damaged: read up to {read}{of}, {sent} of {len(plan.wanted)} frames{failed}"


@dataclass
class _Sender:
    """Sends pictures; the first frame sets the size of all."""

    connection: Connection
    job: Job
    plan: Plan
    sent: int = 0
    painter: Painter | None = None

    @property
    def notes(self) -> list[str]:
        return self.painter.notes if self.painter else []

    def send(self, tick: int, frame: VideoFrame, codec: VideoCodecContext) -> None:
        check_canvas(frame.width, frame.height, self.job.request.limits, self.job.request.path)
        painter = self.painter or self.open(frame, look_of(frame, codec, self.plan.pixel_aspect))
        self.send_picture(tick, painter.paint(frame, codec, self._seconds(tick)))

    def send_picture(self, tick: int, picture: Frame) -> None:
        self.connection.send(self._seconds(tick))
        self._write(np.ascontiguousarray(picture).reshape(-1).data)
        self.sent += 1

    def _seconds(self, tick: int) -> float:
        timeline = self.plan.timeline
        return float((tick - int(timeline.ticks[0])) * timeline.time_base)

    def _write(self, pixels: memoryview) -> None:
        while pixels:
            pixels = pixels[os.write(self.connection.fileno(), pixels) :]

    def open(self, frame: VideoFrame, look: Look) -> Painter:
        """Says what is coming; the first ``frame`` seen decides."""
        size = self._open(frame, look)
        request = self.job.request
        self.painter = Painter(size, self.plan.pixel_aspect, request.background, self.job.threads)
        return self.painter

    def _open(self, frame: VideoFrame, look: Look) -> tuple[int, int]:
        request, expected = self.job.request, len(self.plan.wanted)
        most = request.max_pixels or DEFAULT_MAX_PIXELS
        size = fitted_size(frame.width, frame.height, self.plan.pixel_aspect, most)
        taken = expected * math.prod(size) * 3
        if taken > request.limits.clip_bytes:
            raise VideoLimitError(
                f"{expected} frames of {size[0]}x{size[1]} pixels take {taken / 2**30:.1f} GiB, "
                f"the limit is {request.limits.clip_bytes / 2**30:.1f}: {shown(request.path)}",
                "lower --frames or --max-pixels",
            )
        source = look.upright.size(frame.width, frame.height)
        size = look.upright.size(*size)
        self.connection.send(Opened(expected, *size, *source))
        return size


def _send_by_pyav(file: io.FileIO, job: Job, plan: Plan, sender: _Sender) -> int:
    """Send the frames that are not sent yet; the number of decoding errors."""
    request = job.request
    with open_video(file, request.path, request.limits, job.threads) as (container, stream):
        reader = PyavReader(container, stream, plan.timeline)
        for tick, frame in reader.frames(plan.wanted[sender.sent :]):
            sender.send(tick, frame, reader.decoder)
        return reader.damaged


def _send_by_decord(file: io.FileIO, request: VideoRequest, plan: Plan, sender: _Sender) -> None:
    frame, look = _frame_at(plan.wanted[0], file, request, plan)
    _, last = _frame_at(plan.wanted[-1], file, request, plan)
    check_fit(container_of(head_of(file)), plan.video_streams, [look, last])
    size = sender.open(frame, look).size
    for tick, pixels in decord_frames(file.fileno(), plan.timeline, plan.wanted, size):
        sender.send_picture(tick, pixels)


def _frame_at(ordinal: int, file: io.FileIO, request: VideoRequest, plan: Plan) -> tuple[VideoFrame, Look]:
    with open_video(file, request.path, request.limits) as (container, stream):
        reader = PyavReader(container, stream, plan.timeline)
        for _, frame in reader.frames([ordinal]):
            check_canvas(frame.width, frame.height, request.limits, request.path)
            return frame, look_of(frame, reader.decoder, plan.pixel_aspect)
    raise UnfitError("no frame can be decoded")


def _starts_too_late(
    start: float, readable: float, known: float | None, name: str
) -> DamagedVideoError | UsageError:
    if known and start < known:
        return DamagedVideoError(
            f"damaged after {format_time(readable)}, before --start {format_time(start)}: {name}",
            "copy or download it again, or start earlier",
        )
    return UsageError(
        f"--start {format_time(start)} is after the video's end at {format_time(readable)}: {name}",
        "start earlier",
    )


def _opened(descriptor: int) -> io.FileIO:
    return io.FileIO(descriptor, closefd=False)
