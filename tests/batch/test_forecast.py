"""What a plan says of a video is what decoding takes of it."""

import tracemalloc
from dataclasses import replace

import pytest

from lvspec_cli.batch.history import forecast
from lvspec_cli.types import VideoRequest
from lvspec_cli.video.decode import probe, read_clip
from tests.video.clips import late_picture, make_clip


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("asked", [{"fps": 1.0}, {"max_frames": 8}, {"start": 3.0, "end": 4.0}])
def test_the_frames_of_a_plan_are_those_that_are_taken(tmp_path, late, asked):
    path = late_picture(tmp_path / "a.mp4", 2.0) if late else make_clip(tmp_path / "a.mp4", count=60)
    request = VideoRequest(path, **asked)
    planned, taken = forecast(probe(path), request), read_clip(request)
    assert planned.timestamps == pytest.approx(taken.timestamps, abs=0.1)
    assert (planned.width, planned.height) == (taken.width, taken.height)


def test_a_rate_that_no_video_has_takes_no_memory(tmp_path):
    path = make_clip(tmp_path / "a.mp4", count=60)
    info = replace(probe(path), frame_rate=1e9, duration=86_000.0)
    tracemalloc.start()
    try:
        assert len(forecast(info, VideoRequest(path, max_frames=8)).timestamps) == 8
        assert tracemalloc.get_traced_memory()[1] < 2**29
    finally:
        tracemalloc.stop()
