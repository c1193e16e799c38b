"""Presentation times from packets, and reading that begins at a key frame."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.types import VideoLimits
from lvspec_cli.video.container import open_video
from lvspec_cli.video.pyav_frames import PyavReader, _runs
from lvspec_cli.video.timeline import clean_places, scan
from tests.video.clips import make_clip, numbers


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(
        tmp_path_factory.mktemp("timeline") / "clip.mp4", count=200, group=20, options={"bf": "2"}
    )


def opened(path, use):
    with path.open("rb", buffering=0) as file, open_video(file, path, VideoLimits()) as (container, stream):
        return use(container, stream)


def timeline_of(path, end=None):
    return opened(path, lambda container, stream: scan(container, stream, end, VideoLimits(), path))


def read(path, timeline, wanted):
    def taken(container, stream):
        frames = PyavReader(container, stream, timeline).frames(wanted)
        return numbers(np.stack([frame.to_ndarray(format="rgb24") for _, frame in frames]))

    return opened(path, taken)


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)))
def test_a_clean_place_parts_what_is_shown_before_and_after(pts, keys):
    clean = clean_places(np.asarray(pts), sorted(keys))
    assert clean == [
        k for k in sorted(keys) if all(p < pts[k] for p in pts[:k]) and all(p > pts[k] for p in pts[k + 1 :])
    ]


def test_the_scan_knows_the_times_and_where_reading_can_begin(clip):
    timeline = timeline_of(clip)
    assert timeline.times == pytest.approx(np.arange(200) / 12)
    assert [key.ordinal for key in timeline.key_frames] == list(range(0, 200, 20))
    assert (timeline.whole, timeline.random_access, timeline.has_pts) == (True, True, True)
    assert timeline.duration == pytest.approx(200 / 12)


def test_the_scan_ends_with_the_stretch(clip):
    timeline = timeline_of(clip, end=2.0)
    assert not timeline.whole
    assert 2.0 <= timeline.times[-1] < 3.0


def test_reading_skips_to_key_frames_where_it_pays(clip):
    timeline = timeline_of(clip)
    runs = _runs([0, 5, 30, 45, 100, 101, 199], timeline)
    assert [(key and key.ordinal, wanted) for key, wanted in runs] == [
        (None, [0, 5, 30, 45]),
        (100, [100, 101]),
        (180, [199]),
    ]
    assert read(clip, timeline, [0, 5, 30, 45, 100, 101, 199]) == [0, 5, 30, 45, 100, 101, 199]


def test_an_index_that_lies_costs_time_not_frames(clip):
    timeline = timeline_of(clip)
    wrong = tuple(replace(key, index_time=key.index_time // 2) for key in timeline.key_frames)
    assert read(clip, replace(timeline, key_frames=wrong), [3, 150, 199]) == [3, 150, 199]
