"""The verdict above the table, and what is said below it."""

from __future__ import annotations

import pytest

from lvspec_cli.bench.lines import contrast_table, few_clips, notes, result_table, verdict
from lvspec_cli.bench.results import Results
from lvspec_cli.figures.answers import (
    BenchMode,
    Contrast,
    Estimate,
    Fidelity,
    Freedom,
    ModeResult,
    RelativeQuality,
    Spread,
)
from tests.bench.made import SETTINGS, item, results


def kept(count: int, lost: int = 0, share: float = 1.0, low: float | None = None) -> RelativeQuality:
    end = share if low is None else low
    retention = Estimate(value=share, low=end, high=1.0)
    return RelativeQuality(mode=0.9 * share, ar=0.9, count=count, retention=retention, lost=lost)


def fast(
    mode: BenchMode,
    speed: float = 2.0,
    facts: RelativeQuality | None = None,
    questions: RelativeQuality | None = None,
    gamma: int = 4,
) -> ModeResult:
    freedom = Freedom(
        content=Estimate(value=1.05, low=1.01, high=1.1),
        control_content=0.86, control_loss=0.05, control_repetition=0.0, control_length=9.0,
    )  # fmt: skip
    fidelity = Fidelity(
        answers=9, clips=9, facts=facts, questions=questions, freedom=freedom, length=9.0, ar_length=9.0,
        content_kept=Estimate(value=0.9, low=0.87, high=0.92),
    )  # fmt: skip
    return ModeResult(
        mode=mode,
        gamma=gamma,
        speedup_vs_ar=Spread(median=speed, low=0.9 * speed, high=1.1 * speed),
        retention=fidelity.retention,
        fidelity=fidelity,
    )


EXACT = fast(BenchMode.EXACT, 1.6)
LOOSE = fast(BenchMode.LVSPEC, 4.0, kept(38))
WORSE = fast(BenchMode.LVSPEC_PRUNED, 5.0, kept(38, lost=3, share=0.9, low=0.8))
PROVEN = fast(BenchMode.LVSPEC, 4.0, kept(1600))
MANY = tuple(item(f"{number}.mp4") for number in range(20))


@pytest.mark.parametrize(
    ("modes", "said", "star"),
    [
        ((EXACT,), "exact: 1.6 times as fast as ar; it gives the target's own text", "exact"),
        (
            (EXACT, LOOSE),
            "lvspec: 4.0 times as fast as ar; no fact of 38 lost; 1,500 are needed to be sure",
            None,
        ),
        ((EXACT, PROVEN), "lvspec: 4.0 times as fast as ar; no fact of 1,600 lost", "lvspec"),
        ((PROVEN, WORSE), "lvspec: 4.0 times as fast as ar; no fact of 1,600 lost", "lvspec"),
        (
            (fast(BenchMode.LVSPEC, 3.0, kept(2000, lost=2, share=0.999, low=0.99), kept(2000)),),
            "lvspec: 3.0 times as fast as ar; 2 facts of 2,000 lost; no answer of 2,000 lost; more clips are"
            " needed to be sure",
            None,
        ),
        (
            (WORSE,),
            "nothing is faster than ar and keeps 99.8 % of ar's quality: lvspec-pruned is 5.0 times as fast;"
            " 3 facts of 38 lost",
            None,
        ),
        (
            (fast(BenchMode.LVSPEC, 3.0, kept(38, share=0.9)),),
            "nothing is faster than ar and keeps 99.8 % of ar's quality: lvspec is 3.0 times as fast; 90.0 %"
            " of ar's facts",
            None,
        ),
        (
            (fast(BenchMode.EXACT, 0.8), fast(BenchMode.EXACT, 0.7, gamma=8)),
            "nothing is faster than ar: exact γ=4, the fastest, is 0.80 times as fast",
            None,
        ),
        (
            (fast(BenchMode.LVSPEC),),
            "lvspec: 2.0 times as fast as ar; no right answers are known; it keeps 90.0 % of the content"
            " words of ar's texts, the target's own second choices 86.0 %",
            "lvspec",
        ),
        ((ModeResult(mode=BenchMode.AR),), "nothing was compared with ar", None),
    ],
)
def test_one_verdict_and_a_star_only_where_nothing_faster_may_be_as_good(
    modes: tuple[ModeResult, ...], said: str, star: str | None
) -> None:
    shown = results(modes)
    assert verdict(shown) == said
    starred = [row[0] for row in result_table(shown).rows if row[0].endswith(" *")]
    assert starred == ([f"{star} *"] if star else [])
    assert any(line.startswith("* ") for line in notes(shown)) == bool(star)


def test_texts_alone_have_a_verdict_too() -> None:
    untimed = LOOSE.model_copy(update={"speedup_vs_ar": None})
    settings = SETTINGS.model_copy(update={"timed": False})
    assert verdict(results((untimed,), settings=settings)) == (
        "lvspec: no fact of 38 lost; 1,500 are needed to be sure; nothing was timed"
    )


def test_what_is_faster_and_loses_is_named_below() -> None:
    assert "lvspec-pruned γ=4 is faster, and keeps 90.0 % of ar's quality" in notes(results((PROVEN, WORSE)))


def test_what_is_faster_and_may_be_as_good_is_named_below() -> None:
    freedom = Freedom(
        content=Estimate(value=0.97, low=0.93, high=1.0),
        control_content=0.93, control_loss=0.05, control_repetition=0.0, control_length=9.0,
    )  # fmt: skip
    of_own_clips = fast(BenchMode.LVSPEC, 2.6)
    assert of_own_clips.fidelity is not None
    less = of_own_clips.fidelity.model_copy(update={"freedom": freedom})
    shown = results((EXACT, of_own_clips.model_copy(update={"fidelity": less})))
    assert verdict(shown).startswith("exact: 1.6 times")
    assert (
        "lvspec is 2.6 times as fast; no right answers are known; it keeps 90.0 % of the content words of"
        " ar's texts, the target's own second choices 93.0 %; that it is enough is not shown"
    ) in notes(shown)
    assert not any("lvspec is" in line for line in notes(results((EXACT, PROVEN))))


def test_what_is_sure_already_is_named_where_the_fastest_is_not() -> None:
    said = list(notes(results((EXACT, LOOSE))))
    assert "sure already: exact, 1.6 times as fast as ar" in said
    assert not any(line.startswith("sure") for line in notes(results((EXACT, PROVEN))))


def test_few_clips_have_no_intervals_and_that_is_said() -> None:
    def cells(shown: Results) -> str:
        return str((result_table(shown).rows, contrast_table(shown).rows))

    against = Contrast(line="lvspec", other="exact", speed=Spread(median=2.5, low=2.1, high=2.9))
    few = results((LOOSE,), contrasts=(against,))
    many = results((LOOSE,), contrasts=(against,), items=MANY)
    assert "4.00 (3.60-4.40)" in cells(many)
    assert "2.50 (2.10-2.90)" in cells(many)
    assert "4.00" in cells(few)
    assert "2.50" in cells(few)
    assert ".00 (" not in cells(few)
    assert ".50 (" not in cells(few)
    assert "% (" not in cells(few)
    assert "no intervals: over 1 clip they would be too narrow; 20 are the least" in notes(few)
    assert not any("no intervals" in line for line in notes(many))
    assert any("with 95 % intervals" in line for line in notes(many))
    assert not any("95 %" in line for line in notes(few))
    assert list(few_clips(20)) == []
