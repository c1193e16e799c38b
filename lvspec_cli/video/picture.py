"""Converts decoded frames to the RGB pictures that models see.

Each picture shows one moment (no interlacing), is opaque, in standard dynamic range (SDR), upright, and all
pictures of a clip have one size.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, cast

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from lvspec_cli.video.container import scaling_threads
from lvspec_cli.video.pixels import (
    BT709,
    BT2020,
    HDR_NAMES,
    PEAK,
    WIDE,
    Colours,
    Frame,
    Orientation,
    fitted_inside,
    shown_size,
    to_sdr,
)
from lvspec_cli.video.pyav_frames import orientation_of
from lvspec_cli.video.sample import format_time

RGB = tuple[int, int, int]
_ROWS_AT_ONCE = 32  # rows; 16-bit intermediates of a whole frame would need four times its memory
_FULL_RANGE, _LIMITED_RANGE = 2, 1  # FFmpeg's AVColorRange
# Matrix coefficients of ITU-T H.273 -> swscale's number for them.
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_BT709_MATRIX, _BT601_MATRIX, _BT2020_MATRIX = 1, 5, 9


@dataclass(frozen=True)
class Look:
    """How a frame is stored, and how its sample values are to be interpreted."""

    shape: tuple[float, float]  # width and height as shown, upright, in square pixels
    upright: Orientation
    matrix: int | None  # swscale's number of the YUV matrix; None for RGB and gray
    is_tagged: bool  # the file states the matrix
    full_range: bool
    colours: Colours | None  # None: SDR with a standard gamut, no conversion needed
    white: int  # value of full signal in 16-bit RGB
    has_alpha: bool
    interlaced: bool

    @property
    def conversion(self) -> dict[str, Any]:
        """Arguments with which a VideoReformatter converts to RGB.

        All are given: older versions of PyAV use the frame's tags only if source and target differ.
        """
        if self.matrix is None:
            return {}
        range_ = _FULL_RANGE if self.full_range else _LIMITED_RANGE
        return {
            "src_colorspace": self.matrix,
            "dst_colorspace": 0,  # RGB
            "src_color_range": range_,
            "dst_color_range": _FULL_RANGE,
        }


class _Fields:
    """Extracts the upper field of interlaced frames: every other line, all from one moment.

    The lower field shows another moment, half a frame period before or after. The scaler interpolates the
    missing lines.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, Graph] = {}

    def upper(self, frame: VideoFrame) -> VideoFrame:
        """The upper field of ``frame``: the same width, half the height."""
        key = (frame.width, frame.height, frame.format.name)
        if key not in self._graphs:
            self._graphs = {key: _field_filter(frame)}
        graph = self._graphs[key]
        graph.push(frame)
        return cast(VideoFrame, graph.pull())


@dataclass
class Painter:
    """Converts the frames of one clip into pictures of ``size`` (width, height).

    One instance serves the whole clip, because setting up a scaler takes time.
    """

    size: tuple[int, int]
    pixel_aspect: Fraction | None  # from the file's header
    background: RGB
    threads: int | None = None
    _notes: dict[str, str] = field(default_factory=dict)  # by kind
    _coded_aspect: Fraction | None = None  # from the stream, at the first frame
    _looks: dict[Hashable, Look] = field(default_factory=dict)
    _shape: tuple[float, float] | None = None  # of the first frame
    _scaler: VideoReformatter = field(default_factory=VideoReformatter)
    _whole: VideoReformatter = field(default_factory=VideoReformatter)  # for frames at the stored size
    _fields: _Fields = field(default_factory=_Fields)

    @property
    def notes(self) -> list[str]:
        """Changes to the pictures that the user should know about."""
        return list(self._notes.values())

    def paint(self, frame: VideoFrame, codec: VideoCodecContext, seconds: float) -> Frame:
        """RGB (height, width, 3), upright. ``codec`` decoded ``frame``, whose time is ``seconds``."""
        look = self._look(frame, codec)
        self._shape = self._shape or look.shape
        size = self.size if look.shape == self._shape else fitted_inside(look.shape, self.size)
        self._take_note(look, size, seconds)
        if look.interlaced:
            frame = self._fields.upper(frame)
        if look.has_alpha:
            frame, look = self._opaque(frame, look)
        pixels = self._pixels(self._scaler, frame, look, look.upright.size(*size))
        return framed(look.upright.apply(pixels), self.size, self.background)

    def _take_note(self, look: Look, size: tuple[int, int], seconds: float) -> None:
        """Add notes on this picture; each kind of note is made once per clip."""
        notes = {}
        if look.colours and (name := HDR_NAMES.get(look.colours.transfer)):
            notes["HDR"] = f"HDR ({name}) was tone-mapped to SDR"
        if size != self.size:
            when = format_time(seconds)
            notes["shape"] = f"the picture's shape changes at {when}: bars keep it"
        self._notes = notes | self._notes

    def _look(self, frame: VideoFrame, codec: VideoCodecContext) -> Look:
        """Computed once per set of tags: reading side data keeps a frame alive until garbage collection."""
        tags = (frame.colorspace, frame.color_range, *_light_tags(frame), frame.interlaced_frame)
        aspect = self._aspect(codec)
        key = (frame.width, frame.height, frame.format.name, frame.rotation, aspect, *tags)
        if key not in self._looks:
            self._looks[key] = look_of(frame, aspect)
        return self._looks[key]

    def _aspect(self, codec: VideoCodecContext) -> Fraction | None:
        """The header's pixel aspect ratio, until the stream's differs from that of its first frame.

        Frames do not carry their own. The decoder is ahead by the frames it reorders, so one or two frames
        get a new aspect too early.
        """
        if not self._looks:
            self._coded_aspect = codec.sample_aspect_ratio
        now = codec.sample_aspect_ratio
        return self.pixel_aspect if now == self._coded_aspect else now

    def _opaque(self, frame: VideoFrame, look: Look) -> tuple[VideoFrame, Look]:
        """``frame`` over the background. Done before scaling, or hidden colours would show at edges."""
        whole = self._whole.reformat(frame, format="rgba", **look.conversion, **scaling_threads(self.threads))
        pixels = np.asarray(whole.to_ndarray(), np.uint8)
        if pixels[..., 3].min() == 255:
            return frame, look
        shown = pixels[..., :3]
        if look.colours:
            shown = self._pixels(VideoReformatter(), frame, look, (frame.width, frame.height))
        composed = on_background(shown, pixels[..., 3:], self.background)
        return VideoFrame.from_ndarray(composed, format="rgb24"), replace(look, matrix=None, colours=None)

    def _pixels(
        self, scaler: VideoReformatter, frame: VideoFrame, look: Look, size: tuple[int, int]
    ) -> Frame:
        """RGB (height, width, 3) in the stored orientation."""
        is_smaller = size[0] * size[1] < frame.width * frame.height
        small = scaler.reformat(
            frame,
            width=size[0],
            height=size[1],
            format="gbrp16le" if look.colours else "rgb24",
            interpolation="AREA" if is_smaller else "BILINEAR",
            **look.conversion,
            **scaling_threads(self.threads),
        )
        if look.colours is None:
            return np.asarray(small.to_ndarray(), np.uint8)
        green, blue, red = (
            np.frombuffer(memoryview(plane), "<u2").reshape(plane.height, -1)[:, : plane.width]
            for plane in small.planes
        )
        return to_sdr((red, green, blue), look.white, look.colours)


def look_of(frame: VideoFrame, pixel_aspect: Fraction | None) -> Look:
    """Interprets the tags and side data of ``frame``; where they are missing, as players do."""
    upright = orientation_of(frame)
    wide, high = shown_size(frame.width, frame.height, pixel_aspect)
    parts = frame.format.components
    is_yuv = len(parts) >= 3 and not frame.format.is_rgb
    colours = _colours(frame, *_light_tags(frame))
    return Look(
        shape=(high, wide) if upright.turns % 2 else (wide, high),
        upright=upright,
        matrix=matrix_of(frame.colorspace, frame.width, frame.height, colours) if is_yuv else None,
        is_tagged=frame.colorspace in _MATRICES,
        full_range=frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj"),
        colours=colours,
        white=white_of(8 if is_yuv else parts[0].bits),
        has_alpha=frame.format.has_palette or any(part.is_alpha for part in parts),
        interlaced=frame.interlaced_frame,
    )


def matrix_of(tag: int, width: int, height: int, colours: Colours | None) -> int:
    """swscale's number of the YUV matrix that H.273 numbers ``tag``; guessed if ``tag`` names none.

    The guess is that of players, by the stored size: BT.709 from 720 lines or 1280 columns on, else BT.601.
    """
    if tag in _MATRICES:
        return _MATRICES[tag]
    if colours and colours.primaries == BT2020:
        return _BT2020_MATRIX
    return _BT709_MATRIX if height >= 720 or width >= 1280 else _BT601_MATRIX


def white_of(bits: int) -> int:
    """The value of full signal in swscale's 16-bit RGB, converted from ``bits`` per sample (8 for YUV).

    swscale shifts the bits up and leaves the lower ones 0.
    """
    return ((1 << bits) - 1) << (16 - bits) if bits <= 16 else (1 << 16) - 1


def brightest_of(light_level: bytes | None, mastering: bytes | None) -> float:
    """Peak luminance in cd/m2, from FFmpeg's AVContentLightMetadata or else AVMasteringDisplayMetadata.

    The first begins with MaxCLL (uint32). The second holds nine rationals (two int32 each), then the
    display's maximum as a rational; its last int32 tells whether that is known. PEAK if neither is known.
    """
    brightest = 0.0
    if light_level is not None and len(light_level) >= 4:
        brightest = float(struct.unpack_from("=I", light_level)[0])
    if not brightest and mastering is not None and len(mastering) >= 88:
        top, bottom, _, is_known = struct.unpack_from("=4i", mastering, 72)
        brightest = top / bottom if is_known and bottom else 0.0
    return min(brightest, 10_000.0) if brightest > 0 else PEAK


def on_background(pixels: Frame, alpha: Frame, background: RGB) -> Frame:
    """``pixels`` (height, width, 3) with straight ``alpha`` (height, width, 1) composed over one colour."""
    composed = np.empty_like(pixels)
    for top in range(0, len(pixels), _ROWS_AT_ONCE):
        part = slice(top, top + _ROWS_AT_ONCE)
        opacity = alpha[part].astype(np.uint16)
        behind = np.asarray(background, np.uint16) * (255 - opacity)
        composed[part] = (pixels[part] * opacity + behind + 127) // 255
    return composed


def framed(pixels: Frame, size: tuple[int, int], background: RGB) -> Frame:
    """``pixels`` centred in a picture of ``size`` (width, height), with bars where it does not fill it."""
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    canvas = np.empty((size[1], size[0], 3), np.uint8)
    canvas[:] = background
    x, y = (size[0] - width) // 2, (size[1] - height) // 2
    canvas[y : y + height, x : x + width] = pixels
    return canvas


def _light_tags(frame: VideoFrame) -> tuple[int, int]:
    """H.273's numbers of transfer and primaries."""
    return int(frame.color_trc), int(frame.color_primaries)


def _colours(frame: VideoFrame, transfer: int, primaries: int) -> Colours | None:
    if transfer in HDR_NAMES:
        side_data: Any = frame.side_data
        light_data = [
            side_data.get(kind) for kind in (Type.CONTENT_LIGHT_LEVEL, Type.MASTERING_DISPLAY_METADATA)
        ]
        peak = brightest_of(*(None if data is None else bytes(data) for data in light_data))
        return Colours(transfer, primaries if primaries in (BT709, *WIDE) else BT2020, peak)
    return Colours(transfer, primaries) if primaries in WIDE else None


def _field_filter(frame: VideoFrame) -> Graph:
    graph = Graph()
    time_base = frame.time_base or Fraction(1, 1000)
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=time_base
    )
    upper, sink = graph.add("field", "type=top"), graph.add("buffersink")
    source.link_to(upper)
    upper.link_to(sink)
    graph.configure()
    return graph
