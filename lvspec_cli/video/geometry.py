"""Sizes and orientations of frames: decisions on numbers alone."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction

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
