from __future__ import annotations

import io
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from lvspec_cli.events import Answered, InSlot, Stage, StageFinished, StageStarted
from lvspec_cli.output.records import Record, stats_fields
from lvspec_cli.table import clock
from lvspec_cli.types import DecodeStats
from lvspec_cli.ui.batch import BatchPicture, BatchShow, failure_line
from lvspec_cli.ui.state import BatchView, add_event, add_row, counts, rates
from tests.output.rows import caption, failure
from tests.ui.test_render import EVENTS
from tests.ui.test_state import CLIP, EMPTY, PREFILL, ROUND

STATS = stats_fields(DecodeStats(output_tokens=41, rounds=8, drafted=64, accepted_exact=32), 0.1)
START = BatchView(total=10, skipped=4, current=EMPTY)


def view(*records: Record) -> BatchView:
    return reduce(add_row, records, START)


def draw(view: BatchView, columns: int = 80, rows: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=columns, height=rows, markup=False)
    picture = BatchPicture(view, seconds=20.0, stage_seconds=1.0)
    lines = console.render_lines(picture, pad=False)
    return ["".join(segment.text for segment in line) for line in lines]


def test_rows_are_counted_by_what_became_of_them() -> None:
    seen = view(caption(b"a.mp4"), failure(b"b.mp4"), caption(b"c.mp4"))
    assert (seen.ok, seen.failed, seen.done) == (2, 1, 3)
    assert counts(seen) == "3 of 10 done, 1 failed, 4 skipped"
    assert [record.file_name for record in seen.recent] == ["a.mp4", "c.mp4"]


def test_rates_are_of_all_rows_so_far() -> None:
    seen = view(caption(b"a.mp4", stats=STATS), caption(b"b.mp4", stats=STATS), failure(b"c.mp4"))
    assert rates(seen, 6.0) == "0.50 captions/s, 14 tokens/s, mean accepted length 5.00, 14 s left"


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert rates(START, 0.0) == ""


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59, "59 s"), (65, "1:05"), (3725, "1:02:05"), (36000, "10:00:00")]
)
def test_times_are_said_as_people_read_them(seconds: float, said: str) -> None:
    assert clock(seconds) == said


def test_the_picture_shows_the_clip_the_last_results_and_how_far_it_is() -> None:
    seen = reduce(add_event, EVENTS, view(caption(b"first.mp4", "A red ball rolls."), failure(b"b.mp4")))
    text = "\n".join(draw(seen))
    for part in ("first.mp4", "A red ball rolls.", "a.mp4", "2 of 10 done, 1 failed", "captions/s", "left"):
        assert part in text, part


def test_clips_that_are_decoded_together_have_a_line_each_until_their_rows_are_there() -> None:
    other = replace(CLIP, path=Path("other.mp4"))
    both = [
        InSlot(slot, event) for slot, clip in enumerate((CLIP, other)) for event in (clip, PREFILL, ROUND)
    ]
    drawn = draw(reduce(add_event, both, START), columns=40)
    assert [line for line in drawn if ".mp4" in line] == [
        "a.mp4  4 tokens  A red ball",
        "other.mp4  4 tokens  A red ball",
    ]
    begun = [*both, InSlot(1, Answered(caption(b"other.mp4"))), InSlot(1, StageStarted(Stage.ENCODING))]
    assert "  encoding the video" in draw(reduce(add_event, begun, START))
    assert not any("other" in line for line in draw(reduce(add_event, begun, START)))


@given(st.integers(20, 200), st.integers(3, 50), st.integers(0, 40))
def test_the_picture_fits_any_terminal(columns: int, rows: int, slots: int) -> None:
    seen = reduce(add_event, EVENTS, view(*(caption(b"x" * 300, "y" * 900) for _ in range(5))))
    seen = reduce(add_event, (InSlot(slot, event) for slot in range(slots) for event in (CLIP, ROUND)), seen)
    drawn = draw(seen, columns, rows)
    assert len(drawn) < rows
    assert all(cell_len(line) <= columns for line in drawn)


def test_hostile_names_and_texts_stay_on_their_line() -> None:
    hostile = caption(b"\x1b[31ma\n.mp4", "\x1b[2Jtext\nmore [bold]")
    drawn = draw(view(hostile))
    assert not any("\x1b" in line for line in drawn)
    assert "\x1b" not in failure_line(failure(b"\x1b[31mb.mp4"))
    assert "\n" not in failure_line(failure(b"b\n.mp4"))


def test_without_a_terminal_failures_are_said_at_once_and_progress_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stream = io.StringIO()
    show = BatchShow(START, stream)
    for number in range(6):
        now += 4.0
        show.add(caption(b"%d.mp4" % number))
    show.add(failure(b"bad.mp4"))
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[:2] for line in lines[:2]] == [
        ["captions  30% 00:12", " 3 of 10 done"],
        ["captions  60% 00:24", " 6 of 10 done"],
    ]
    assert lines[2].startswith("failed bad.mp4: ")


def test_without_a_terminal_loading_is_said_and_no_stage_of_a_clip() -> None:
    stream = io.StringIO()
    show = BatchShow(START, stream)
    for stage in (Stage.LOADING, Stage.ENCODING):
        show.listen(StageStarted(stage))
        show.listen(StageFinished(stage, 3.2))
    assert stream.getvalue() == "loading: 3.2 s\n"
