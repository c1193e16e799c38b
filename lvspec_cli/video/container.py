"""Opens a video file with PyAV: only whitelisted formats, the default video stream, and no other file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import av
from av.codec import CodecContext
from av.container import Flags, InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from lvspec_cli.errors import EncryptedVideoError, NoVideoStreamError, VideoError, VideoLimitError
from lvspec_cli.host import usable_cores
from lvspec_cli.types import VideoInfo, VideoLimits
from lvspec_cli.video.source import head_of, shown, unopenable

# No playlist, no concatenation, no image pattern: formats that hold their own data. The sound-only ones are
# here so that they get the message that fits.
FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,gif,apng,flv,asf,ogg,mxf,nut,ivf,rm,dv,wtv,yuv4mpegpipe,"
    "png_pipe,jpeg_pipe,webp_pipe,mp3,wav,flac,aac,aiff,caf,w64,amr"
)
_PROTOCOLS = "none"  # there is no such protocol: the file comes through our own reader
_BUFFER_BYTES = 1 << 18
_RELEASE = int(av.__version__.split(".")[0])
# Later ones have no such option: bytes that are no text become surrogates, which nothing here shows.
_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if _RELEASE < 19 else {}
_MAX_THREADS = 8  # of FFmpeg: each holds frames at full size
# Decoders that show what they make of broken data without a word, unless they are told to fail.
SILENT_CODECS = frozenset({"mjpeg"})
_KEEPS_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders lose it
_NOT_MOVING = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


@contextmanager
def open_video(
    file: io.RawIOBase, path: Path, limits: VideoLimits, threads: int | None = None
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and the video stream that is read.

    :param path: for messages only.
    :param threads: of FFmpeg; None: as many as cores.
    """
    options = {"max_pixels": str(limits.canvas_pixels)}
    with open_container(file, path, limits) as container:
        # Invented times would hide that a container has none.
        container.flags &= ~cast(int, Flags.gen_pts.value)
        stream = _default_stream(container, path)
        check_canvas(stream.width, stream.height, limits, path)
        stream.thread_type = "AUTO"
        stream.thread_count = min(_MAX_THREADS, threads or usable_cores())
        if (
            stream.codec_context.name in SILENT_CODECS
        ):  # one thread: an error is then that of the packet given
            options, stream.thread_count = {**options, "err_detect": "explode"}, 1
        stream.codec_context.options = options
        yield container, stream


@contextmanager
def open_container(
    file: io.RawIOBase, path: Path, limits: VideoLimits, formats: str = FORMATS
) -> Iterator[InputContainer]:
    """The container of a file in one of these formats, which opens no other file.

    :param path: for messages only.
    """
    head = head_of(file)
    options = {"max_pixels": str(limits.canvas_pixels)}
    rules = {"format_whitelist": formats, "protocol_whitelist": _PROTOCOLS}
    try:
        container = av.open(
            file,
            "r",
            options=options,
            container_options=rules,
            buffer_size=_BUFFER_BYTES,
            **_METADATA,
        )
    except (FFmpegError, ValueError, OSError) as error:  # OSError: a header may send the reader anywhere
        raise unopenable(head, path) from error
    with container:
        yield container


def decoder_of(stream: VideoStream) -> VideoCodecContext:
    """The decoder of ``stream``: its own one, or another one that keeps its transparency.

    A seek in the container flushes only the stream's own decoder.
    """
    own = stream.codec_context
    has_alpha = any(key.lower() == "alpha_mode" and text == "1" for key, text in stream.metadata.items())
    name = _KEEPS_ALPHA.get(own.name) if has_alpha else None
    if name is None or name not in av.codecs_available:
        return own
    decoder = cast(VideoCodecContext, CodecContext.create(name, "r"))
    decoder.options, decoder.thread_count = own.options, own.thread_count
    return decoder


def describe(container: InputContainer, stream: VideoStream, path: Path) -> VideoInfo:
    """The facts in the header; None for those that are missing or impossible."""
    return VideoInfo(
        path=path,
        container=container.format.name,
        codec=stream.codec_context.name,
        width=stream.width,
        height=stream.height,
        frame_rate=_positive(stream.average_rate),
        duration=stream_duration(container, stream) or file_duration(container),
    )


def stream_duration(container: InputContainer, stream: VideoStream) -> float | None:
    """The stream's duration in seconds by the header, or the file's if it has no other stream."""
    if stream.duration and stream.time_base:
        return _positive(stream.duration * stream.time_base)
    tag = next((text for key, text in stream.metadata.items() if key.upper().startswith("DURATION")), "")
    try:
        hours, minutes, seconds = tag.split(":")
        return _positive(3600 * int(hours) + 60 * int(minutes) + float(seconds))
    except ValueError:
        return file_duration(container) if len(container.streams) == 1 else None


def file_duration(container: InputContainer) -> float | None:
    """The file's duration in seconds by the header."""
    return _positive(Fraction(container.duration, av.time_base)) if container.duration else None


def file_begins(container: InputContainer, time_base: Fraction) -> int | None:
    """The tick of ``time_base`` at which the first of the file's streams begins, None when unknown."""
    if container.start_time is None:
        return None
    return round(Fraction(container.start_time, av.time_base) / time_base)


def stream_packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream]]:
    """The packets of ``stream`` from the container's current position on, in decoding order.

    Raises FFmpegError, and OSError if the file contains an impossible offset.
    """
    with suppress(IndexError):  # at the end PyAV looks for streams that showed up late
        yield from (packet for packet in container.demux(stream) if packet.size)


def scaling_threads(threads: int | None) -> dict[str, int]:
    """The argument that limits a VideoReformatter to ``threads``; without, it takes one a core."""
    return {"threads": threads} if threads else {}


def check_canvas(width: int, height: int, limits: VideoLimits, path: Path) -> None:
    if width * height > limits.canvas_pixels:
        raise VideoLimitError(
            f"frames of {width}x{height} pixels, the limit is {limits.canvas_pixels} pixels: {shown(path)}",
            "scale the video down first",
        )


def is_encrypted(stream: VideoStream, packet: av.Packet[VideoStream]) -> bool:
    """By the key's name in Matroska, by the packets' side data in MP4."""
    return "enc_key_id" in stream.metadata or packet.has_sidedata("encryption_info")


def encrypted(path: Path) -> EncryptedVideoError:
    return EncryptedVideoError(f"the video is encrypted: {shown(path)}", "use a copy without protection")


def _default_stream(container: InputContainer, path: Path) -> VideoStream:
    moving = [s for s in container.streams.video if not s.disposition & _NOT_MOVING]
    if not moving:
        what = "sound only" if container.streams.audio else "no video stream"
        raise NoVideoStreamError(f"{what}: {shown(path)}", "give a file with moving pictures")
    # An animated picture also holds a still one, of one frame, as if it were a stream like the other.
    moving = [s for s in moving if s.frames != 1] or moving
    stream = next((s for s in moving if s.disposition & Disposition.default), moving[0])
    if stream.codec_context is None:
        raise VideoError(
            f"its codec is unknown or protected: {shown(path)}", "convert it to H.264 in MP4 first"
        )
    return stream


def _positive(value: float | Fraction | None) -> float | None:
    return float(value) if value is not None and value > 0 else None


def pyav_versions() -> dict[str, str]:
    """PyAV's version as ``av``, and those of the libraries of FFmpeg that it brings."""
    libraries = {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
    return {"av": metadata.version("av"), **libraries}


def decord_version() -> str:
    """decord's version.

    :raises ImportError: it is not installed.
    :raises OSError: its native library cannot be loaded.
    """
    import decord

    return decord.__version__
