import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lvspec_cli.errors import UsageError
from lvspec_cli.types import VideoRequest
from lvspec_cli.video.sample import Sampling, check_request, choose, even_targets, most_frames, stretch

# Ticks of 1 ms: distances of frames are far above the tolerance, as they are in videos.
tick_lists = st.lists(st.integers(0, 20_000), min_size=1, max_size=60, unique=True).map(sorted)
rates = st.floats(0.01, 1000.0)
caps = st.integers(1, 80)


def seconds(ticks):
    return np.asarray(ticks, dtype=np.float64) / 1000


def brute_force(times, targets):
    """The nearest time to each target, the first of equals; times compared to a tenth of a microsecond."""
    distances = np.round(np.abs(np.subtract.outer(targets, times)), 7)
    return np.unique(distances.argmin(axis=1)).tolist()


@given(tick_lists, st.data())
def test_at_a_rate_every_target_gets_its_nearest_frame(ticks, data):
    times = seconds(ticks)
    span = times[-1] - times[0]
    fps = data.draw(st.floats(0.01, min(1000.0, 500 / max(span, 0.001))))
    targets = times[0] + np.arange(math.floor((span + 1e-6) * fps) + 1) / fps
    nearest_two = np.sort(np.abs(np.subtract.outer(targets, times)), axis=1)[:, :2]
    if len(ticks) > 1:  # halfway up to rounding, either neighbour is right
        assume((nearest_two[:, 1] - nearest_two[:, 0] > 1e-5).all())
    assert choose(times, Sampling(fps, None)) == brute_force(times, targets)


@given(tick_lists, caps)
def test_evenly_every_target_gets_its_nearest_frame(ticks, cap):
    times = seconds(ticks)
    chosen = choose(times, Sampling(None, cap))
    if cap >= len(times):
        assert chosen == list(range(len(times)))
    else:
        assert chosen == brute_force(times, even_targets(times, cap))


@given(tick_lists, st.one_of(st.none(), rates), st.one_of(st.none(), caps))
def test_chosen_frames_ascend_and_keep_the_cap(ticks, fps, cap):
    chosen = choose(seconds(ticks), Sampling(fps, cap))
    assert chosen
    assert chosen == sorted(set(chosen))
    assert 0 <= chosen[0] <= chosen[-1] < len(ticks)
    assert cap is None or len(chosen) <= cap
    if cap is None and fps is None:
        assert len(chosen) == len(ticks)


@given(tick_lists, st.integers(0, 20_000), st.integers(1, 20_000))
def test_the_stretch_holds_what_begins_in_it(ticks, start, length):
    times = seconds(ticks)
    inside = list(range(len(times)))[stretch(times, start / 1000, (start + length) / 1000)]
    expected = [i for i, tick in enumerate(ticks) if start <= tick < start + length]
    on_show = [max((i for i, tick in enumerate(ticks) if tick <= start), default=0)]
    assert inside == (expected or on_show)


def test_literals():
    ten_a_second = np.arange(20) / 10
    assert choose(ten_a_second, Sampling(2.0, None)) == [0, 5, 10, 15]
    assert choose(ten_a_second, Sampling(2.0, 4)) == [0, 5, 10, 15]
    assert choose(ten_a_second, Sampling(2.0, 3)) == [0, 9, 19]
    assert choose(ten_a_second, Sampling(None, 2)) == [0, 19]
    assert choose(ten_a_second, Sampling(None, 1)) == [9]
    assert choose(ten_a_second, Sampling(500.0, None)) == list(range(20))
    assert choose(np.asarray([0.0]), Sampling(1.0, 4)) == [0]


def test_a_high_rate_over_a_long_video_stays_cheap():
    times = np.asarray([0.0, 80_000.0, 80_000.5])
    assert choose(times, Sampling(1000.0, 2)) == [0, 2]


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"start": -1.0}, "--start"),
        ({"start": math.nan}, "--start"),
        ({"start": 5.0, "end": 5.0}, "--end"),
        ({"end": math.inf}, "--end"),
        ({"fps": 0.0}, "--fps"),
        ({"fps": math.nan}, "--fps"),
        ({"fps": 1e6}, "--fps"),
        ({"max_frames": 0}, "--frames"),
        ({"max_pixels": 0}, "--max-pixels"),
        ({"timeout": 0.0}, "--decode-timeout"),
    ],
)
def test_impossible_requests_name_the_flag(fields, flag):
    with pytest.raises(UsageError, match=f"^{flag} "):
        check_request(VideoRequest(Path("x.mp4"), **fields))


def test_two_frames_a_second_and_128_at_most_when_nothing_is_asked():
    def asked(**values):
        return Sampling.of(VideoRequest(Path("x.mp4"), **values))

    assert asked() == Sampling(2.0, 128)
    assert asked(fps=5.0) == Sampling(5.0, None)
    assert asked(max_frames=3) == Sampling(None, 3)
    assert asked(fps=5.0, max_frames=3) == Sampling(5.0, 3)


@pytest.mark.parametrize(
    ("asked", "duration", "most"),
    [
        ({"max_frames": 64}, None, 64),
        ({"max_frames": 64}, 10.0, 64),
        ({"fps": 2.0, "max_frames": 64}, 10.0, 21),
        ({"fps": 5.0}, 10.0, 51),
        ({"fps": 5.0}, 600.0, 2048),
        ({"fps": 5.0, "start": 590.0}, 600.0, 51),
        ({"fps": 5.0, "start": 2.0, "end": 4.0}, None, 11),
        ({"fps": 5.0, "start": 2.0, "end": 40.0}, 10.0, 41),
        ({"fps": 5.0}, None, 128),
        ({}, None, 128),
        ({}, 10.0, 21),
        ({}, 3600.0, 128),
    ],
)
def test_frames_that_are_taken_at_most(asked: dict[str, float], duration: float | None, most: int) -> None:
    assert most_frames(VideoRequest(Path("v.mp4"), **asked), duration) == most  # type: ignore[arg-type]


@given(ticks=tick_lists, fps=st.none() | st.floats(0.1, 100.0), cap=st.none() | caps)
def test_no_more_frames_are_taken_than_are_said_to_be(ticks, fps, cap):
    request = VideoRequest(Path("v.mp4"), fps=fps, max_frames=cap)
    duration = ticks[-1] / 1000
    assert len(choose(seconds(ticks), Sampling.of(request))) <= most_frames(request, duration)
