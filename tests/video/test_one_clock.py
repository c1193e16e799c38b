"""Time as players show it: one clock that only grows, whatever the file's stamps and headers say."""

import subprocess
from fractions import Fraction
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from lvspec_cli.errors import VideoLimitError
from lvspec_cli.types import VideoLimits, VideoRequest
from lvspec_cli.video.decode import probe, read_clip
from tests.video.clips import late_picture, lying, make_clip, numbers

JOINED: dict[str, dict[str, Any]] = {  # name of each half, how it is made
    "half.ts": {"options": {"bf": "2"}, "sound": True},
    "half.mpg": {"codec": "mpeg2video", "rate": 25, "options": {"bf": "2"}},
    "half.vob": {"codec": "mpeg2video", "rate": 25, "options": {"bf": "2"}},
    "half.flv": {"options": {"bf": "2"}},
    "half.mkv": {"options": {"bf": "2"}},
    "half.webm": {"codec": "libvpx-vp9"},
    "half.mp4": {"options": {"bf": "2"}},
    "half.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
}


def join(path, *halves):
    path.write_bytes(b"".join(half.read_bytes() for half in halves))
    return path


def halves(folder, name, **changes):
    made = {"count": 60, "group": 12, **JOINED[name], **changes}
    return [
        make_clip(folder / f"{number}-{name}", first=60 * number, **made) for number in range(2)
    ], made.get("rate", 12)


@pytest.mark.sampled
@pytest.mark.parametrize("name", JOINED)
def test_files_joined_end_to_end_are_read_as_one(tmp_path, name):
    both, rate = halves(tmp_path, name)
    path = join(tmp_path / name, *both)
    clip = read_clip(VideoRequest(path, max_frames=500))
    assert numbers(clip.frames) == list(range(120))
    assert np.diff(clip.timestamps) == pytest.approx(1 / rate, abs=0.07)
    assert np.delete(np.diff(clip.timestamps), 59) == pytest.approx(1 / rate, abs=0.002)
    assert clip.duration == pytest.approx(120 / rate, abs=0.2)
    assert [warning for warning in clip.warnings if "one clock" in warning]
    assert not [warning for warning in clip.warnings if "damaged" in warning]
    assert probe(path).duration == clip.duration


@pytest.mark.sampled
@pytest.mark.parametrize("name", JOINED)
def test_a_stretch_of_a_joined_file_lies_where_its_clock_says(tmp_path, name):
    both, rate = halves(tmp_path, name)
    path = join(tmp_path / name, *both, *both)
    start = 200 / rate + 0.2
    clip = read_clip(VideoRequest(path, start=start, max_frames=500))
    got = numbers(clip.frames)
    assert got == list(range(got[0], 120))
    assert abs(got[0] + 120 - start * rate) < 3


def test_clusters_that_begin_anew_without_a_header_go_on(tmp_path):
    """What a recorder writes that starts over in the same file."""
    live: dict[str, Any] = {"count": 60, "container_options": {"live": "1"}}
    both = [
        make_clip(tmp_path / f"{number}.mkv", first=60 * number, **live).read_bytes() for number in range(2)
    ]
    path = tmp_path / "both.mkv"
    path.write_bytes(both[0] + both[1][both[1].index(b"\x1f\x43\xb6\x75") :])
    for request in (VideoRequest(path, max_frames=500), VideoRequest(path, max_frames=3)):
        clip = read_clip(request)
        assert numbers(clip.frames) == [round(12 * time) for time in clip.timestamps]
        assert clip.duration == pytest.approx(10.0, abs=0.01)
        assert len(clip.warnings) == 1
    assert numbers(clip.frames) in ([0, 59, 119], [0, 60, 119])


@pytest.mark.parametrize("later", [43_200, 600])
def test_times_that_jump_ahead_or_back_are_put_on_one_clock(tmp_path, later):
    one = make_clip(tmp_path / "one.ts", count=60)
    far = make_clip(tmp_path / "far.ts", count=60, first=60, ticks=range(later, later + 60))
    for path in (join(tmp_path / "ahead.ts", one, far), join(tmp_path / "back.ts", far, one)):
        clip = read_clip(VideoRequest(path, max_frames=500))
        assert sorted(numbers(clip.frames)) == list(range(120))
        assert clip.timestamps == pytest.approx([number / 12 for number in range(120)], abs=0.002)
        assert clip.warnings == ("its times go back or jump 1 time: they were put on one clock",)


def test_what_follows_a_video_and_is_none_is_left_out(tmp_path):
    whole = make_clip(tmp_path / "a.mkv")
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(whole.read_bytes()[:200])
    clip = read_clip(VideoRequest(join(tmp_path / "both.mkv", whole, broken), max_frames=2))
    assert clip.duration == pytest.approx(2.0)
    assert clip.warnings == ("1 more video in the file cannot be read",)


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.ts", "a.flv"])
def test_a_file_cut_out_of_a_longer_one_is_as_long_as_what_is_in_it(tmp_path, name):
    codec = "libvpx" if name.endswith("webm") else "libx264"
    path = make_clip(tmp_path / name, count=60, codec=codec, ticks=range(120_000, 120_060))
    clip = read_clip(VideoRequest(path, max_frames=3))
    assert (clip.timestamps[0], clip.warnings) == (0.0, ())
    assert clip.duration == pytest.approx(5.0, abs=0.002)
    assert probe(path).duration == clip.duration


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.ts", "late.mov"])
def test_a_picture_that_begins_after_the_sound_keeps_the_players_clock(tmp_path, name):
    path = late_picture(tmp_path / name, 2.0)
    clip = read_clip(VideoRequest(path, max_frames=3))
    assert clip.begins == pytest.approx(clip.timestamps[0], abs=1e-6) == pytest.approx(2.0, abs=0.05)
    assert clip.duration == pytest.approx(7.0, abs=0.05)
    inside = read_clip(VideoRequest(path, start=4.0, end=5.0, max_frames=50))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-ss", "4", "-i", str(path), "-frames:v", "1"]
    raw = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
    ).stdout
    assert numbers(inside.frames)[0] == numbers(np.frombuffer(raw, np.uint8).reshape(1, 64, 128, 3))[0]
    assert numbers(read_clip(VideoRequest(path, start=0.5, end=1.0)).frames) == [0]


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["a.flv", "a.mkv", "a.mp4"])
@pytest.mark.parametrize(
    ("noise", "seconds"), [(False, 5.0), (False, 200_000.0), (True, 200_000.0)]
)  # a file that is scanned, one that is looked at from its ends
def test_a_header_is_believed_as_far_as_packets_bear_it_out(tmp_path, name, seconds, noise):
    size: dict[str, Any] = {"noise": True, "size": (320, 192)} if noise else {}
    path = lying(make_clip(tmp_path / name, count=120, **size), seconds)
    assert probe(path).duration == pytest.approx(10.0, abs=0.002)
    clip = read_clip(VideoRequest(path, start=6.0, end=9.0, fps=1))
    assert numbers(clip.frames) == [72, 84, 96]
    assert clip.duration == pytest.approx(10.0, abs=0.002)


def test_what_is_really_too_long_is_refused(tmp_path):
    path = make_clip(tmp_path / "a.ts", count=3, ticks=(0, 50, 100))
    joined = join(tmp_path / "b.ts", *[path] * 30)
    with pytest.raises(VideoLimitError, match="long, the limit is 0:30"):
        read_clip(VideoRequest(joined, limits=VideoLimits(duration=30.0)))


@pytest.mark.sampled
@pytest.mark.parametrize(("rate", "count"), [(25, 1500), (Fraction(30_000, 1001), 1500)])
@pytest.mark.parametrize("name", ["a.vob", "a.mpg"])
def test_frames_without_times_do_not_drift(tmp_path, name, rate, count):
    """Many small frames in one pack: only the first that begins in it has a time."""
    codec = "mpeg1video" if name == "a.mpg" else "mpeg2video"
    path = make_clip(tmp_path / name, count=count, rate=rate, codec=codec, group=12, options={"bf": "2"})
    clip = read_clip(VideoRequest(path, max_frames=41))
    assert numbers(clip.frames) == [round(float(rate * Fraction(time))) % 256 for time in clip.timestamps]
    assert clip.timestamps[-1] == pytest.approx((count - 1) / rate, abs=0.001)
    assert clip.warnings == ()
