"""Against the numbers that the standards themselves print, and their formulas the other way round."""

import numpy as np
import pytest

from lvspec_cli.video.pixels import (
    BT709,
    BT2020,
    DISPLAY_P3,
    HLG,
    KNEE,
    PQ,
    WHITE,
    Colours,
    hlg_gain,
    hlg_scene_light,
    pq_light,
    rolled_off,
    to_bt709,
    to_sdr,
)

FULL = 65535


def grey(signal: float, colours: Colours) -> int:
    """What one grey of ``signal`` becomes."""
    plane = np.full((1, 1), round(signal * FULL), np.uint16)
    pixel = to_sdr([plane] * 3, FULL, colours)[0, 0]
    assert pixel.max() - pixel.min() <= 1
    return int(pixel[0])


def test_levels_of_pq_are_those_of_bt2408():
    """Report BT.2408, table 1: what the levels of 0, 100, 203 and 1000 cd/m2 are in per cent of PQ."""
    light = pq_light(np.array([0.0, 0.508, 0.581, 0.752, 1.0])) * WHITE
    assert light == pytest.approx([0, 100, 203, 1000, 10_000], rel=0.01)


def test_levels_of_hlg_are_those_of_bt2408():
    """75 % HLG is reference white, 203 cd/m2, and 100 % is the display's 1000 cd/m2."""
    for signal, level in ((0.0, 0), (0.75, 203), (1.0, 1000)):
        scene = hlg_scene_light(np.array([signal]))
        assert hlg_gain(scene, scene, scene) * scene * WHITE == pytest.approx([level], rel=0.01)
    assert hlg_scene_light(np.array([0.5])) == pytest.approx([1 / 12])


def test_the_matrix_from_bt2020_is_the_one_in_bt2087():
    printed = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    assert to_bt709(BT2020) == pytest.approx(np.array(printed), abs=2e-4)
    assert to_bt709(BT709) == pytest.approx(np.eye(3), abs=1e-6)
    assert to_bt709(DISPLAY_P3).sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-5)


def test_highlights_bend_without_a_break_and_end_at_the_brightest():
    brightest = (1000 / WHITE) ** (1 / 2.4)
    signals = np.array([0.0, 0.5, KNEE, KNEE + 0.001, 1.0, 1.4, brightest, 3.0])
    bent = rolled_off(signals, brightest)
    assert bent[:3] == pytest.approx(signals[:3])
    assert bent[3] - bent[2] == pytest.approx(0.001, rel=0.05)
    assert bent[4:] == pytest.approx([0.9616, 0.9935, 1.0, 1.0], abs=2e-4)
    assert rolled_off(signals, 1.0)[4:].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("transfer", "white"), [(PQ, 0.5806), (HLG, 0.75)])
def test_white_comes_out_near_white_and_black_black(transfer, white):
    colours = Colours(transfer, BT2020)
    assert grey(0.0, colours) == 0
    assert grey(white, colours) == pytest.approx(245, abs=1)
    assert grey(1.0, colours) == 255


def test_the_brightest_highlight_is_the_metadatas():
    pq_600 = 0.6949
    assert grey(pq_600, Colours(PQ, BT2020, peak=600)) == 255
    assert grey(pq_600, Colours(PQ, BT2020, peak=4000)) == 253
    assert grey(0.5, Colours(PQ, BT2020, peak=0)) == grey(0.5, Colours(PQ, BT2020)) == 184  # 92.2 cd/m2


def test_a_bright_orange_stays_orange():
    """Of 900, 300 and 30 cd/m2: clipped channel by channel it would be yellow."""
    planes = [np.full((1, 1), round(signal * FULL), np.uint16) for signal in (0.7402, 0.6227, 0.3887)]
    red, green, blue = to_sdr(planes, FULL, Colours(PQ, BT709))[0, 0].tolist()
    assert red == pytest.approx(255, abs=1)
    assert (green / red) ** 2.4 == pytest.approx(1 / 3, abs=0.02)
    assert (blue / red) ** 2.4 == pytest.approx(1 / 30, abs=0.01)


def test_large_pictures_are_done_in_pieces_that_fit():
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, FULL, (301, 207), np.uint16) for _ in range(3)]
    whole = to_sdr(codes, FULL, Colours(HLG, BT2020))
    for row in (0, 78, 79, 80, 300):
        part = to_sdr([plane[row : row + 1] for plane in codes], FULL, Colours(HLG, BT2020))
        assert np.abs(whole[row].astype(int) - part[0]).max() <= 1
