"""Segments, cues and records of videos that do not begin or end where one would think."""

from pathlib import Path

import pytest

from tests.batch.conftest import Caption, rows
from tests.video.clips import late_picture, lying, make_clip


def planned(caption: Caption, *arguments: object) -> list[str]:
    printed = caption(*arguments, "--dry-run", "--out", "out.jsonl")
    assert printed.returncode == 0, printed.stderr
    return [line.split("\t")[1] for line in printed.stdout.splitlines()[1:]]


@pytest.mark.parametrize("name", ["a.flv", "a.mkv", "a.mp4"])
@pytest.mark.parametrize("seconds", [5.0, 200_000.0])
def test_segments_cover_what_is_there_whatever_the_header_says(
    caption: Caption, tmp_path: Path, name: str, seconds: float
):
    lying(make_clip(tmp_path / name, count=120), seconds)
    assert planned(caption, name, "--segment", 4) == ["0-4", "4-8", "8-10"]


def test_a_file_that_was_cut_out_has_the_segments_of_its_own_length(caption: Caption, tmp_path: Path):
    make_clip(tmp_path / "a.mkv", count=48, ticks=range(120_000, 120_048))
    assert planned(caption, "a.mkv", "--segment", 2) == ["0-2", "2-4"]


def test_joined_files_are_cut_to_their_end(caption: Caption, tmp_path: Path):
    one = make_clip(tmp_path / "one.ts", count=48)
    (tmp_path / "two.ts").write_bytes(one.read_bytes() * 2)
    assert planned(caption, "two.ts", "--segment", 3) == ["0-3", "3-6", "6-8"]


def test_a_segment_without_a_picture_is_none(caption: Caption, tmp_path: Path):
    late_picture(tmp_path / "late.mp4", 2.5)
    segments = planned(caption, "late.mp4", "--segment", 2)
    assert [segment.partition("-")[0] for segment in segments] == ["2", "4", "6"]


def test_cues_and_records_keep_the_players_clock(caption: Caption, tmp_path: Path):
    late_picture(tmp_path / "late.mp4", 2.0)
    flags = ("--frames", 1, "--max-new-tokens", 2, "--to", "srt")
    assert caption("late.mp4", "--out", "out.jsonl", *flags).returncode == 0
    [row] = rows(tmp_path / "out.jsonl")
    assert row["sampling"]["begins"] == pytest.approx(2.0, abs=0.05)
    assert row["sampling"]["duration"] == pytest.approx(7.0, abs=0.05)
    begins, ends = (tmp_path / "late.srt").read_text().splitlines()[1].split(" --> ")
    assert begins.startswith("00:00:02,0")
    assert ends.startswith("00:00:07,0")


def test_a_picture_of_unknown_size_is_a_line_of_the_table(caption: Caption, clips: Path, tmp_path: Path):
    data = bytearray(make_clip(tmp_path / "a.mov", count=2, codec="png", pixel_format="rgb24").read_bytes())
    place = data.index(b"IHDR")
    while place >= 0:
        data[place + 4 : place + 12] = 2 * (30_000).to_bytes(4, "big")
        place = data.find(b"IHDR", place + 1)
    place = data.index(b"png ") + 28
    data[place : place + 4] = 2 * (30_000).to_bytes(2, "big")
    (clips / "huge.mov").write_bytes(data)
    printed = caption("clips", "--dry-run", "--out", "out.jsonl")
    assert printed.returncode == 1
    assert "cannot be read: its picture's size is not known, or beyond the limit" in printed.stdout
    assert len(printed.stdout.splitlines()) == 7
