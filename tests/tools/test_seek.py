"""The measurement of stretches of long videos: that what it compares is the same, and its page."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from itertools import pairwise

import numpy as np
import pytest

from tools.hours import KINDS, RATE, SECONDS
from tools.readers import Asked, Got, fault
from tools.seek import OURS, Cost, Row, asked_of, cells, main, segments, stretches, tasks, with_block

PAGE = "before\n\n<!-- seek -->\nold\n<!-- /seek -->\n\nafter\n"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What it prints, and the page that it has written. The pictures are smaller than they are by hand."""
    folder = tmp_path_factory.mktemp("seek")
    page = folder / "page.md"
    page.write_text(PAGE)
    flags = f"--copies 1 --repeats 1 --kinds MP4 TS --threads 1 --work {folder} --page {page}"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr("tools.hours.WIDTH", 160)
        patch.setattr("tools.hours.HEIGHT", 100)
        patch.setattr(sys, "argv", ["seek", *flags.split()])
        main()
    return printed.getvalue(), page.read_text()


def rows_of(text: str) -> list[list[str]]:
    """The cells of the table's rows about MP4 and TS."""
    lines = [line for line in text.splitlines() if line.startswith(("| MP4", "| TS"))]
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]


@pytest.mark.thorough
def test_lvspec_gives_the_right_frames_of_each_file(measured):
    printed, _ = measured
    rows = rows_of(printed.partition("| file | one stretch")[0])
    assert [row[0] for row in rows] == ["MP4"] * 3 + ["TS"] * 3
    assert [row[1].partition(",")[0] for row in rows] == [
        "10 stretches",
        "10 stretches",
        "64 frames of all",
    ] * 2
    assert all(float(row[2].partition(" (")[0]) > 0 for row in rows)  # without a star
    assert f"by {OURS}:" not in printed


@pytest.mark.thorough
def test_decord_gives_the_same_frames_of_mp4_and_others_of_ts(measured):
    pytest.importorskip("decord")
    printed, _ = measured
    cells_of_decord = [row[3] for row in rows_of(printed.partition("| file | one stretch")[0])]
    assert all(float(cell.partition(" (")[0]) > 0 for cell in cells_of_decord[:3])
    assert all("*" in cell for cell in cells_of_decord[3:])
    assert "\\* TS by decord: 8 of 8 frames are others. It was not timed." in printed


@pytest.mark.thorough
def test_the_page_gets_the_table_and_no_folder_of_this_machine(measured):
    printed, page = measured
    assert page == PAGE.replace("old\n", printed.removesuffix("\n"))
    assert "`python -m tools.seek --copies 1 --repeats 1 --kinds MP4 TS`" in page
    assert "/seek" not in page.replace("<!-- /seek -->", "")


def test_a_page_without_marks_is_left_alone():
    assert with_block(PAGE, "new $1 \\1\n") == PAGE.replace("old\n", "new $1 \\1\n")
    with pytest.raises(ValueError, match="<!-- seek -->"):
        with_block("no marks", "new")


@pytest.mark.thorough
def test_cost_is_told_beside_that_of_decoding_once(measured):
    printed, _ = measured
    rows = rows_of(printed.partition("| file | one stretch | all in segments | every frame once |")[2])
    assert [row[0] for row in rows] == ["MP4", "TS"]
    for row in rows:
        stretch, every, _, ratio = (float(cell.partition(" (")[0]) for cell in row[1:])
        assert min(stretch, every, ratio) > 0


def test_segments_cover_the_file():
    found = segments(60.0)
    assert [each.start for each in found] == [0, 10, 20, 30, 40, 50]
    assert all(each.end == each.start + 10 and len(each.times) == 8 for each in found)


def test_stretches_are_apart_and_begin_between_key_frames():
    found = stretches(3600.0)
    assert len(found) == 10
    assert all(before.end < after.start for before, after in pairwise(found))
    assert all(each.end - each.start == pytest.approx(10) and len(each.times) == 8 for each in found)
    assert all(0.5 < each.start % 5 < 4.5 for each in found)  # key frames are 5 s apart
    assert all(each.start <= each.times[0] and each.times[-1] < each.end for each in found)


def test_frames_are_spread_from_the_first_to_the_last():
    assert asked_of(0.0, 1.0, 3).times == (0.0, 0.48, 0.96)
    assert asked_of(0.013, 0.1, 8).times == (0.04, 0.08)
    assert [len(each.asked) for each in tasks(60.0)] == [10, 10, 1]


def test_a_wrong_frame_and_a_wrong_time_are_found():
    asked = Asked(0.0, 1.0, (0.0, 0.04))
    frames = np.full((2, 4, 4, 3), 100, np.uint8)
    right = Got(np.asarray(asked.times), frames)
    other = np.stack([frames[0], frames[1] + 20])
    assert fault([asked], [Got(right.times, frames + 1)], [right]) is None  # rounded otherwise
    assert fault([asked], [Got(right.times, other)], [right]) == "1 of 2 frames are others"
    assert fault([asked], [Got(right.times + 1 / RATE, frames)], [right]) == "2 of 2 times are wrong"
    assert fault([asked], [Got(right.times, frames[:, :2])], [right]) == "gives frames of shape (2, 2, 4, 3)"


def test_only_a_peer_with_the_right_frames_counts_as_the_fastest():
    costs = {OURS: Cost(1, 3), "decord": Cost(0.1, 0.1), "torchcodec exact": Cost(2, 2)}
    row = Row("TS", "all", costs, {"decord": "others"})
    assert row.ratio == Cost(0.5, 1.5)
    assert cells(row) == ("TS", "all", "1.00 (3.00)", "0.10 (0.10)*", "2.00 (2.00)", "", "0.50 (1.50)")
    assert Row("AVI", "all", {OURS: Cost(1, 1)}, {}).ratio is None


def test_every_kind_is_a_whole_number_of_short_clips():
    assert 60 % SECONDS == 0
    assert list(KINDS)[:2] == ["MP4", "MKV"]
