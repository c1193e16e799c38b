"""Pictures are clips of one frame: JPEG, PNG, WebP and AVIF, upright and opaque."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from lvspec_cli.batch.inputs import collect
from lvspec_cli.errors import NotAVideoError, VideoError
from lvspec_cli.types import VideoRequest
from lvspec_cli.video.decode import read_clip
from lvspec_cli.video.source import is_picture


def painted() -> Image.Image:
    """Red left, green in the upper right corner, else black: no turn of it looks the same."""
    pixels = np.zeros((96, 128, 3), np.uint8)
    pixels[:, :64] = (200, 30, 30)
    pixels[16:48, 80:112] = (20, 200, 40)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif"])
def test_a_picture_is_a_clip_of_one_frame(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    painted().save(file)
    clip = read_clip(VideoRequest(file, max_frames=8))
    assert is_picture(file)
    assert clip.timestamps == (0.0,)
    assert (clip.frames_expected, clip.warnings) == (1, ())
    wanted = np.asarray(Image.open(file).convert("RGB"), np.int16)
    assert np.abs(clip.frames[0] - wanted).mean() < 2.0


@pytest.mark.parametrize("exif", [3, 6, 8])
def test_a_photo_is_turned_upright(tmp_path: Path, exif: int) -> None:
    tags, file = Image.Exif(), tmp_path / "turned.jpg"
    tags[0x0112] = exif
    painted().save(file, exif=tags, quality=95)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(file)), np.int16)
    (frame,) = read_clip(VideoRequest(file)).frames
    assert frame.shape == wanted.shape
    assert np.abs(frame - wanted).mean() < 2.0


def test_what_is_transparent_gets_the_background(tmp_path: Path) -> None:
    picture = painted().convert("RGBA")
    picture.putalpha(Image.fromarray(np.repeat(np.asarray([0, 255], np.uint8), 48)[:, None].repeat(128, 1)))
    picture.save(tmp_path / "a.png")
    (frame,) = read_clip(VideoRequest(tmp_path / "a.png", background=(255, 255, 255))).frames
    assert (frame[:40] == 255).all()
    assert (frame[56:, :60] == (200, 30, 30)).all()


def test_a_broken_picture_says_so(tmp_path: Path) -> None:
    painted().save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 4])
    (tmp_path / "text.jpg").write_text("no picture at all")
    for name, kind in (("cut.png", VideoError), ("text.jpg", NotAVideoError)):
        with pytest.raises(kind, match=name):
            read_clip(VideoRequest(tmp_path / name))


def test_a_folder_gives_its_videos_or_else_its_pictures(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"content")
    assert [item.name for item in collect([tmp_path]).inputs] == [b"a.png", b"b.JPG"]
    (tmp_path / "clip.mp4").write_bytes(b"content")
    assert [item.name for item in collect([tmp_path]).inputs] == [b"clip.mp4"]
    assert [item.name for item in collect([tmp_path], glob="*.png").inputs] == [b"a.png"]
    assert len(collect([tmp_path, tmp_path / "a.png"]).inputs) == 2
