"""What is said below the rows."""

from __future__ import annotations

import pytest

from lvspec_cli.bench.lines import few_clips, notes
from lvspec_cli.figures.answers import BenchMode, Estimate, Fidelity, Freedom, ModeResult, Spread
from tests.bench.made import item, results


def fast(mode: BenchMode, retention: float | None = None) -> ModeResult:
    freedom = Freedom(
        content=Estimate(value=1.05, low=1.01, high=1.1),
        control_content=0.86, control_loss=0.05, control_repetition=0.0, control_length=9.0,
    )  # fmt: skip
    return ModeResult(
        mode=mode,
        gamma=4,
        speedup_vs_ar=Spread(median=2.0, low=1.9, high=2.1),
        retention=None if retention is None else Estimate(value=retention, low=retention, high=1.0),
        fidelity=Fidelity(answers=9, clips=9, freedom=freedom, length=9.0, ar_length=9.0),
    )


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (fast(BenchMode.LVSPEC, 0.999), "the fastest of those that keep 99.8 % of ar's quality"),
        (fast(BenchMode.EXACT), "the fastest of those that keep 99.8 % of ar's quality"),
        (fast(BenchMode.LVSPEC), "no right answers are known"),
        (fast(BenchMode.LVSPEC, 0.9), "none is faster than ar and shown to keep 99.8 %"),
    ],
)
def test_it_is_said_by_what_the_winner_won(mode: ModeResult, said: str):
    assert said in "\n".join(notes(results((mode,))))


def test_few_clips_are_said_to_be_few():
    assert any("(1 here)" in line for line in notes(results(())))
    many = tuple(item(f"{number}.mp4") for number in range(20))
    assert not any("narrower" in line for line in notes(results((), items=many)))
    assert len(list(few_clips(19))) == 1
