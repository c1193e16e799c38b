"""Long videos made of a short one: its packets are copied again and again, with later times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

RATE = 25  # frames per second
WIDTH, HEIGHT = 640, 360
SECONDS = 20  # of the short clip
GROUP = 125  # most frames from one key frame to the next
_BITS = 1_000_000  # a second, as videos of this size have them
_NOISE = 6.0  # standard deviation, of 255
_SEED = 5
_FRAME = Fraction(1, RATE)


@dataclass(frozen=True)
class Kind:
    """A kind of file: what its name ends in, and the encoder of its packets."""

    suffix: str
    encoder: str = "libx264"


KINDS = {
    "MP4": Kind(".mp4"),
    "MKV": Kind(".mkv"),
    "WebM": Kind(".webm", "libvpx-vp9"),
    "TS": Kind(".ts"),
    "MOV": Kind(".mov"),
    "AVI": Kind(".avi"),
}
# x264 is left as it is: B-frames, and groups that need no frame of another one.
_OPTIONS = {"libx264": {}, "libvpx-vp9": {"deadline": "realtime", "cpu-used": "7", "row-mt": "1"}}
# The short clip's own: packets of TS can go into any of the others, into AVI only they.
_SUFFIXES = {"libx264": ".ts", "libvpx-vp9": ".webm"}


def pictures(count: int) -> Iterator[np.ndarray]:
    """``count`` frames, uint8 (height, width, 3): a pattern that moves, a square that moves faster, noise."""
    random = np.random.default_rng(_SEED)
    coarse = random.integers(40, 215, (HEIGHT // 20, WIDTH // 20, 3))
    pattern = np.kron(coarse, np.ones((20, 20, 1))).astype(np.float32)
    for number in range(count):
        picture = np.roll(pattern, (number, 2 * number), (0, 1))
        picture += _NOISE * random.standard_normal((HEIGHT, WIDTH, 1), np.float32)
        left, top = (7 * number) % (WIDTH - 80), (5 * number) % (HEIGHT - 80)
        picture[top : top + 80, left : left + 80] = (235, 20, 20)
        yield np.clip(picture, 0, 255).astype(np.uint8)


def short_clip(folder: Path, encoder: str) -> Path:
    """A clip of 20 s in ``folder``; one that is there is used again."""
    path = folder / f"short-{encoder}{_SUFFIXES[encoder]}"
    if path.exists():
        return path
    new = path.with_stem(f"new-{path.stem}")
    with av.open(str(new), "w") as container:
        stream: Any = container.add_stream(encoder, rate=RATE, options=_OPTIONS[encoder])
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = _BITS
        stream.codec_context.gop_size = GROUP
        for number, pixels in enumerate(pictures(SECONDS * RATE)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, _FRAME
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return new.replace(path)


def long_file(folder: Path, kind: Kind, copies: int) -> Path:
    """So many copies of the short clip as one file in ``folder``; one that is there is used again."""
    path = folder / f"{copies}-copies{kind.suffix}"
    if path.exists():
        return path
    short = short_clip(folder, kind.encoder)
    new = path.with_stem(f"new-{path.stem}")
    with av.open(str(short)) as source, av.open(str(new), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.time_base = _FRAME  # AVI has no finer one: it counts frames
        for packet in _copies(short, copies):
            packet.stream = stream
            target.mux(packet)
    return new.replace(path)


def _copies(short: Path, count: int) -> Iterator[Any]:
    """The packets of ``short``, ``count`` times over, each time 20 s later. The first is shown at 0."""
    for copy in range(count):
        with av.open(str(short)) as source:  # anew: in TS a seek may land after the first packet
            stream = source.streams.video[0]
            assert stream.time_base is not None
            later = copy * int(SECONDS / stream.time_base) - (stream.start_time or 0)
            for packet in source.demux(stream):
                if packet.pts is not None and packet.dts is not None:
                    packet.pts += later
                    packet.dts += later
                    yield packet
