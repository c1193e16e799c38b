"""Every kind of file that cannot be read, with its error, exit code and one clear line."""

import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from lvspec_cli.errors import (
    DamagedVideoError,
    EncryptedVideoError,
    NoInputError,
    NotAVideoError,
    NoVideoStreamError,
    UsageError,
    VideoError,
)
from lvspec_cli.types import VideoRequest
from lvspec_cli.video.decode import read_clip
from lvspec_cli.video.source import open_local
from tests.video.clips import make_clip, make_sound, numbers


def failure(path, kind, **request):
    with pytest.raises(kind) as caught:
        read_clip(VideoRequest(path, **request))
    error = caught.value
    assert type(error) is kind
    assert "\n" not in error.cause + error.remedy
    assert error.remedy
    return error


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Half a minute that begins with its index: what is cut off it leaves a file that opens."""
    path = tmp_path_factory.mktemp("whole") / "whole.mp4"
    return make_clip(path, count=240, container_options={"movflags": "faststart"}).read_bytes()


def test_no_such_file(tmp_path):
    error = failure(tmp_path / "gone.mp4", NoInputError)
    assert "no such file" in error.cause
    assert "gone.mp4" in error.cause
    assert error.exit_code == 4
    failure(tmp_path / "gone" / "x.mp4", NoInputError)
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nowhere")
    failure(tmp_path / "link.mp4", NoInputError)
    failure(Path("nul\0.mp4"), NoInputError)


def test_a_folder(tmp_path):
    error = failure(tmp_path, NoInputError)
    assert "a folder" in error.cause


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "pipe" in failure(tmp_path / "pipe.mp4", NotAVideoError).cause
    failure(Path("/dev/zero"), NotAVideoError)


def test_an_empty_file(tmp_path):
    (tmp_path / "empty.mp4").touch()
    error = failure(tmp_path / "empty.mp4", NotAVideoError)
    assert "is empty" in error.cause
    assert error.exit_code == 1


@pytest.mark.parametrize(
    "data",
    [
        b"What happens?\n" * 400,
        bytes(range(256)) * 200,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nwhole.mp4\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile whole.mp4\n",
        b'<?xml version="1.0"?><MPD profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"></MPD>',
        b"1\n00:00:01,000 --> 00:00:02,000\nHello\n",
        b"%PDF-1.7\n" + bytes(3000),
        b"\x7fELF" + bytes(3000),
    ],
)
@pytest.mark.parametrize("name", ["x.mp4", "x.m3u8"])
def test_not_a_video(tmp_path, data, name, whole):
    (tmp_path / "whole.mp4").write_bytes(whole)
    (tmp_path / name).write_bytes(data)
    error = failure(tmp_path / name, NotAVideoError)
    assert "not a video that can be read" in error.cause


@pytest.mark.parametrize(("name", "codec"), [("x.m4a", "aac"), ("x.mp3", "libmp3lame"), ("x.mka", "aac")])
def test_sound_only(tmp_path, name, codec):
    assert "sound only" in failure(make_sound(tmp_path / name, codec), NoVideoStreamError).cause


def test_a_cover_is_no_video(tmp_path):
    encoder = av.CodecContext.create("png", "w")
    encoder.width = encoder.height = 64
    encoder.pix_fmt = "rgb24"
    frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
    frame.pts = 0
    cover = b"\0image/png\0\3\0" + bytes(encoder.encode(frame)[0])
    tag = b"APIC" + struct.pack(">IH", len(cover), 0) + cover
    size = bytes(len(tag) >> shift & 127 for shift in (21, 14, 7, 0))
    sound = make_sound(tmp_path / "plain.mp3", "libmp3lame").read_bytes()
    (tmp_path / "song.mp3").write_bytes(b"ID3\3\0\0" + size + tag + sound)
    with av.open(str(tmp_path / "song.mp3")) as container:
        assert len(container.streams.video) == 1
    assert "sound only" in failure(tmp_path / "song.mp3", NoVideoStreamError).cause


def test_an_encrypted_file(tmp_path):
    scheme = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
        "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
    }
    path = make_clip(tmp_path / "cenc.mp4", container_options=scheme)
    failure(path, EncryptedVideoError)
    failure(path, EncryptedVideoError, decoder="decord")


def test_an_unknown_or_protected_codec(tmp_path):
    data = make_clip(tmp_path / "a.mp4").read_bytes().replace(b"avc1", b"drmi")
    (tmp_path / "b.mp4").write_bytes(data)
    assert "unknown or protected" in failure(tmp_path / "b.mp4", VideoError).cause


def test_cut_off_before_the_index(tmp_path):
    data = make_clip(tmp_path / "a.mp4", count=120).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    assert "cut off" in failure(tmp_path / "cut.mp4", DamagedVideoError).cause


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_cut_off_before_the_first_frame(tmp_path, whole, decoder):
    (tmp_path / "cut.mp4").write_bytes(whole[: whole.index(b"mdat") + 8])
    assert failure(tmp_path / "cut.mp4", DamagedVideoError, decoder=decoder).exit_code == 1


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_cut_off_file_is_read_as_far_as_it_goes(tmp_path, whole, decoder):
    (tmp_path / "cut.mp4").write_bytes(whole[: whole.index(b"mdat") + len(whole) // 3])
    clip = read_clip(VideoRequest(tmp_path / "cut.mp4", max_frames=4, decoder=decoder))
    assert numbers(clip.frames)[0] == 0
    assert 2.0 < clip.timestamps[-1] < 15.0
    assert clip.timestamps[-1] < (clip.duration or 0.0) < 15.0  # what is there to read
    assert "the file is damaged: read up to" in clip.warnings[-1]
    assert "of 0:20, " in clip.warnings[-1]


def test_a_start_beyond_the_damage_or_the_end(tmp_path, whole):
    (tmp_path / "cut.mp4").write_bytes(whole[: whole.index(b"mdat") + len(whole) // 3])
    assert "before --start 0:18" in failure(tmp_path / "cut.mp4", DamagedVideoError, start=18.0).cause
    (tmp_path / "whole.mp4").write_bytes(whole)
    error = failure(tmp_path / "whole.mp4", UsageError, start=20.0)
    assert "after the video's end at 0:20" in error.cause
    assert error.exit_code == 2


def test_damage_in_the_middle_is_told(tmp_path, whole):
    data = bytearray(whole)
    middle = (whole.index(b"mdat") + len(whole)) // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    (tmp_path / "hurt.mp4").write_bytes(data)
    clip = read_clip(VideoRequest(tmp_path / "hurt.mp4", fps=6))
    assert 60 < len(clip.timestamps) <= clip.frames_expected == 120
    assert list(clip.timestamps) == sorted(set(clip.timestamps))
    assert "the file is damaged" in clip.warnings[-1]


def test_a_canvas_beyond_reason_is_not_allocated(tmp_path):
    data = bytearray(make_clip(tmp_path / "a.avi", codec="mjpeg", pixel_format="yuvj420p").read_bytes())
    place = data.find(b"\xff\xc0")
    while place >= 0:
        data[place + 5 : place + 9] = struct.pack(">2H", 40_000, 40_000)
        place = data.find(b"\xff\xc0", place + 9)
    (tmp_path / "huge.avi").write_bytes(data)
    with pytest.raises(VideoError):
        read_clip(VideoRequest(tmp_path / "huge.avi"))


def test_no_permission(tmp_path):
    path = tmp_path / "secret.mp4"
    path.write_bytes(b"x")
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        tmp_path.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(VideoError) as caught:
            open_local(path)
    finally:
        if root:
            os.seteuid(0)
    assert caught.value.exit_code == 1


def test_names_are_shown_on_one_line(tmp_path):
    error = failure(tmp_path / "a\n\x1b[31mb\u202ec\udce9.mp4", NoInputError)
    assert r"a\n\x1b[31mb\u202ec\xe9.mp4" in error.cause
