"""What is said in a video: text tracks and files beside it, and what a prompt gets of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import pytest

from lvspec_cli.batch.layout import subtitle_file, what_is_said
from lvspec_cli.errors import VideoError
from lvspec_cli.output.exports.export import export_records
from lvspec_cli.output.exports.types import ExportFormat, ExportPlaces
from lvspec_cli.video.messages import Cue
from lvspec_cli.video.pool import DecodePool
from tests.conftest import Printed
from tests.output.rows import caption

SRT = """1
00:00:00,500 --> 00:00:01,000
<i>Hello</i> there,
my friend.

2
00:00:00,900 --> 00:00:01,750
{\\an8}How are you – Zoë?
"""
VTT = "WEBVTT\n\nNOTE no cue\n\n00:00.500 --> 00:01.000 line:0\n<v Ann>Tea &amp; cake\n"
SAID = (Cue(0.5, 1.0, "Hello there, my friend."), Cue(0.9, 1.75, "How are you – Zoë?"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, video_file: Path) -> Path:
    """Videos with a track of text: without styles in MP4, and on a clock that begins later in MKV."""
    folder = tmp_path_factory.mktemp("said")
    (folder / "a.srt").write_text(SRT, encoding="utf-8")
    (folder / "a.vtt").write_text(VTT)
    (folder / "broken.srt").write_bytes(b"\x00\x01 no subtitles")
    for name, codec, more in (("t.mp4", "mov_text", []), ("t.mkv", "srt", ["-output_ts_offset", "7"])):
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", video_file, "-i", folder / "a.srt"]
        tracks = ["-map", "0:v", "-map", "1:s", "-c:v", "copy", "-c:s", codec, *more, folder / name]
        subprocess.run(list(map(str, [*command, *tracks])), check=True, stdin=subprocess.DEVNULL)
    return folder


def test_cues_are_read_from_files_and_from_tracks(folder: Path, video_file: Path) -> None:
    files = [folder / name for name in ("a.srt", "a.vtt", "t.mp4", "t.mkv", "broken.srt")]
    with DecodePool(1, 2**20) as pool:
        srt, vtt, mp4, mkv, broken, none = pool.subtitles([*files, video_file])
    assert srt == SAID
    assert vtt == (Cue(0.5, 1.0, "Tea & cake"),)
    for found in (mp4, mkv):
        assert not isinstance(found, Exception)
        assert [cue.text for cue in found] == [cue.text for cue in SAID]
        assert [cue.start for cue in found] == pytest.approx([0.5, 0.9], abs=0.01)
    assert isinstance(broken, VideoError)
    assert none == ()


def test_of_several_tracks_the_default_one_is_read(folder: Path, tmp_path: Path) -> None:
    inputs = [part for name in ("t.mkv", "a.srt", "a.vtt") for part in ("-i", folder / name)]
    tracks = ["-map", "0:v", "-map", "1:s", "-map", "2:s", "-c:v", "copy", "-c:s", "srt"]
    default = ["-disposition:s:0", "0", "-disposition:s:1", "default"]
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        *inputs,
        *tracks,
        *default,
        tmp_path / "two.mkv",
    ]
    subprocess.run(list(map(str, command)), check=True, stdin=subprocess.DEVNULL)
    with DecodePool(1, 2**20) as pool:
        (found,) = pool.subtitles([tmp_path / "two.mkv"])
    assert not isinstance(found, Exception)
    assert [cue.text for cue in found] == ["Tea & cake"]


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (0.0, None, "Hello there, my friend. How are you – Zoë?"),
        (0.0, 0.5, "none"),
        (0.0, 0.6, "Hello there, my friend."),
        (1.0, 9.0, "How are you – Zoë?"),
        (1.75, None, "none"),
    ],
)
def test_a_stretch_has_the_cues_on_show_in_it(start: float, end: float | None, said: str) -> None:
    assert what_is_said(SAID, start, end) == said


def test_a_cue_that_stays_is_said_once() -> None:
    cues = [Cue(0, 1, "One."), Cue(1, 2, "One."), Cue(2, 3, "Two."), Cue(3, 4, "One.")]
    assert what_is_said(cues, 0, None) == "One. Two. One."


def test_subtitles_lie_beside_the_video_but_are_not_our_own_captions(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.touch()
    assert subtitle_file(video) == video
    export_records([caption(b"a.mp4", "What I see.")], ExportFormat.SRT, ExportPlaces(tmp_path))
    assert (tmp_path / "a.srt").exists()
    assert subtitle_file(video) == video
    (tmp_path / "a.mp4.vtt").write_text(VTT)
    assert subtitle_file(video) == tmp_path / "a.mp4.vtt"
    (tmp_path / "a.srt").write_text(SRT)
    assert subtitle_file(video) == tmp_path / "a.srt"


def test_prompts_get_what_is_said_in_their_stretch(
    here: Callable[..., Printed], tiny_models: Path, folder: Path, tmp_path: Path
) -> None:
    for name in ("a.mp4", "broken.mp4"):
        (folder / name).write_bytes((folder / "t.mp4").read_bytes())
    flags = ("--prompt", "Said: {subtitles}", "--segment", 1, "--max-new-tokens", 2, "-q")
    rows, models = tmp_path / "rows.jsonl", {"LVSPEC_MODELS": str(tiny_models)}
    files = [folder / name for name in ("a.mp4", "t.mp4", "broken.mp4")]
    assert here("caption", *files, *flags, "-o", rows, environment=models).returncode == 1
    *found, broken = sorted(
        map(json.loads, rows.open()), key=lambda row: (row["status"] == "error", row["id"])
    )
    first, second = "Hello there, my friend. How are you – Zoë?", "How are you – Zoë?"
    assert [(row["file_name"], row["prompt"]) for row in found] == [
        ("a.mp4", f"Said: {first}"),
        ("a.mp4", f"Said: {second}"),
        ("t.mp4", f"Said: {first}"),
        ("t.mp4", f"Said: {second}"),
    ]
    assert broken["error"]["message"].startswith("its subtitles cannot be read: ")
