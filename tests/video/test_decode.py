"""Clips from real files, through the real child process."""

import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvspec_cli.errors import VideoLimitError
from lvspec_cli.types import VideoLimits, VideoRequest
from lvspec_cli.video.decode import probe, read_clip
from tests.video.clips import make_clip, numbers, picture, turn

FORMATS: dict[str, dict[str, Any]] = {  # name of the file: how it is made
    "h264.mp4": {"sound": True},
    "faststart.mov": {"container_options": {"movflags": "faststart"}},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "open_groups.mkv": {"codec": "libx265", "options": {"x265-params": "log-level=0:open-gop=1"}},
    "ten_bit.mkv": {"pixel_format": "yuv420p10le"},
    "odd_size.mkv": {"pixel_format": "yuv444p", "size": (131, 67)},
    "vp9.webm": {"codec": "libvpx-vp9", "sound": False},
    "hidden_frames.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "12"}},
    "no_duration.mkv": {"container_options": {"live": "1"}},
    "b_frames.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "h264.avi": {},
    "plain.avi": {"codec": "mpeg4"},
    "h264.ts": {"sound": True},
    "mpeg2.mpg": {"codec": "mpeg2video", "rate": 25},
    "moving.gif": {"codec": "gif", "pixel_format": "rgb8", "rate": 10},
    "h264.flv": {},
}
NOT_BY_DECORD = {"no_duration.mkv", "h264.ts", "mpeg2.mpg", "moving.gif", "h264.flv"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


def clip_in(folder: Path, name: str) -> Path:
    path = folder / name
    return path if path.exists() else make_clip(path, **FORMATS.get(name, {}))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_what_was_asked_from_both_decoders(folder, name):
    rate = FORMATS[name].get("rate", 12)
    path = clip_in(folder, name)
    clip = read_clip(VideoRequest(path, max_frames=5))
    assert numbers(clip.frames) in ([0, 6, 12, 17, 23], [0, 6, 11, 17, 23])
    begins = pytest.approx(0.064 if name == "h264.ts" else 0.0, abs=0.0005)  # its sound begins earlier
    assert clip.begins == clip.timestamps[0] == begins
    times = [time - clip.begins for time in clip.timestamps]
    assert times == pytest.approx([n / rate for n in numbers(clip.frames)], abs=0.011)
    assert clip.duration is not None
    assert clip.duration - clip.begins == pytest.approx(24 / rate, abs=0.05)
    assert clip.frame_rate == pytest.approx(rate, rel=0.02)
    assert (clip.frames_expected, clip.decoder, clip.warnings) == (5, "pyav", ())

    other = read_clip(VideoRequest(path, max_frames=5, decoder="decord"))
    assert other.timestamps == clip.timestamps
    assert np.abs(other.frames.astype(int) - clip.frames).mean() < 3
    if name in NOT_BY_DECORD:
        assert other.decoder == "pyav"
        assert "PyAV read it, not decord" in other.warnings[0]
    else:
        assert (other.decoder, other.warnings) == ("decord", ())


@pytest.mark.parametrize("matrix", ["quarter", "half", "three_quarters", "mirrored"])
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_rotation_is_applied(folder, matrix, decoder):
    path = turn(clip_in(folder, "h264.mp4"), folder / f"{matrix}.mp4", matrix)
    undo = {"quarter": 3, "half": 2, "three_quarters": 1, "mirrored": 0}[matrix]
    stored = np.rot90(picture(0, 128, 64), undo)
    expected = stored[:, ::-1] if matrix == "mirrored" else stored
    clip = read_clip(VideoRequest(path, max_frames=2, decoder=decoder))
    assert clip.frames[0].shape == expected.shape
    assert (clip.source_width, clip.source_height) == (expected.shape[1], expected.shape[0])
    assert np.abs(clip.frames[0].astype(int) - expected).mean() < 20
    assert [warning.partition(":")[0] for warning in clip.warnings] == (
        ["PyAV read it, not decord"] if decoder == "decord" else []
    )


def test_pixels_that_are_not_square_are_made_so(folder):
    def widen(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(2)

    path = make_clip(folder / "anamorphic.mp4", setup=widen)
    for decoder in ("pyav", "decord"):
        assert read_clip(VideoRequest(path, max_frames=1, decoder=decoder)).frames.shape == (1, 32, 128, 3)


def test_frames_are_picked_by_time_where_the_rate_varies(folder):
    ticks = [0, 1, 2, 3, 4, 5, 60, 61, 62, 120]  # twelfths of a second
    path = make_clip(folder / "varying.mp4", count=10, ticks=ticks)
    for decoder in ("pyav", "decord"):
        clip = read_clip(VideoRequest(path, max_frames=3, decoder=decoder))
        assert clip.timestamps == (0.0, 5.0, 10.0)
        assert numbers(clip.frames) == [0, 6, 9]
        assert clip.decoder == decoder


def test_time_begins_at_the_first_frame(folder):
    path = make_clip(folder / "late.mkv", count=12, ticks=range(36, 48))
    for decoder in ("pyav", "decord"):
        clip = read_clip(VideoRequest(path, start=0.5, decoder=decoder, fps=4))
        assert clip.timestamps == pytest.approx((0.5, 0.75), abs=0.002)
        assert numbers(clip.frames) == [6, 9]


def test_start_end_rate_and_cap(folder):
    path = clip_in(folder, "h264.mp4")
    inside = read_clip(VideoRequest(path, start=0.5, end=1.5, fps=4))
    assert inside.timestamps == (0.5, 0.75, 1.0, 1.25)
    assert (inside.start, inside.end) == (0.5, 1.5)
    assert numbers(inside.frames) == [6, 9, 12, 15]
    assert len(read_clip(VideoRequest(path, fps=12, max_frames=7)).timestamps) == 7
    everything = read_clip(VideoRequest(path, max_frames=64))
    assert numbers(everything.frames) == list(range(24))
    assert (everything.frames_expected, everything.warnings) == (24, ())
    assert read_clip(VideoRequest(path)).timestamps == (0.0, 0.5, 1.0, 1.5)


def test_what_cannot_be_had_is_said(folder):
    clip = read_clip(VideoRequest(clip_in(folder, "h264.mp4"), end=9.0, fps=30))
    assert clip.warnings == (
        "the video ends at 0:02, before --end 0:09",
        "--fps 30 is more than the video's 12 frames a second",
    )


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.webm"])
def test_seeking_gives_the_frames_of_a_read_from_the_start(folder, name):
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    options = {"deadline": "realtime"} if codec == "libvpx-vp9" else {}
    path = make_clip(folder / name, count=200, group=20, codec=codec, options=options)
    far = read_clip(VideoRequest(path, max_frames=3))
    assert numbers(far.frames) == [0, 99, 199]
    tail = read_clip(VideoRequest(path, start=15.0, fps=2))
    assert numbers(tail.frames) == [180, 186, 192, 198]


def test_frames_are_made_smaller_never_larger(folder):
    path = clip_in(folder, "h264.mp4")
    request = VideoRequest(path, max_frames=3, max_pixels=2048)
    small, by_decord = read_clip(request), read_clip(replace(request, decoder="decord"))
    assert small.frames.shape == by_decord.frames.shape == (3, 32, 64, 3)
    assert (small.source_width, small.source_height) == (128, 64)
    assert numbers(small.frames) == [0, 11, 23]
    assert np.abs(small.frames.astype(int) - by_decord.frames).mean() < 3
    assert read_clip(VideoRequest(path, max_frames=1, max_pixels=10**8)).width == 128


@pytest.mark.parametrize(
    ("name", "codec", "pixels"), [("1.mp4", "libx264", "yuv420p"), ("1.gif", "gif", "rgb8")]
)
def test_a_single_frame_is_a_clip(folder, name, codec, pixels):
    path = make_clip(folder / name, count=1, codec=codec, pixel_format=pixels)
    for request in (VideoRequest(path), VideoRequest(path, max_frames=8, fps=3.0, decoder="decord")):
        assert read_clip(request).timestamps == (0.0,)


@pytest.fixture(scope="module")
def large(folder):
    options = {"preset": "ultrafast", "x264-params": "colormatrix=bt709"}  # decord reads tagged HD only
    return make_clip(folder / "4k.mp4", count=40, size=(3840, 2160), options=options)


@pytest.mark.thorough
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_large_frames_do_not_fill_the_memory(large, decoder):
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from lvspec_cli.types import VideoRequest\n"
        "from lvspec_cli.video.decode import read_clip\n"
        "clip = read_clip(VideoRequest(Path(sys.argv[1]), max_pixels=50176, decoder=sys.argv[2]))\n"
        "every = read_clip(VideoRequest(Path(sys.argv[1]), fps=12, max_pixels=50176, decoder=sys.argv[2]))\n"
        "assert (clip.decoder, every.decoder, len(every.timestamps)) == (sys.argv[2], sys.argv[2], 40)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(large), decoder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 600_000  # KiB; all frames at full size are 1 GB


def test_the_default_stream_is_read(folder):
    path = folder / "two.mkv"
    _two_streams(path)
    for decoder in ("pyav", "decord"):
        assert numbers(read_clip(VideoRequest(path, max_frames=1, decoder=decoder)).frames)[0] >= 100


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (VideoLimits(canvas_pixels=1000), "128x64 pixels, the limit is 1000"),
        (VideoLimits(sampled_frames=10), "24 frames would be taken, the limit is 10"),
        (VideoLimits(duration=1.0), "0:02 long, the limit is 0:01"),
        (VideoLimits(clip_bytes=1000), "24 frames of 128x64 pixels take"),
    ],
)
def test_limits(folder, limits, words):
    with pytest.raises(VideoLimitError, match=words) as caught:
        read_clip(VideoRequest(clip_in(folder, "h264.mp4"), fps=12, limits=limits))
    assert caught.value.remedy


def test_a_duration_that_no_header_tells_is_limited_too(folder):
    with pytest.raises(VideoLimitError, match="0:02 long, the limit is 0:01"):
        read_clip(VideoRequest(clip_in(folder, "no_duration.mkv"), limits=VideoLimits(duration=1.0)))


def test_progress_counts_the_frames(folder):
    seen = []
    read_clip(VideoRequest(clip_in(folder, "h264.mp4"), max_frames=3), progress=lambda *at: seen.append(at))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    "name", ["-rf.mp4", "http:x.mp4", "concat:a|b.mp4", "%03d.mp4", "a\nb\x1b[31m.mp4", "名 前.mp4"]
)
def test_a_name_is_just_a_name(folder, name, monkeypatch):
    monkeypatch.chdir(folder)
    Path(name).write_bytes(clip_in(folder, "h264.mp4").read_bytes())
    for decoder in ("pyav", "decord"):
        assert numbers(read_clip(VideoRequest(Path(name), max_frames=2, decoder=decoder)).frames) == [0, 23]


def test_a_name_that_is_not_utf8(folder):
    path = Path(f"{folder}/caf\udce9.mp4")
    path.write_bytes(clip_in(folder, "h264.mp4").read_bytes())
    assert read_clip(VideoRequest(path, max_frames=1, decoder="decord")).decoder == "decord"


def test_probe_tells_what_there_is(folder):
    info = probe(clip_in(folder, "h264.mp4"))
    assert (info.codec, info.width, info.height, info.frame_rate) == ("h264", 128, 64, 12.0)
    assert info.duration == pytest.approx(2.0)
    assert "mp4" in info.container


def test_broken_metadata_text_is_no_reason_to_fail(folder):
    source = clip_in(folder, "faststart.mov").read_bytes()
    broken = folder / "broken_text.mov"
    broken.write_bytes(source.replace(b"VideoHandler", b"Vid\xff\xfe\x80andler"))
    assert broken.read_bytes() != source
    assert len(read_clip(VideoRequest(broken, max_frames=2)).timestamps) == 2


def _two_streams(path: Path) -> None:
    import av
    from av.stream import Disposition

    with av.open(str(path), "w") as container:
        streams: list[Any] = [container.add_stream("libx264", rate=12) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        streams[0].disposition = 0
        streams[1].disposition = Disposition.default.value
        for number in range(12):
            for offset, stream in zip((0, 100), streams, strict=True):
                frame = av.VideoFrame.from_ndarray(picture(number + offset, 128, 64), format="rgb24")
                frame.pts = number
                frame.time_base = Fraction(1, 12)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
