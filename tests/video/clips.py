"""Real video files for the tests. Each frame wears its number as eight black or white bars."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS = 8
_UNIT, _W = 1 << 16, 1 << 30
DISPLAY_MATRICES = {  # as ISO/IEC 14496-12 stores them: a b u, c d v, x y w
    "upright": (_UNIT, 0, 0, 0, _UNIT, 0, 0, 0, _W),
    "quarter": (0, _UNIT, 0, -_UNIT, 0, 0, 0, 0, _W),
    "half": (-_UNIT, 0, 0, 0, -_UNIT, 0, 0, 0, _W),
    "three_quarters": (0, -_UNIT, 0, _UNIT, 0, 0, 0, 0, _W),
    "mirrored": (-_UNIT, 0, 0, 0, _UNIT, 0, 0, 0, _W),
}


def picture(number: int, width: int, height: int, *, noise: bool = False) -> np.ndarray:
    """uint8 (height, width, 3): above, the last 8 bits of ``number``, highest first; below, red and blue.

    With ``noise`` the lower half is random, so that the file is as large as one of real pictures.
    """
    image = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        left, right = bit * width // BITS, (bit + 1) * width // BITS
        image[: height // 2, left:right] = 255 * (number >> (BITS - 1 - bit) & 1)
    image[height // 2 :, : width // 2, 0] = 220
    image[height // 2 :, width // 2 :, 2] = 220
    if noise:
        below = image[height // 2 :]
        below[:] = np.random.default_rng(number).integers(0, 256, below.shape)
    return image


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that upright ``frames`` (frames, height, width, 3) wear."""
    height, width = frames.shape[1:3]
    centres = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    bars = frames[:, height // 4, centres].mean(axis=-1) > 127
    return [int("".join("1" if bar else "0" for bar in row), 2) for row in bars]


def make_clip(
    path: Path,
    *,
    count: int = 24,
    rate: int = 12,
    size: tuple[int, int] = (128, 64),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    ticks: Sequence[int] | None = None,
    group: int = 6,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    sound: bool = False,
    noise: bool = False,
    first: int = 0,
    setup: Callable[[Any], None] | None = None,
) -> Path:
    """``count`` numbered frames, from ``first`` on.

    ``ticks`` are presentation times in units of 1 / rate, 0, 1, ... without.
    """
    width, height = size
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.gop_size = group
        stream.codec_context.thread_count = 1  # the same bytes on machines with other numbers of cores
        if setup:
            setup(stream)
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(
                picture(first + number, width, height, noise=noise), format="rgb24"
            )
            frame = frame.reformat(format=pixel_format)
            frame.pts = number if ticks is None else ticks[number]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            _add_sound(container, audio, count / rate)
    return path


def late_picture(path: Path, seconds: float) -> Path:
    """Sound from 0 on, and a picture that begins after ``seconds``."""
    make_clip(path.with_name("own.mp4"), count=60)
    with av.open(str(path.with_name("own.mp4"))) as source, av.open(str(path), "w") as target:
        shown = target.add_stream_from_template(source.streams.video[0])
        sound: Any = target.add_stream("aac", rate=48_000, layout="mono")
        silence = np.zeros((1, 1024), np.float32)
        for number in range(int(48_000 * 8 / silence.shape[1])):
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48_000, number * silence.shape[1]
            target.mux(sound.encode(frame))
        target.mux(sound.encode(None))
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.time_base:
                shift = round(seconds / packet.time_base)
                packet.pts, packet.dts = (packet.pts or 0) + shift, packet.dts + shift
                packet.stream = shown
                target.mux(packet)
    return path


def lying(path: Path, seconds: float) -> Path:
    """The same file of ten seconds with another duration in its header."""
    data = bytearray(path.read_bytes())
    match path.suffix:
        case ".flv":
            place = data.index(b"duration") + 9
            data[place : place + 8] = struct.pack(">d", seconds)
        case ".mkv":
            place = data.index(b"\x44\x89\x88") + 3
            data[place : place + 8] = struct.pack(">d", 1000 * seconds)
            data = data.replace(b"DURATION", b"DURATIOM")
        case _:
            for box, offset in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16)):
                place = data.index(box) + 4 + offset
                ticks = struct.unpack_from(">I", data, place)[0]
                struct.pack_into(">I", data, place, min(2**32 - 1, round(ticks * seconds / 10)))
    path.write_bytes(data)
    return path


def make_sound(path: Path, codec: str = "aac") -> Path:
    with av.open(str(path), "w") as container:
        _add_sound(container, container.add_stream(codec, rate=16000, layout="mono"), 0.5)
    return path


def _add_sound(container: Any, stream: Any, seconds: float) -> None:
    for start in range(0, int(seconds * 16000), 1024):
        wave = np.sin(np.arange(start, start + 1024) / 20).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.rate, frame.pts = 16000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def turn(source: Path, target: Path, matrix: str) -> Path:
    """A copy of an mp4 with another display matrix in its track header."""
    data = source.read_bytes()
    header = data.index(b"tkhd") + 4
    place = header + 4 + (32 if data[header] else 20) + 16
    target.write_bytes(data[:place] + struct.pack(">9i", *DISPLAY_MATRICES[matrix]) + data[place + 36 :])
    return target
