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

from lvspec_cli.events import (
    Answered,
    Event,
    InSlot,
    InWorker,
    QuestionStarted,
    Stage,
    StageFinished,
    StageStarted,
)
from lvspec_cli.output.records import Record, stats_fields
from lvspec_cli.table import clock
from lvspec_cli.types import DecodeStats
from lvspec_cli.ui.batch import BatchPicture, BatchShow, failure_line, last_results
from lvspec_cli.ui.state import BatchView, add_event, add_row, counts, rates
from tests.output.rows import caption, failure
from tests.ui.test_render import EVENTS
from tests.ui.test_state import CLIP, EMPTY, PREFILL, ROUND

STATS = stats_fields(DecodeStats(output_tokens=41, rounds=8, drafted=64, accepted_exact=32), 0.1)
START = BatchView(total=10, skipped=4, places=(EMPTY,))


def view(*records: Record) -> BatchView:
    return reduce(add_row, records, START)


def draw(view: BatchView, columns: int = 80, rows: int = 24, stopping: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=columns, height=rows, markup=False)
    seconds = tuple(1.0 + n for n in range(len(view.places)))
    picture = BatchPicture(view, 20.0, stage_seconds=seconds, stopping=stopping)
    lines = console.render_lines(picture, pad=False)
    return ["".join(segment.text for segment in line) for line in lines]


def test_rows_are_counted_by_what_became_of_them() -> None:
    seen = view(caption(b"a.mp4"), failure(b"b.mp4"), caption(b"c.mp4"))
    assert (seen.ok, seen.failed, seen.done) == (2, 1, 3)
    assert counts(seen) == "3 of 10 done, 1 failed, 4 skipped"
    assert [record.file_name for record in seen.recent] == ["a.mp4", "c.mp4"]


def test_the_picture_says_that_it_stops() -> None:
    assert draw(START, columns=50, stopping=True)[-1].startswith("stopping, 0 of 10 done, 4 skipped")
    assert "stopping" not in "".join(draw(START))


def test_rates_are_of_all_rows_so_far() -> None:
    seen = view(caption(b"a.mp4", stats=STATS), caption(b"b.mp4", stats=STATS), failure(b"c.mp4"))
    assert rates(seen, 6.0) == (
        "0.33 captions/s, 14 tokens/s, 5.0 tokens a step of the large model, 14 s left"
    )


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


def begun(name: str, *stages: Stage) -> list[Event]:
    """A clip whose last stage runs, and the others have finished."""
    *done, last = [(StageStarted(stage), StageFinished(stage, 0.5)) for stage in (Stage.DECODING, *stages)]
    clip = replace(CLIP, path=Path(name))
    return [*(event for both in done for event in both), clip, last[0]]


def test_a_clip_begins_with_no_stage_of_the_one_before() -> None:
    loading: list[Event] = [StageStarted(Stage.LOADING), StageFinished(Stage.LOADING, 2.0)]
    first = [*begun("a.mp4", Stage.ENCODING, Stage.ANSWERING), StageFinished(Stage.ANSWERING, 3.0)]
    at_first = "\n".join(draw(reduce(add_event, [*loading, *first], START)))
    assert "✓ decoding 0.5 s  ✓ loading 2.0 s  ✓ encoding the video 0.5 s  ✓ answering 3.0 s" in at_first
    waiting = reduce(add_event, [*loading, *first, StageStarted(Stage.DECODING)], START)
    assert "● decoding 1 s  ✓ loading 2.0 s  ○ encoding the video  ○ answering" in "\n".join(draw(waiting))
    assert "a.mp4" not in "\n".join(draw(waiting))
    second = reduce(add_event, [*loading, *first, *begun("b.mp4", Stage.ENCODING)], START)
    assert "✓ decoding 0.5 s  ✓ loading 2.0 s  ● encoding the video 1 s  ○ answering" in "\n".join(
        draw(second)
    )
    another = reduce(add_event, [*first, QuestionStarted(2, 2, "Why?")], START)
    assert "✓ decoding 0.5 s  ○ loading  ○ encoding the video  ○ answering" in "\n".join(draw(another))


def test_several_workers_have_a_line_each() -> None:
    events = [
        *(InWorker(0, event) for event in begun("a.mp4", Stage.ENCODING)),
        *(InWorker(2, event) for event in [*begun("c.mp4", Stage.ENCODING, Stage.ANSWERING), PREFILL, ROUND]),
        InWorker(1, StageStarted(Stage.LOADING)),
    ]
    start = BatchView(10, 0, places=(EMPTY,) * 4)
    lines = draw(reduce(add_event, events, start))
    assert lines[3:7] == [
        "a.mp4  ● encoding the video 1 s",
        "worker 2  ● loading 2 s",
        "c.mp4  ● answering 3 s  A red ball",
        "",  # the fourth has not begun
    ]
    of_slots = BatchView(10, 0, places=(EMPTY,) * 4, slots=2)
    together: list[Event] = []
    for number, slot, name in ((0, 1, "b.mp4"), (1, 0, "c.mp4")):
        answering: list[Event] = [
            replace(CLIP, path=Path(name)),
            StageStarted(Stage.ANSWERING),
            PREFILL,
            ROUND,
        ]
        together += [InWorker(number, InSlot(slot, event)) for event in answering]
    both = reduce(add_event, together, of_slots)
    assert draw(both)[3:5] == ["b.mp4  ● answering 2 s  A red ball", "c.mp4  ● answering 3 s  A red ball"]
    ended = add_event(both, InWorker(0, InSlot(1, Answered(caption(b"b.mp4", "A red ball.")))))
    assert draw(ended)[3:5] == ["c.mp4  ● answering 3 s  A red ball", ""]
    # A clip that is read meanwhile belongs to neither.
    assert add_event(both, InWorker(0, StageStarted(Stage.DECODING))) == both
    many = BatchView(99, 0, places=(EMPTY,) * 20)
    busy = [InWorker(number, event) for number in range(20) for event in begun(f"{number}.mp4")]
    shown = draw(reduce(add_event, busy, many))
    assert len(shown) == 3 + 8 + 2
    assert shown[10] == "and 13 more"


def test_the_last_results_are_left_with_their_texts() -> None:
    long = " ".join(["word"] * 200)
    left = last_results([caption(b"a.mp4", "A red ball.\x1b[2J"), caption(b"b.mp4", long)], 40)
    lines = left.splitlines()
    assert lines[:3] == ["a.mp4", "  A red ball.\\x1b[2J", "b.mp4"]
    assert len(lines) == 3 + 6
    assert lines[-1].endswith(" ...")
    assert all(line.split()[0] == "word" and len(line) <= 40 for line in lines[3:])


@given(st.integers(20, 200), st.integers(3, 50), st.sampled_from([1, 3, 20]))
def test_the_picture_fits_any_terminal(columns: int, rows: int, workers: int) -> None:
    seen = reduce(add_event, EVENTS, view(*(caption(b"x" * 300, "y" * 900) for _ in range(5))))
    seen = replace(seen, places=seen.places * workers)
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
    show = BatchShow(replace(START, places=START.places * 2), stream)
    for number in range(6):
        if number in (0, 2):  # the first worker's loading does not count; the other's is time like any
            now += 0.0 if number else 7.0
            show.listen(InWorker(number // 2, StageFinished(Stage.LOADING, 7.0)))
        now += 4.0
        show.add(caption(b"%d.mp4" % number))
    show.add(failure(b"bad.mp4"))
    _, *lines = stream.getvalue().splitlines()
    assert lines[:2] == [
        "1 of 10 done, 4 skipped, 0.25 captions/s, 36 s left",
        "4 of 10 done, 4 skipped, 0.25 captions/s, 24 s left",
    ]
    assert lines[2].startswith("failed bad.mp4: ")


def test_without_a_terminal_loading_is_said_and_no_stage_of_a_clip() -> None:
    stream = io.StringIO()
    show = BatchShow(START, stream)
    for stage in (Stage.LOADING, Stage.ENCODING):
        show.listen(StageStarted(stage))
        show.listen(StageFinished(stage, 3.2))
    assert stream.getvalue() == "loading: 3.2 s\n"
