"""The measurement of decoding ahead: how it finds the clips' size, and that it runs."""

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.demo.write import scene_of
from tools.overlap import better_size, enlarged, main


@given(st.integers(1, 50), st.floats(1e6, 1e9))
def test_scenes_have_the_same_pixels_and_keep_their_shape(number, pixels):
    scene = scene_of(3, number)[0]
    width, height = enlarged(scene, pixels)
    frames = round(scene.duration * scene.frame_rate)
    assert width % 2 == height % 2 == 0
    assert width * height * frames == pytest.approx(pixels, rel=0.1)
    assert width / height == pytest.approx(scene.width / scene.height, rel=0.1)


@given(st.floats(1e-9, 1e-7), st.floats(0.1, 5.0))
def test_the_right_size_is_found_where_time_goes_with_the_pixels(per_pixel, captioning):
    pixels = 1e8
    for _ in range(5):
        pixels = better_size(pixels, per_pixel * pixels, captioning)
    assert per_pixel * pixels == pytest.approx(captioning)


def test_a_size_changes_by_bounded_steps():
    assert better_size(2.0, 1.0, 1.0) == 2.0
    assert better_size(2.0, 1.0, 4.0) == 8.0
    assert better_size(2.0, 1.0, 1e6) == 32.0
    assert better_size(2.0, 1e6, 1.0) == 0.125


@pytest.mark.thorough
def test_it_times_both_sides_over_the_same_clips(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    flags = "--clips 2 --repeats 1 --megapixels 2 --threads 1 --decode-workers 1"
    monkeypatch.setattr(sys, "argv", ["overlap", *flags.split()])
    main()
    last = capsys.readouterr().out.splitlines()[-3:]
    rates = [float(match[1]) for line in last[:2] if (match := re.search(r"([\d.]+) clips/s", line))]
    assert (last[0][:7], last[1][:7]) == ("in turn", "ahead i")
    assert all(rate > 0 for rate in rates)
    assert float(last[2].removeprefix("ahead / in turn: ")) == pytest.approx(rates[1] / rates[0], rel=0.1)
