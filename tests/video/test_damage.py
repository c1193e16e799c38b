"""A note where pictures are wrong or missing, and none where they are not."""

import random

import av
import pytest

from lvspec_cli.types import VideoRequest
from lvspec_cli.video.decode import decoding_child, read_clip, receive_clip
from lvspec_cli.video.messages import Job
from tests.video.clips import make_clip, numbers, picture

PACKET = 188  # bytes of MPEG-TS


def all_of(path):
    return read_clip(VideoRequest(path, max_frames=1000))


def ts_packets(path):
    data = path.read_bytes()
    return [data[place : place + PACKET] for place in range(0, len(data), PACKET)]


def starts_a_frame(packet):
    unit_start, pid = packet[1] & 0x40, (packet[1] & 0x1F) << 8 | packet[2]
    return bool(unit_start) and pid == 256  # the first stream's PID in FFmpeg's files


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return make_clip(
        tmp_path_factory.mktemp("damage") / "whole.ts",
        count=96,
        group=12,
        noise=True,
        options={"bf": "2", "sc_threshold": "0"},
    )


def test_what_is_whole_has_no_note(stream):
    assert all_of(stream).warnings == ()


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_lost_packets_are_told_where_they_show(tmp_path, codec):
    rate = 25 if codec == "mpeg2video" else 12
    options = {"x265-params": "log-level=0"} if codec == "libx265" else {"bf": "2"}
    path = make_clip(
        tmp_path / "a.ts", count=96, rate=rate, group=12, noise=True, codec=codec, options=options
    )
    packets = ts_packets(path)
    del packets[len(packets) // 2]
    path.write_bytes(b"".join(packets))
    told = all_of(path).warnings
    assert "the file is damaged" in told[0]
    assert "where data is missing" in told[0] or "decoding error" in told[0]
    assert read_clip(VideoRequest(path, end=24 / rate, max_frames=4)).warnings == ()
    assert read_clip(VideoRequest(path, start=72 / rate, max_frames=4)).warnings == ()


@pytest.mark.parametrize("name", ["a.avi", "a.mov", "a.mkv"])
def test_scrambled_pictures_are_told(tmp_path, name):
    path = make_clip(tmp_path / name, count=24, codec="mjpeg", pixel_format="yuvj420p", noise=True)
    data = bytearray(path.read_bytes())
    begin = data.index(b"\xff\xd8", len(data) // 2)
    length = data.index(b"\xff\xd9", begin) - begin
    place = begin + length // 2
    data[place : place + length // 4] = random.Random(1).randbytes(length // 4)
    path.write_bytes(data)
    clip = all_of(path)
    assert "24 of 24 frames, 1 decoding error" in clip.warnings[0]
    assert clip.timestamps == pytest.approx([number / 12 for number in range(24)], abs=0.001)


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.flv"])
def test_a_cut_file_is_told(tmp_path, name):
    path = make_clip(tmp_path / name, count=96, noise=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    clip = all_of(path)
    assert "the file is damaged: read up to 0:0" in clip.warnings[0]
    assert clip.duration < 6.0


def test_a_stream_that_is_cut_within_a_frame_is_told(stream, tmp_path):
    """By one thread of FFmpeg: of several the last may be draining while another still decodes the frame, and
    not know yet that it is incomplete."""
    packets = ts_packets(stream)
    start = next(place for place in range(len(packets) // 2, len(packets)) if starts_a_frame(packets[place]))
    for length, damaged in [(start, False), (start + 1, True), (start + 3, True), (start + 5, True)]:
        cut = tmp_path / f"{length}.ts"
        cut.write_bytes(b"".join(packets[:length]))
        request = VideoRequest(cut, max_frames=1000)
        with decoding_child(Job("read", request, threads=1)) as child:
            clip = receive_clip(child, request)
        assert numbers(clip.frames)[:40] == list(range(40))
        assert ["the file is damaged" in note for note in clip.warnings] == [True] * damaged


def test_a_recording_that_begins_between_key_frames_is_not_damaged(stream, tmp_path):
    packets = ts_packets(stream)
    late = tmp_path / "late.ts"
    late.write_bytes(b"".join(packets[:2] + packets[len(packets) // 4 :]))
    clip = all_of(late)
    first = numbers(clip.frames)[0]
    assert first % 12 == 0
    assert numbers(clip.frames) == list(range(first, 96))
    assert clip.warnings == ()
    assert clip.begins == pytest.approx(clip.timestamps[0], abs=1e-6)
    assert 0.0 <= clip.begins < 1.0


def test_an_animated_picture_moves(tmp_path):
    path = tmp_path / "animated.avif"
    with av.open(str(path), "w", format="avif") as container:
        stream = container.add_stream("libsvtav1", rate=12, options={"preset": "12"})
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for number in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, 128, 64))))
        container.mux(stream.encode(None))
    clip = all_of(path)
    assert numbers(clip.frames) == list(range(12))
    assert clip.warnings == ()
