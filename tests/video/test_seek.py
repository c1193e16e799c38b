"""A stretch of a long file: the frames that FFmpeg's own accurate seek gives, without reading all of it."""

import io
import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lvspec_cli.errors import DamagedVideoError, UsageError
from lvspec_cli.types import VideoLimits, VideoRequest
from lvspec_cli.video.container import open_video
from lvspec_cli.video.decode import probe
from lvspec_cli.video.pool import reading
from lvspec_cli.video.pyav_frames import PyavReader
from lvspec_cli.video.scan import extent_of, scan, scan_stretch
from lvspec_cli.video.survey import SMALL
from tests.video.clips import make_clip, numbers

RATE, COUNT = 12, 480
NOISY: dict[str, Any] = {"count": COUNT, "rate": RATE, "noise": True, "size": (160, 96), "group": 30}
MPEG: dict[str, Any] = {**NOISY, "rate": 25, "options": {"b": "1000000", "bf": "2"}, "group": 12}
H264 = {"bf": "2", "preset": "ultrafast"}
X265 = {
    "codec": "libx265",
    "options": {"x265-params": "log-level=0:open-gop=1:bframes=3", "preset": "ultrafast", "crf": "30"},
}
FILES: dict[str, dict[str, Any]] = {
    "b_frames.mp4": {"options": H264, "sound": True},
    "fragmented.mp4": {"options": H264, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "b_frames.mov": {"options": H264},
    "open_groups.mp4": X265,
    "open_groups.mkv": X265,
    "open_groups.ts": X265,
    "open_groups.mov": {"options": {**H264, "x264-params": "open-gop=1"}},
    "b_frames.mkv": {"options": H264, "sound": True},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8", "b": "900k"}},
    "b_frames.ts": {"options": H264, "sound": True},
    "one_key_frame.ts": {"group": 10_000, "options": {**H264, "sc_threshold": "0"}},
    "mpeg2.ts": {"codec": "mpeg2video", **MPEG},
    "mpeg2.mpg": {"codec": "mpeg2video", **MPEG},
    "mpeg1.mpg": {"codec": "mpeg1video", **MPEG},
    "h264.avi": {"options": H264},
    "pyramid.avi": {"options": {**H264, "bf": "8", "x264-params": "open-gop=1:b-pyramid=normal"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "b": "900000"}},
    "mjpeg.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p", "options": {"qmin": "2", "qmax": "4"}},
    "h264.flv": {"options": H264},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("seek")


@pytest.fixture(scope="module")
def read():
    with reading() as read_clip:
        yield read_clip


def file_in(folder: Path, name: str) -> Path:
    path = folder / name
    return path if path.exists() else make_clip(path, **{**NOISY, **FILES[name]})


SOUGHT = {"b_frames.mp4", "b_frames.mov", "b_frames.mkv", "vp9.webm", "h264.flv"}


def by_ffmpeg(path: Path, start: float) -> int:
    """The number of the first frame shown at ``start`` or later, by FFmpeg's accurate seek.

    In MPEG-TS, MPEG-PS, AVI and fragments it can begin behind the key frame that is needed, and in open
    groups it loses frames: there FFmpeg decodes all of the file.
    """
    seek, source = ["-ss", f"{start:.3f}"], ["-i", str(path)]
    order = seek + source if path.name in SOUGHT else source + seek
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *order, "-frames:v", "1"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "160x96", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return numbers(np.frombuffer(raw, np.uint8).reshape(1, 96, 160, 3))[0]


@settings(max_examples=20, suppress_health_check=list(HealthCheck), deadline=None)
@given(name=st.sampled_from(sorted(FILES)), frame=st.integers(1, COUNT - 52))
@example(name="b_frames.mp4", frame=COUNT - 52)
@example(name="one_key_frame.ts", frame=COUNT // 2)
@example(name="h264.avi", frame=200)
@example(name="h264.avi", frame=1)
@example(name="open_groups.ts", frame=3)
@example(name="mpeg2.ts", frame=2)
@example(name="mpeg1.mpg", frame=1)
def test_a_stretch_begins_with_the_frame_of_ffmpegs_accurate_seek(folder, read, name, frame):
    path = file_in(folder, name)
    rate = FILES[name].get("rate", RATE)
    start = (frame - 0.4) / rate
    clip = read(VideoRequest(path, start=start, end=start + 2.0, max_frames=COUNT))
    got = numbers(clip.frames)
    # B-frames without times: FFmpeg shows the first one late.
    if name not in ("h264.avi", "pyramid.avi", "mpeg4.avi"):
        assert got[0] == by_ffmpeg(path, start)
    assert got == [(got[0] + step) % 256 for step in range(len(got))]
    assert len(got) == 2 * rate
    assert clip.warnings == ()
    assert clip.frame_rate == pytest.approx(rate, rel=0.001)
    times = np.asarray(clip.timestamps) - clip.begins
    assert times == pytest.approx((np.arange(len(got)) + round(times[0] * rate)) / rate, abs=0.002)
    assert round(times[0] * rate) % 256 == got[0]


@pytest.mark.sampled
@pytest.mark.parametrize("name", sorted(FILES.keys() - {"one_key_frame.ts"}))
def test_a_stretch_shorter_than_a_frame_gives_the_one_on_show(folder, read, name):
    """Near key frames, whose neighbours are decoded in another order than they are shown in."""
    path, rate = file_in(folder, name), FILES[name].get("rate", RATE)
    begins = read(VideoRequest(path, start=5.0, end=5.1, max_frames=1)).begins
    frames = [*range(91, 97), *range(178, 186), *range(218, 224)]
    got = []
    for frame in frames:
        start = begins + (frame + 0.3) / rate
        clip = read(VideoRequest(path, start=start, end=start + 0.3 / rate))
        got += numbers(clip.frames)
        assert clip.timestamps[0] - begins == pytest.approx(frame / rate, abs=0.002)
    assert got == frames


@pytest.mark.sampled
@pytest.mark.parametrize("share", [0.0, 0.5], ids=["begin", "middle"])
@pytest.mark.parametrize("name", sorted(FILES.keys() - {"one_key_frame.ts", "h264.flv"}))
def test_a_stretch_costs_by_its_length(folder, name, share):
    """FLV has no index, and without a second key frame there is nowhere to begin but at the first."""
    path, rate = file_in(folder, name), FILES[name].get("rate", RATE)
    with path.open("rb", buffering=0) as file, open_video(file, path, VideoLimits()) as (container, stream):
        ends = extent_of(container, stream)
        assert ends is not None
        start = ends.begins + share * COUNT / rate
        timeline = scan_stretch(container, stream, ends, start, start + 1.0)
    assert timeline is not None
    assert timeline.times[0] <= start
    assert timeline.times[-1] >= start + 1.0 - 1.5 / rate
    assert len(timeline.stamps) < 3 * rate + 3 * FILES[name].get("group", NOISY["group"])


class Counting(io.FileIO):
    """A file that counts the bytes that are read of it."""

    count = 0

    def read(self, size=-1, /):
        data = super().read(size)
        self.count += len(data or b"")
        return data


@pytest.mark.parametrize("name", ["b_frames.ts", "mpeg2.mpg"])
def test_a_frame_of_a_joined_file_is_found_by_its_place(folder, name):
    """Its time may be met more than once."""
    other = make_clip(folder / f"other-{name}", **{**NOISY, **FILES[name], "first": COUNT})
    path = folder / f"joined-{name}"
    path.write_bytes(file_in(folder, name).read_bytes() + other.read_bytes())
    with path.open("rb", buffering=0) as file, open_video(file, path, VideoLimits()) as (container, stream):
        timeline = scan(container, stream, path)
    assert (len(timeline.ticks), timeline.pieces) == (2 * COUNT, 2)
    wanted = [2 * COUNT - 40]
    with Counting(path) as file, open_video(file, path, VideoLimits()) as (container, stream):
        frames = list(PyavReader(container, stream, timeline).frames(wanted))
        assert file.count < path.stat().st_size / 2
    assert [tick for tick, _ in frames] == [timeline.ticks[ordinal] for ordinal in wanted]
    pictures = np.stack([frame.to_ndarray(format="rgb24") for _, frame in frames])
    assert numbers(pictures) == [ordinal % 256 for ordinal in wanted]


@pytest.mark.sampled
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_as_long_by_its_ends_as_by_all_of_its_packets(folder, read, name):
    path = file_in(folder, name)
    assert path.stat().st_size > SMALL
    by_ends, by_all = (
        read(VideoRequest(path, start=3, end=4, max_frames=1)),
        read(VideoRequest(path, fps=0.5)),
    )
    rate = FILES[name].get("rate", RATE)
    assert by_all.duration - by_all.begins == pytest.approx(COUNT / rate, abs=0.002)
    assert (by_ends.duration, by_ends.begins) == (by_all.duration, by_all.begins)
    assert numbers(by_all.frames) == [
        round((time - by_all.begins) * rate) % 256 for time in by_all.timestamps
    ]


def test_a_recording_that_begins_long_before_its_first_key_frame_begins_there(folder, read):
    """Also where only its two ends are looked at: nobody can decode what is before."""
    options = {**H264, "sc_threshold": "0"}
    whole = make_clip(folder / "long_groups.ts", **{**NOISY, "group": 150, "options": options}).read_bytes()
    path = folder / "late.ts"
    path.write_bytes(whole[len(whole) // 188 // 20 * 188 :])
    by_ends, by_all = (
        read(VideoRequest(path, start=20, end=21, max_frames=1)),
        read(VideoRequest(path, max_frames=5)),
    )
    assert by_all.begins > 5.0
    assert (by_ends.duration, by_ends.begins) == (by_all.duration, by_all.begins)
    assert probe(path).begins == by_all.begins


def test_a_stretch_behind_the_damage_is_told_from_one_behind_the_end(folder, read):
    path, whole = folder / "cut.mkv", file_in(folder, "b_frames.mkv").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert path.stat().st_size > SMALL
    with pytest.raises(DamagedVideoError, match="damaged after 0:2"):
        read(VideoRequest(path, start=30, end=31))
    with pytest.raises(UsageError, match="after the video's end"):
        read(VideoRequest(path, start=50, end=51))
