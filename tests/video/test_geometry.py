import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.video.pixels import Orientation, fitted_inside, fitted_size, orientation

sizes = st.integers(1, 9000)


@pytest.mark.parametrize(("a", "b"), [(1, 0), (0, 1), (-1, 0), (0, -1)])
@pytest.mark.parametrize("determinant", [1, -1])
def test_every_right_angled_matrix_puts_pixels_where_it_says(a, b, determinant):
    """Against the definition: the stored point (p, q) is shown at (a p + c q, b p + d q), moved into view."""
    c, d = -b * determinant, a * determinant
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4)
    places = {(a * p + c * q, b * p + d * q): stored[q, p] for q in range(3) for p in range(4)}
    left, top = min(x for x, _ in places), min(y for _, y in places)
    high, wide = (3, 4) if b == 0 else (4, 3)
    expected = [[places[left + x, top + y] for x in range(wide)] for y in range(high)]
    unit = 1 << 16
    found = orientation(struct.pack("<9i", a * unit, b * unit, 0, c * unit, d * unit, 0, 0, 0, 1 << 30))
    shown = found.apply(np.repeat(stored[..., None], 3, axis=-1))
    assert shown[..., 0].tolist() == expected
    assert found.size(4, 3) == (wide, high)


@pytest.mark.parametrize("matrix", [None, b"", bytes(36), b"\0" * 8])
def test_no_matrix_or_a_broken_one_is_upright(matrix):
    assert orientation(matrix) == Orientation()


@given(sizes, sizes, st.integers(1, 2_000_000))
def test_fitted_sizes_keep_the_cap_and_never_grow(width, height, max_pixels):
    fitted = fitted_size(width, height, None, max_pixels)
    assert 1 <= fitted[0] <= width
    assert 1 <= fitted[1] <= height
    assert fitted[0] * fitted[1] <= max_pixels
    if width * height <= max_pixels:
        assert fitted == (width, height)


@given(st.integers(100, 4000), st.integers(100, 4000))
def test_fitted_sizes_keep_the_aspect(width, height):
    fitted = fitted_size(width, height, None, 250_000)
    assert fitted[0] / fitted[1] == pytest.approx(width / height, rel=0.05)


def test_pixels_that_are_not_square():
    assert fitted_size(720, 576, Fraction(16, 15), 10**6) == (720, 540)
    assert fitted_size(720, 480, Fraction(8, 9), 10**6) == (640, 480)
    assert fitted_size(720, 576, Fraction(1000), 10**6) == (720, 576)


def test_a_picture_of_another_shape_is_the_largest_that_fits():
    assert fitted_inside((80.0, 160.0), (160, 80)) == (40, 80)
    assert fitted_inside((1440.0, 1080.0), (1034, 581)) == (775, 581)
    assert fitted_inside((64.0, 36.0), (120, 90)) == (120, 68)


def test_bars_of_a_pixel_or_a_hundredth_are_left_out():
    assert fitted_inside((1280.0, 720.0), (1034, 581)) == (1034, 581)
    assert fitted_inside((1920.0, 1088.0), (1920, 1080)) == (1920, 1080)
    assert fitted_inside((1920.0, 1110.0), (1920, 1080)) == (1868, 1080)
