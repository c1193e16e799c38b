"""Scenes of real files, through the real decoding child."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.batch import cutting as module
from lvspec_cli.batch.cutting import (
    Cut,
    Stretch,
    cut_between,
    known_scenes,
    last_moment,
    scene_segments,
    scenes,
)
from lvspec_cli.errors import NoInputError, NotAVideoError
from lvspec_cli.types import VideoRequest
from lvspec_cli.video.decode import read_clip
from tests.video.clips import make_clip

LENGTHS = [2.0, 3.25, 1.5, 4.0]  # seconds of the scenes
BEGINS = [0.0, 2.0, 5.25, 6.75]
END = 10.75


def picture(scene: int, shift: int) -> np.ndarray:
    """Each scene has blocks of its own colours, which move to the right; uint8 (72, 128, 3)."""
    blocks = np.random.default_rng(scene).integers(0, 256, (6, 8, 3), np.uint8)
    return np.roll(blocks.repeat(12, axis=0).repeat(16, axis=1), shift, axis=1)


def write_scenes(path: Path, lengths: list[float], rate: int = 24) -> Path:
    """Scenes of so many seconds each, one after the other."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 128, 72, "yuv420p"
        for scene, seconds in enumerate(lengths):
            for number in range(round(seconds * rate)):
                frame = av.VideoFrame.from_ndarray(picture(scene, 48 * number // rate), format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "four.mp4", LENGTHS)


def test_scenes_are_cut_at_the_very_frame_where_the_picture_changes(video):
    found = scene_segments(VideoRequest(video))
    assert [scene.start for scene in found] == pytest.approx(BEGINS, abs=2e-6)
    assert [scene.end for scene in found] == pytest.approx([*BEGINS[1:], END], abs=2e-6)


def test_no_scene_of_a_fast_video_holds_a_frame_of_another(tmp_path):
    path = write_scenes(tmp_path / "fast.mp4", [1.05, 1.1], rate=100)
    first, second = scene_segments(VideoRequest(path))
    before = read_clip(VideoRequest(path, first.start, first.end, fps=100.0))
    after = read_clip(VideoRequest(path, second.start, second.end, fps=100.0))
    assert 1.0 < before.timestamps[-1] < 1.05 <= after.timestamps[0] < 1.09


def test_chunks_give_the_same_scenes_as_the_whole(video, monkeypatch):
    whole = scene_segments(VideoRequest(video))
    reached: list[float] = []
    monkeypatch.setattr(module, "_CHUNK", 2.6)
    assert scene_segments(VideoRequest(video), progress=reached.append) == whole
    assert reached == sorted(reached)
    assert reached[0] == 0.0
    assert max(reached) > 9


def test_inside_a_stretch(video):
    assert scene_segments(VideoRequest(video, start=3.0, end=6.5)) == (Stretch(3.0, 5.25), Stretch(5.25, 6.5))
    (last,) = scene_segments(VideoRequest(video, start=7.5, end=60.0))
    assert last.start == 7.5
    assert last.end == pytest.approx(END)


def test_the_shortest_scene_can_be_set(video):
    assert [scene.start for scene in scene_segments(VideoRequest(video), shortest=3.0)] == [0.0, 5.25]
    assert len(scene_segments(VideoRequest(video), shortest=100.0)) == 1


def test_the_caller_can_end_it(video):
    def enough(seconds):
        if seconds > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scene_segments(VideoRequest(video), progress=enough)


def test_a_video_without_changes_is_one_scene(tmp_path):
    path = write_scenes(tmp_path / "one.mp4", [3.0])
    (only,) = scene_segments(VideoRequest(path))
    assert only.start == 0.0
    assert only.end == pytest.approx(3.0, abs=0.01)


def test_a_video_that_ends_before_its_header_says_gives_the_scenes_that_can_be_read(tmp_path, monkeypatch):
    path = write_scenes(tmp_path / "whole.mkv", [2.0, 3.0, 3.0])
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    monkeypatch.setattr(module, "_CHUNK", 1.5)
    found = scene_segments(VideoRequest(cut))
    assert found[0].start == 0.0
    assert found[1].start == pytest.approx(2.0, abs=0.01)


def test_slides_of_one_frame_each_are_scenes_and_none_goes_beyond_the_end(tmp_path):
    slides = make_clip(tmp_path / "slides.mp4", count=6, ticks=[0, 60, 120, 180, 240, 300], noise=True)
    found = scene_segments(VideoRequest(slides))
    assert [scene.start for scene in found] == [
        0.0,
        5.0,
        10.0,
        15.0,
        20.0,
    ]  # the last is on show for a moment
    assert [scene.end for scene in found[:-1]] == pytest.approx([5.0, 10.0, 15.0, 20.0], abs=0.05)
    assert found[-1].end == read_clip(VideoRequest(slides, max_frames=1)).duration


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(NoInputError):
        scene_segments(VideoRequest(tmp_path / "none.mp4"))
    (tmp_path / "text.mp4").write_text("no video at all")
    with pytest.raises(NotAVideoError):
        scene_segments(VideoRequest(tmp_path / "text.mp4"))


def test_another_size_of_frames_is_another_scene(video):
    clip = read_clip(VideoRequest(video, end=1.5, fps=24.0, max_pixels=5000))
    times = tuple(time + 2 for time in clip.timestamps)
    finder = module._Finder()
    finder.look(clip)
    finder.look(replace(clip, frames=clip.frames[:, ::2, ::2], timestamps=times))
    assert finder.cuts() == [Cut(1.966667, 2.0)]


def test_where_an_old_scene_ends():
    assert cut_between(1.0, 1.04, 0.04) == Cut(1.04, 1.04)  # every frame was seen
    assert cut_between(1.0, 1.03, 0.01) == Cut(1.01, 1.03)  # two between them were not
    assert cut_between(1.0, 9.0, 0.04) == Cut(8.966667, 9.0)  # one frame was on show for long


def cuts_of(times):
    return [Cut(time - 0.05, time) for time in times]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([], [(0, 10)]),
        ([4], [(0, 3.95), (4, 10)]),
        ([0.5, 4, 4.5, 9.5], [(0, 3.95), (4, 10)]),  # too short: before, between and after
        ([9.2, 9.6], [(0, 10)]),
    ],
)
def test_short_scenes_join_others(times, expected):
    assert scenes(cuts_of(times), 0, 10, 1.0) == tuple(Stretch(*each) for each in expected)


@given(st.lists(st.floats(0.1, 99.9), unique=True).map(sorted), st.floats(0, 30))
def test_scenes_are_in_order_apart_and_long_enough(times, shortest):
    found = scenes(cuts_of(times), 0.0, 100.0, shortest)
    assert (found[0].start, found[-1].end) == (0.0, 100.0)
    assert all(before.end <= after.start for before, after in pairwise(found))
    assert len(found) == 1 or all(scene.end - scene.start >= shortest for scene in found)


def test_where_the_last_scene_ends():
    assert last_moment(None, 10.0, 9.9) == 10.0
    assert last_moment(None, None, 9.9) == 9.9
    assert last_moment(None, 8.0, 9.9) == 8.0  # packets say so: no scene goes beyond the video
    assert last_moment(12.0, 10.0, 9.9) == 10.0
    assert last_moment(5.0, 10.0, 5.1) == 5.0


def test_scenes_are_looked_for_once_as_long_as_content_and_stretch_are_the_same(tmp_path):
    looked = []

    def find(request: VideoRequest) -> tuple[Stretch, ...]:
        looked.append(request)
        return (Stretch(0.0, 1.25), Stretch(1.25, 3.0))

    one, folder = tmp_path / "one.mp4", tmp_path / "state" / "scenes"
    one.write_bytes(b"one")
    request = VideoRequest(one)
    assert known_scenes(request, folder, find) == known_scenes(request, folder, find) == find(request)
    assert len(looked) == 2
    known_scenes(VideoRequest(one.rename(tmp_path / "two.mp4")), folder, find)
    assert len(looked) == 2, "another name, the same content"
    known_scenes(replace(VideoRequest(tmp_path / "two.mp4"), start=1.0), folder, find)
    one.write_bytes(b"another")
    known_scenes(request, folder, find)
    assert len(looked) == 4
    for file in folder.iterdir():
        file.write_bytes(b'[{"start": 0')
    assert known_scenes(request, folder, find)
    assert len(looked) == 5, "a broken file is written anew"
    assert known_scenes(request, Path("/dev/null/no"), find)
    with pytest.raises(NoInputError):
        known_scenes(VideoRequest(tmp_path / "gone.mp4"), folder, scene_segments)
