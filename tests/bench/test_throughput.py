"""Clips an hour by how many are captioned together: the figures of runs, and how they are shown."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lvspec_cli.bench.lines import markdown, notes, throughput_table, verdict
from lvspec_cli.bench.report import report
from lvspec_cli.bench.results import Change, Margins, Results, compare_results
from lvspec_cli.bench.throughput import usable_slots
from lvspec_cli.bench.variants import parse_slots, parse_throughput_modes
from lvspec_cli.errors import UsageError
from lvspec_cli.figures.answers import BenchMode
from lvspec_cli.figures.throughput import Run, Throughput, throughput_of
from lvspec_cli.table import plain
from tests.bench import made
from tests.bench.made import SETTINGS, item
from tools.batch_throughput import missed

AR, LVSPEC, BATCHED = BenchMode.AR, BenchMode.LVSPEC, BenchMode.HF_BATCHED


def run(mode: BenchMode, slots: int, seconds: float, repeat: int = 0, **fields: Any) -> Run:
    """Four clips of ten tokens."""
    known: dict[str, Any] = {
        "clips": 4,
        "output_tokens": 40,
        "processor_s": 2.0,
        "texts": ("a", "b", "c", "d"),
    }
    known |= {"mode": mode, "slots": slots, "seconds": seconds, "repeat": repeat, "drafts": mode is LVSPEC}
    return Run(**known | fields)


RUNS = (
    run(AR, 1, 20.0), run(AR, 8, 5.0),
    run(LVSPEC, 1, 10.0, texts=("a", "B", "c", "d")), run(LVSPEC, 8, 4.0, texts=("a", "B", "c", "D")),
    run(BATCHED, 8, 8.0, texts=("a", "b", "c", "?")),
    run(BATCHED, 16, 0.0, error="OutOfMemoryError: no room"),
    # The machine is half as fast from here on: ratios stay, rates do not.
    run(LVSPEC, 8, 8.0, 1, texts=("a", "B", "c", "D")), run(LVSPEC, 1, 20.0, 1, texts=("a", "B", "c", "d")),
    run(AR, 1, 40.0, 1), run(AR, 8, 12.5, 1),
)  # fmt: skip


def results(runs: tuple[Run, ...] = RUNS, **settings: Any) -> Results:
    changed = SETTINGS.model_copy(update={"slots": (1, 8, 16), "repeat": 2, **settings})
    items = tuple(item(f"{name}.mp4") for name in "abcd")
    return made.results((), settings=changed, throughput=throughput_of(runs), runs=runs, items=items)


def test_figures_are_medians_and_ratios_are_taken_within_a_repeat() -> None:
    found = {(row.mode, row.slots): row for row in throughput_of(RUNS)}
    assert list(found) == [(AR, 1), (AR, 8), (LVSPEC, 1), (LVSPEC, 8), (BATCHED, 8), (BATCHED, 16)]
    assert found[LVSPEC, 8] == Throughput(
        mode=LVSPEC,
        slots=8,
        drafts=True,
        clips_per_hour=(3600 + 1800) / 2,
        seconds_per_clip=1.5,
        processor_s_per_clip=0.5,
        tokens_per_s=7.5,
        vs_one=2.5,
        vs_ar=5.0,
        same_texts=0.75,
    )
    assert found[AR, 8].vs_one == found[AR, 8].vs_ar == pytest.approx((4.0 + 3.2) / 2)
    assert (found[BATCHED, 8].vs_one, found[BATCHED, 8].vs_ar) == (None, 2.5)
    assert found[BATCHED, 8].same_texts == 0.75  # as ar has them
    assert found[BATCHED, 16] == Throughput(mode=BATCHED, slots=16, error="OutOfMemoryError: no room")


def test_the_table_the_page_and_the_report_show_every_line() -> None:
    shown = results()
    heading, *lines = [line.split("\t") for line in plain(throughput_table(shown)).splitlines()]
    assert heading == [
        "mode",
        "at once",
        "clips/h",
        "to one",
        "to ar",
        "s/clip",
        "CPU s/clip",
        "tokens/s",
        "same",
    ]
    assert lines[3] == ["lvspec", "8", "2700", "2.50", "5.00", "1.500", "0.500", "7.5", "75 %"]
    assert lines[5] == ["hf-batched", "16", *[""] * 7]
    assert verdict(shown) == (
        "lvspec, 8 at once: 2700 clips an hour, 2.50 times as many as one at a time,"
        " 5.00 times those of ar one at a time"
    )
    told = list(notes(shown))
    assert told[0] == "hf-batched, 16 at once, cannot run: OutOfMemoryError: no room"
    assert "captioned 2 times in each line" in told[1]
    assert told[2].startswith("4 clips for 16 at once: ")
    assert "| lvspec | 8 | 2700 |" in markdown(shown)
    page = report(shown)
    assert "Throughput" in page
    assert re.search(r"<svg[^>]*>.*captions at once", page, re.DOTALL)
    assert "2700" in page


def test_a_draft_that_was_left_out_is_told() -> None:
    shown = results((run(AR, 1, 20.0), run(LVSPEC, 8, 4.0, drafts=False)))
    assert throughput_table(shown).cells("mode") == ["ar", "lvspec, no draft"]
    assert any(note.startswith("no draft: ") for note in notes(shown))


def test_two_measurements_are_compared_by_their_ratios() -> None:
    slower = results((run(AR, 1, 20.0), run(AR, 8, 10.0)))
    name = "ar, 8 at once"
    assert [change for change in compare_results(results(), slower, Margins()) if change.mode == name] == [
        Change(name, "against one at once", pytest.approx(3.6), 2.0, regression=True),  # type: ignore[arg-type]
        Change(name, "against ar", pytest.approx(3.6), 2.0, regression=True),  # type: ignore[arg-type]
        Change(name, "clips/h", pytest.approx(2016), 1440, regression=False),  # type: ignore[arg-type]
    ]


def test_numbers_that_cannot_be_filled_or_do_not_fit_are_left_out() -> None:
    said: list[str] = []
    assert usable_slots((1, 2, 4, 8, 16), answers=9, fitting=3, warn=said.append) == (1, 2)
    assert said == [
        "not measured: 16 at once, of 9 captions in all",
        "not measured: 4, 8 at once: there is memory for 3",
    ]
    assert usable_slots((8,), answers=2, fitting=32, warn=said.append) == (1,)


@pytest.mark.parametrize("text", ["0", "x", "1,33", "²", ",", ""])
def test_numbers_at_once_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--at-once"):
        parse_slots(text)


def test_numbers_and_modes_as_they_are_written() -> None:
    assert parse_slots("8, 1,8,01") == (1, 8)
    assert parse_throughput_modes("lvspec, ar,lvspec") == (LVSPEC, AR)
    with pytest.raises(UsageError, match="does not measure 'hf-ar'"):
        parse_throughput_modes("ar,hf-ar")
    with pytest.raises(UsageError, match="names none"):
        parse_throughput_modes(",")


def test_what_has_to_be_reached() -> None:
    enough = (run(AR, 1, 20.0), run(AR, 8, 6.6), run(LVSPEC, 1, 10.0), run(LVSPEC, 8, 5.5))
    assert list(missed(throughput_of(enough))) == []
    slow = (run(AR, 1, 20.0), run(AR, 8, 6.7), run(LVSPEC, 1, 10.0), run(LVSPEC, 2, 10.1))
    assert list(missed(throughput_of(slow))) == [
        "ar, 8 at once: 2.99 times the clips an hour of one at a time, not 3.0",
        "lvspec, 2 at once: 0.99 times the clips an hour of one at a time, not 1.0",
    ]
    assert list(missed(throughput_of((run(AR, 1, 9.0), run(AR, 8, 1.0, texts=("a", "b", "c", "x")))))) == [
        "ar, 8 at once: 25.0% of the texts are not those of one at a time"
    ]
    assert list(missed(throughput_of((run(AR, 8, 0.0, error="no room"),)))) == ["ar, 8 at once: no room"]
