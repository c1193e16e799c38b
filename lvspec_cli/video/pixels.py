"""The shapes and colours of pictures: decisions and formulas of standards, on numbers and arrays alone.

In the formulas of colours a signal is a number from 0 to 1 that is stored, ``light`` is linear, and 1 is
SDR's white. Code points are those of ITU-T H.273.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
_SANE_ASPECT = Fraction(8)  # beyond this a pixel's shape is taken for broken metadata


@dataclass(frozen=True)
class Orientation:
    """What makes a stored frame upright: ``turns`` quarter turns against the clock, then mirroring."""

    turns: int = 0
    mirrored: bool = False

    def apply(self, frame: Frame) -> Frame:
        """An upright view of ``frame`` (height, width, 3)."""
        upright = np.rot90(frame, self.turns)
        return upright[:, ::-1] if self.mirrored else upright

    def size(self, width: int, height: int) -> tuple[int, int]:
        return (height, width) if self.turns % 2 else (width, height)


def orientation(display_matrix: bytes | None) -> Orientation:
    """The nearest right-angled orientation of a display matrix.

    The matrix is 9 little-endian int32 rows ``a b u, c d v, x y w`` as ISO/IEC 14496-12 has them: the stored
    point (p, q), q downwards, is shown at (a p + c q, b p + d q).
    """
    if display_matrix is None or len(display_matrix) < 36:
        return Orientation()
    a, b, _, c, d = struct.unpack_from("<5i", display_matrix)
    mirrored = a * d - b * c < 0
    if mirrored:  # undo the mirroring, which comes last: it negates the shown x
        a, c = -a, -c
    if a == b == 0:
        return Orientation()
    clockwise = round(math.degrees(math.atan2(b, a)) / 90)
    return Orientation(-clockwise % 4, mirrored)


def shown_size(width: int, height: int, pixel_aspect: Fraction | None) -> tuple[float, float]:
    """Width and height of a stored frame as shown, in square pixels: never wider or higher than stored."""
    aspect = pixel_aspect or Fraction(1)
    if not 1 / _SANE_ASPECT <= aspect <= _SANE_ASPECT:
        aspect = Fraction(1)
    return float(width * min(aspect, Fraction(1))), float(height / max(aspect, Fraction(1)))


def fitted_size(width: int, height: int, pixel_aspect: Fraction | None, max_pixels: int) -> tuple[int, int]:
    """Width and height of a kept frame: square pixels, at most ``max_pixels`` of them, aspect kept.

    Never wider or higher than stored.
    """
    wide, high = shown_size(width, height, pixel_aspect)
    scale = min(1.0, math.sqrt(max_pixels / (wide * high)))
    if scale == 1.0:
        return max(1, round(wide)), max(1, round(high))
    fitted_width = min(max(1, math.floor(wide * scale)), max_pixels)
    return fitted_width, max(1, min(math.floor(high * scale), max_pixels // fitted_width))


def fitted_inside(shape: tuple[float, float], size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the largest picture of ``shape`` in a frame of ``size``.

    It fills the frame where the bars would take a hundredth or a pixel: sizes are rounded.
    """
    scale = min(size[0] / shape[0], size[1] / shape[1])
    wide, high = (max(1, round(side * scale)) for side in shape)
    is_full = size[0] - wide <= max(1, size[0] / 100) and size[1] - high <= max(1, size[1] / 100)
    return size if is_full else (wide, high)


Plane = NDArray[np.float32]
PQ, HLG = 16, 18  # transfer characteristics
HDR_NAMES = {PQ: "PQ", HLG: "HLG"}
BT709, BT2020, DCI_P3, DISPLAY_P3 = 1, 9, 11, 12  # colour primaries
WIDE = (BT2020, DCI_P3, DISPLAY_P3)
WHITE = 203.0  # cd/m2 of HDR's reference white, which is SDR's white (ITU-R BT.2408, 2.1)
PEAK = 1000.0  # cd/m2 of the brightest highlights where no metadata tells: HLG's nominal display
KNEE = 0.92  # SDR signal up to which nothing is changed, 235 of 255
_AT_ONCE = 1 << 14  # pixels whose numbers stay in a core's cache
_SDR_GAMMA = 2.4  # of a display in a dim room (ITU-R BT.1886)
_HLG_LUMINANCE = (0.2627, 0.6780, 0.0593)  # shares of R, G and B (ITU-R BT.2100-2, table 5)
_D65 = (0.3127, 0.3290)
# Chromaticities x, y of R, G and B. DCI-P3 gets Display P3's white: no SDR screen has a projector's.
_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
_PRIMARIES = {
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    DCI_P3: _P3,
    DISPLAY_P3: _P3,
}


@dataclass(frozen=True)
class Colours:
    """What RGB signals mean. A ``transfer`` other than PQ and HLG is taken for SDR's."""

    transfer: int
    primaries: int  # a key of _PRIMARIES
    peak: float = PEAK  # cd/m2 of the brightest highlights


def to_sdr(codes: Sequence[NDArray[np.uint16]], white: int, colours: Colours) -> NDArray[np.uint8]:
    """BT.709 pixels (height, width, 3) of the planes R, G and B (height, width), where ``white`` is signal 1.

    Colours at or below SDR's white stay what they are, highlights above it are rolled off into the
    little room that the knee leaves, and what BT.709's gamut does not hold is clipped.
    """
    height, width = codes[0].shape
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _AT_ONCE // width)
    for top in range(0, height, rows):
        part = slice(top, top + rows)
        _rows_to_sdr([plane[part] for plane in codes], white, colours, pixels[part])
    return pixels


def _rows_to_sdr(
    codes: Sequence[NDArray[np.uint16]], white: int, colours: Colours, pixels: NDArray[np.uint8]
) -> None:
    table = _light_table(colours.transfer, white)
    red, green, blue = (np.take(table, plane) for plane in codes)
    if colours.transfer == HLG:
        gain = hlg_gain(red, green, blue)
        red, green, blue = red * gain, green * gain, blue * gain
    matrix = to_bt709(colours.primaries)
    signals = [sdr_signal(row[0] * red + row[1] * green + row[2] * blue) for row in matrix]
    brightest = np.maximum(np.maximum(signals[0], signals[1]), signals[2])
    # All three by the same factor, so that a bright orange does not turn yellow.
    factor = 255 * rolled_off(brightest, _signal_of(colours)) / np.maximum(brightest, np.float32(1e-6))
    for channel, signal in enumerate(signals):
        pixels[..., channel] = signal * factor + np.float32(0.5)


def pq_light(signal: Plane) -> Plane:
    """Light of a PQ signal (the EOTF of SMPTE ST 2084 and ITU-R BT.2100-2, table 4)."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = signal ** (1 / m2)
    return 10_000 / WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def hlg_scene_light(signal: Plane) -> Plane:
    """The scene's light of an HLG signal, 0 to 1 (the inverse OETF of ITU-R BT.2100-2, table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def hlg_gain(red: Plane, green: Plane, blue: Plane) -> Plane:
    """What turns the scene's light into a 1000 cd/m2 display's (the OOTF of ITU-R BT.2100-2, table 5)."""
    shares = [np.float32(share) for share in _HLG_LUMINANCE]
    luminance = shares[0] * red + shares[1] * green + shares[2] * blue
    return np.float32(1000 / WHITE) * luminance ** np.float32(0.2)


def sdr_light(signal: Plane) -> Plane:
    """Light of an SDR signal (the EOTF of ITU-R BT.1886 for a screen whose black is 0)."""
    return signal**_SDR_GAMMA


def sdr_signal(light: Plane) -> Plane:
    """The inverse of ``sdr_light``; light below 0, out of gamut, is 0."""
    return np.maximum(light, 0) ** np.float32(1 / _SDR_GAMMA)


def rolled_off(signal: Plane, brightest: float) -> Plane:
    """SDR signals, unchanged up to the knee; above it bent, without a break, so that ``brightest`` is 1.

    The Moebius curve of FFmpeg's filter ``tonemap``, here on signals and not on light.
    """
    if brightest <= 1:
        return np.minimum(signal, 1)
    span, room = brightest - KNEE, 1 - KNEE
    bend = (span / room - 1) / span
    over = np.maximum(signal - np.float32(KNEE), 0)
    return np.minimum(np.minimum(signal, np.float32(KNEE)) + over / (1 + np.float32(bend) * over), 1)


@lru_cache
def to_bt709(primaries: int) -> NDArray[np.float32]:
    """The matrix (3, 3) from light in ``primaries`` to light in BT.709's (ITU-R BT.2087, annex 1)."""
    to_xyz, from_xyz = _rgb_to_xyz(_PRIMARIES[primaries]), np.linalg.inv(_rgb_to_xyz(_PRIMARIES[BT709]))
    return np.asarray(from_xyz @ to_xyz, np.float32)


def _rgb_to_xyz(chromaticities: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Light of R, G and B to CIE XYZ (3, 3), where equal shares are D65 (SMPTE RP 177)."""
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in (*chromaticities, _D65)]).T
    return np.asarray(columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3]))


@lru_cache
def _light_table(transfer: int, white: int) -> Plane:
    """Light (for HLG the scene's) of every 16-bit code (65536,)."""
    signal = np.minimum(np.arange(1 << 16) / white, 1)
    light = {PQ: pq_light, HLG: hlg_scene_light}.get(transfer, sdr_light)
    return light(signal).astype(np.float32)


def _signal_of(colours: Colours) -> float:
    """The SDR signal of the brightest highlights, above 1."""
    is_hdr = colours.transfer in HDR_NAMES
    return (max(colours.peak, WHITE) / WHITE) ** (1 / _SDR_GAMMA) if is_hdr else 1.0
