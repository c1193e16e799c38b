"""Clips that several processes draw: the same as one draws, and none of somebody else's."""

import os
from pathlib import Path

import pytest

from lvspec_cli.demo.write import clip_path, write_clip
from lvspec_cli.errors import OutputError
from tools.demo_report.drawing import draw_clips


@pytest.mark.thorough
def test_a_clip_of_somebody_else_is_not_drawn_over(tmp_path: Path):
    (tmp_path / "clip_0002.mp4").write_bytes(b"mine")
    for processes in (1, 2):
        with pytest.raises(OutputError, match=r"clip_0002\.mp4 was not written by lvspec"):
            draw_clips(tmp_path, range(1, 4), seed=5, processes=processes)
    assert (tmp_path / "clip_0002.mp4").read_bytes() == b"mine"


@pytest.mark.thorough
def test_clips_behind_others_are_drawn_side_by_side(tmp_path: Path):
    first = [clip_path(tmp_path / "one", number) for number in (2, 3)]
    (tmp_path / "one").mkdir()
    for number in (2, 3):
        write_clip(tmp_path / "one", 5, number)
    told: list[tuple[int, int]] = []
    found = draw_clips(
        tmp_path / "two", range(2, 4), lambda *done: told.append(done), seed=5, processes=2
    )  # fmt: skip
    assert [path.name for path in found] == [path.name for path in first]
    assert [path.read_bytes() for path in found] == [path.read_bytes() for path in first]
    assert told == [(0, 2), (1, 2), (2, 2)]


def end_at_once(folder: Path, seed: int, number: int) -> None:
    os._exit(9)


def test_a_process_that_is_ended_from_outside_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tools.demo_report.drawing.write_clip", end_at_once)
    with pytest.raises(OutputError, match="a process that drew clips was ended") as caught:
        draw_clips(tmp_path / "clips", range(1, 3), seed=5, processes=2)
    assert "resumes where it left off" in caught.value.remedy
