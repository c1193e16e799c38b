"""Reads one video in the child process: survey the file, choose frames, decode them, send them."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from socket import socket

import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from lvspec_cli.errors import DamagedVideoError, VideoError, VideoLimitError
from lvspec_cli.system import socket_of
from lvspec_cli.table import counted
from lvspec_cli.types import DecoderName, VideoInfo, VideoRequest
from lvspec_cli.video.container import check_canvas, open_video
from lvspec_cli.video.decord_frames import UnfitError, check_fit, decord_frames
from lvspec_cli.video.messages import Cue, Finished, Job, Opened
from lvspec_cli.video.picture import Look, Painter, look_of
from lvspec_cli.video.pixels import Frame, fitted_size
from lvspec_cli.video.pyav_frames import PyavReader
from lvspec_cli.video.sample import DEFAULT_MAX_PIXELS, Sampling, choose, format_time, stretch
from lvspec_cli.video.source import container_of, head_of, shown
from lvspec_cli.video.subtitles import cues_of
from lvspec_cli.video.survey import Survey, Surveyor, Track, opened, starts_too_late


@dataclass(frozen=True)
class Plan:
    """Which frames of a surveyed file are decoded for a request."""

    survey: Survey
    wanted: list[int]  # indices of the chosen frames among all surveyed frames, ascending
    frame_rate: float | None


def probe_file(descriptor: int, request: VideoRequest, surveyor: Surveyor) -> VideoInfo:
    """Size, duration, codec and streams of the file open as ``descriptor``."""
    with _opened(descriptor) as file:
        return surveyor.info(file, request)


def read_subtitles(descriptor: int, request: VideoRequest) -> tuple[Cue, ...]:
    """What is said in the video, or in the file of subtitles, open as ``descriptor``."""
    with _opened(descriptor) as file:
        return cues_of(file, request)


def read_file(descriptor: int, job: Job, connection: Connection, surveyor: Surveyor) -> None:
    """Decode the frames that ``job`` requests from the file open as ``descriptor``, and send them."""
    request = job.request
    with _opened(descriptor) as file, socket_of(connection) as pixels:
        plan = make_plan(surveyor.look(file, request), request)
        sender = _Sender(connection, pixels, job, plan)
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
        raise _undecodable(plan, request)
    warnings += sender.notes
    damage = damage_note(plan, sender.sent, errors)
    warnings += [damage] if damage else []
    survey = plan.survey
    connection.send(Finished(plan.frame_rate, survey.duration, survey.begins, decoder, tuple(warnings)))


def _undecodable(plan: Plan, request: VideoRequest) -> VideoError:
    name, limit = shown(request.path), request.limits.canvas_pixels
    info = plan.survey.header.info
    if info.width * info.height:
        return DamagedVideoError(f"no frame can be decoded: {name}", "copy or download it again")
    return VideoLimitError(  # FFmpeg does not report a size that it refuses
        f"the picture's size cannot be read, or is over the limit of {limit} pixels: {name}",
        "scale the video down, or copy or download it again",
    )


def make_plan(survey: Survey, request: VideoRequest) -> Plan:
    """Choose the frames to decode.

    :raises DamagedVideoError: the file is damaged before the requested start.
    :raises UsageError: the file ends before the requested start.
    :raises VideoLimitError: more frames would be taken than the limit allows.
    """
    path, limits, start = request.path, request.limits, request.start or 0.0
    if start > 0 and start >= survey.duration:
        raise starts_too_late(start, survey.duration, survey.header.info.duration, shown(path))
    times = survey.times
    inside = stretch(times, start, request.end)
    wanted = [inside.start + index for index in choose(times[inside], Sampling.of(request))]
    if len(wanted) > limits.sampled_frames:
        raise VideoLimitError(
            f"{len(wanted)} frames would be taken, the limit is {limits.sampled_frames}: {shown(path)}",
            "set a cap with --frames, or a lower --fps",
        )
    average, scanned = survey.header.average_rate, survey.tracks[0].timeline.frame_rate
    header_is_right = average and (scanned is None or abs(average - scanned) < 0.02 * scanned)
    return Plan(survey, wanted, average if header_is_right else scanned)


def notes(plan: Plan, request: VideoRequest) -> list[str]:
    """Warnings: less is read than was requested, or the times differ from those in the file."""
    lines, survey = [], plan.survey
    if request.end is not None and request.end > survey.duration + 0.1:
        ends = format_time(survey.duration)
        lines.append(f"the video ends at {ends}, before --end {format_time(request.end)}")
    if request.fps and plan.frame_rate and request.fps > 1.02 * plan.frame_rate:
        lines.append(f"--fps {request.fps:g} is more than the video's {plan.frame_rate:.4g} frames a second")
    joined = len(survey.tracks) - 1 + sum(track.timeline.pieces - 1 for track in survey.tracks)
    if joined:
        lines.append(f"its times go back or jump {counted(joined, 'time')}: they were put on one clock")
    if survey.unread:
        lines.append(f"{counted(survey.unread, 'more video')} in the file cannot be read")
    return lines


def damage_note(plan: Plan, sent: int, errors: int) -> str | None:
    """One line about the frames lost to damage; None if the file is not damaged."""
    survey, lost = plan.survey, len(plan.wanted) - sent
    doubtful = survey.doubtful(plan.wanted)
    if not (survey.is_short or lost or errors or doubtful):
        return None
    read = format_time(survey.duration)
    declared = survey.header.info.duration
    of = f" of {format_time(declared)}" if survey.is_short and declared else ""
    failed = f", {counted(errors, 'decoding error')}" if errors else ""
    failed += f", {doubtful} of them where data is missing" if doubtful else ""
    return f"the file is damaged: read up to {read}{of}, {sent} of {len(plan.wanted)} frames{failed}"


@dataclass
class _Sender:
    """Sends pictures to the parent process. All have the size computed from the first frame."""

    connection: Connection
    pixels: socket  # the same connection, for raw bytes
    job: Job
    plan: Plan
    sent: int = 0
    painter: Painter | None = None

    @property
    def notes(self) -> list[str]:
        return self.painter.notes if self.painter else []

    def send(self, time: float, frame: VideoFrame, codec: VideoCodecContext) -> None:
        check_canvas(frame.width, frame.height, self.job.request.limits, self.job.request.path)
        painter = self.painter or self.open(frame, look_of(frame, self.plan.survey.header.pixel_aspect))
        self.send_picture(time, painter.paint(frame, codec, time))

    def send_picture(self, time: float, picture: Frame) -> None:
        self.connection.send(time)
        self.pixels.sendall(np.ascontiguousarray(picture).reshape(-1).data)
        self.sent += 1

    def open(self, frame: VideoFrame, look: Look) -> Painter:
        """Announce the number and size of the pictures, from the first ``frame`` and its ``look``."""
        size = self._open(frame, look)
        request = self.job.request
        self.painter = Painter(
            size, self.plan.survey.header.pixel_aspect, request.background, self.job.threads
        )
        return self.painter

    def _open(self, frame: VideoFrame, look: Look) -> tuple[int, int]:
        request, expected = self.job.request, len(self.plan.wanted)
        most = request.max_pixels or DEFAULT_MAX_PIXELS
        size = fitted_size(frame.width, frame.height, self.plan.survey.header.pixel_aspect, most)
        size_in_bytes = expected * math.prod(size) * 3
        if size_in_bytes > request.limits.clip_bytes:
            raise VideoLimitError(
                f"{expected} frames of {size[0]}x{size[1]} pixels take {size_in_bytes / 2**30:.1f} GiB, "
                f"the limit is {request.limits.clip_bytes / 2**30:.1f}: {shown(request.path)}",
                "lower --frames or --max-pixels",
            )
        source = look.upright.size(frame.width, frame.height)
        size = look.upright.size(*size)
        self.connection.send(Opened(expected, *size, *source))
        return size


def _send_by_pyav(file: io.FileIO, job: Job, plan: Plan, sender: _Sender) -> int:
    """Decode and send the frames not sent yet. Returns the number of decoding errors."""
    errors = 0
    for track, wanted in plan.survey.by_track(plan.wanted[sender.sent :]):
        arrived, last = 0, None
        for leaves_out in (True, False):
            with _reader(file, job, track) as reader:
                leaves_out = leaves_out and reader.leaves_out
                for tick, frame in reader.sure_frames(wanted) if leaves_out else reader.frames(wanted):
                    if last is None or tick > last:
                        sender.send(track.time(tick), frame, reader.decoder)
                        arrived, last = arrived + 1, tick
            if not leaves_out:
                errors += reader.damaged
            if not leaves_out or arrived == len(wanted):
                break
    return errors


@contextmanager
def _reader(file: io.FileIO, job: Job, track: Track) -> Iterator[PyavReader]:
    request = job.request
    file_of_track = opened(file, track.part)
    with open_video(file_of_track, request.path, request.limits, job.threads) as (container, stream):
        yield PyavReader(container, stream, track.timeline)


def _send_by_decord(file: io.FileIO, request: VideoRequest, plan: Plan, sender: _Sender) -> None:
    if len(plan.survey.tracks) > 1:
        raise UnfitError("it reads the first of several videos only")
    track = plan.survey.tracks[0]
    frame, look = _frame_at(plan.wanted[0], file, request, plan)
    _, last = _frame_at(plan.wanted[-1], file, request, plan)
    check_fit(container_of(head_of(file)), plan.survey.header.video_streams, [look, last])
    size = sender.open(frame, look).size
    for tick, pixels in decord_frames(file.fileno(), track.timeline, plan.wanted, size):
        sender.send_picture(track.time(tick), pixels)


def _frame_at(ordinal: int, file: io.FileIO, request: VideoRequest, plan: Plan) -> tuple[VideoFrame, Look]:
    with open_video(file, request.path, request.limits) as (container, stream):
        reader = PyavReader(container, stream, plan.survey.tracks[0].timeline)
        for _, frame in reader.frames([ordinal]):
            check_canvas(frame.width, frame.height, request.limits, request.path)
            return frame, look_of(frame, plan.survey.header.pixel_aspect)
    raise UnfitError("no frame can be decoded")


def _opened(descriptor: int) -> io.FileIO:
    return io.FileIO(descriptor, closefd=False)
