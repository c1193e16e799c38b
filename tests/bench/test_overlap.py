"""The measurement of decoding ahead: how it finds the clips' size, and that it runs."""

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.bench.overlap import better_scale, scaled
from lvspec_cli.demo.write import scene_of


@given(st.floats(0.1, 20.0))
def test_scenes_keep_their_shape_at_any_size(scale):
    scene = scene_of(3, 1)[0]
    found = scaled(scene, scale)
    assert found.width % 2 == found.height % 2 == 0
    assert found.width == pytest.approx(scene.width * scale, abs=2)
    assert found.height == pytest.approx(scene.height * scale, abs=2)
    assert found.objects == scene.objects


@given(st.floats(0.05, 5.0), st.floats(0.05, 5.0))
def test_the_right_size_is_found_where_time_goes_with_the_pixels(per_pixel, captioning):
    scale = 2.0
    for _ in range(5):
        scale = better_scale(scale, per_pixel * scale**2, captioning)
    assert per_pixel * scale**2 == pytest.approx(captioning)


def test_a_size_changes_by_bounded_steps():
    assert better_scale(2.0, 1.0, 1.0) == 2.0
    assert better_scale(2.0, 1.0, 4.0) == 4.0
    assert better_scale(2.0, 1.0, 1e6) == 8.0
    assert better_scale(2.0, 1e6, 1.0) == 0.5


def test_it_times_both_sides_over_the_same_clips():
    command = "-m lvspec_cli.bench.overlap --clips 2 --repeats 1 --scale 0.5 --threads 1"
    done = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-3:]
    rates = [float(match[1]) for line in last[:2] if (match := re.search(r"([\d.]+) clips/s", line))]
    assert (last[0][:7], last[1][:7]) == ("in turn", "ahead i")
    assert all(rate > 0 for rate in rates)
    assert float(last[2].removeprefix("ahead / in turn: ")) == pytest.approx(rates[1] / rates[0], rel=0.1)
