"""Figures of modes from measurements made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from lvspec_cli.figures.answers import (
    BenchMode,
    Estimate,
    Fidelity,
    Freedom,
    Kinds,
    ModeResult,
    Profile,
    RelativeQuality,
    Spread,
    Variant,
)
from lvspec_cli.figures.summary import (
    Measured,
    end_to_end_speedup,
    leader,
    reference_of,
    speedup,
    summarise,
    winner,
)
from tests.bench.made import block, drafted, item, known, plain

AR, HF_AR = Variant(BenchMode.AR), Variant(BenchMode.HF_AR)
EXACT, ASSISTED = Variant(BenchMode.EXACT, 4), Variant(BenchMode.HF_ASSISTED)
ONE, TWO, THREE = item("one.mp4"), item("two.mp4"), item("three.mp4")


def measured(*blocks):
    return Measured({each.id: each for each in (ONE, TWO, THREE, item("one.mp4", 2))}, blocks)


def test_speedup_is_the_median_over_clips_of_ratios_of_seconds_a_token():
    # 10 tokens behind the first in each: 1.0 s a token in ar; 0.5, 0.25 and 1.0 in exact.
    found = measured(
        block(ONE, plain(10.0), drafted(5.0, (5, 5))),
        block(TWO, plain(10.0), drafted(2.5, (5, 5))),
        block(THREE, plain(10.0), drafted(10.0, (5, 5))),
    )
    spread = known(speedup(found, EXACT, AR))
    assert spread.median == pytest.approx(2.0)
    assert spread.low == pytest.approx(1.0)
    assert spread.high == pytest.approx(4.0)


def test_answers_of_other_lengths_are_compared_by_the_token():
    # ar: 4.0 s for 4 tokens; exact: 5.0 s for 10.
    found = measured(block(ONE, plain(4.0, tokens=5), drafted(5.0, (5, 5))))
    assert known(speedup(found, EXACT, AR)).median == pytest.approx(2.0)


def test_a_clip_counts_once_with_all_that_was_asked_about_it():
    # One clip: 10 + 2 tokens in 10 + 8 s, against 10 + 10 in 5 + 5 s: 1.5 / 0.5. The other clip: 1.
    second = item("one.mp4", 2)
    found = measured(
        block(ONE, plain(10.0), drafted(5.0, (5, 5))),
        block(second, plain(8.0, tokens=3), drafted(5.0, (5, 5))),
        block(TWO, plain(10.0), drafted(10.0, (5, 5))),
    )
    assert known(speedup(found, EXACT, AR)).median == pytest.approx((3.0 + 1.0) / 2)


def test_a_clip_ratio_is_the_median_over_its_repeats():
    found = measured(
        *(
            block(ONE, plain(10.0), drafted(seconds, (5, 5)), repeat=repeat)
            for repeat, seconds in enumerate((5.0, 2.5, 10.0))
        )
    )
    spread = known(speedup(found, EXACT, AR))
    assert (spread.median, spread.low, spread.high) == (2.0, None, None)


def test_end_to_end_holds_an_answer_as_long_as_the_references():
    # ar: 2 + 1 + 10 s. exact at 0.5 s a token: 2 + 1.5 s, and 10 of its tokens, although it said 20.
    found = measured(block(ONE, plain(10.0, video_s=2.0), drafted(10.0, (5, 5, 5, 5), video_s=2.0)))
    assert known(end_to_end_speedup(found, EXACT, AR)).median == pytest.approx(13.0 / 8.5)


def test_what_an_assistants_first_pass_accepted_is_not_decoding():
    # 11 tokens, 3 of them of the first pass: 8 in 2 s, against 1 s a token; the 8 others end to end.
    peer = drafted(2.0, (4, 4), BenchMode.HF_ASSISTED, None, output_tokens=11, first_tokens=3, prefill_s=3.0)
    found = measured(block(ONE, plain(10.0), peer))
    assert known(speedup(found, ASSISTED, AR)).median == pytest.approx(4.0)
    assert known(end_to_end_speedup(found, ASSISTED, AR)).median == pytest.approx(11.0 / 5.0)
    (_, (_, result)) = summarise(found, (AR, ASSISTED), {})
    assert result.mean_accepted_length == pytest.approx(4.0)


def test_the_faster_plain_mode_is_the_reference():
    slow = measured(block(ONE, plain(10.0), plain(9.0, mode=BenchMode.HF_AR)))
    assert reference_of(slow, (AR, HF_AR)) == HF_AR
    assert known(speedup(slow, AR, HF_AR)).median == pytest.approx(0.9)
    fast = measured(block(ONE, plain(10.0), plain(12.0, mode=BenchMode.HF_AR)))
    assert reference_of(fast, (AR, HF_AR)) == AR
    with pytest.raises(ValueError, match="no plain mode"):
        reference_of(fast, (EXACT,))


def test_lengths_rates_and_kinds_are_over_all_answers():
    kinds = {"accepted_exact": 3, "accepted_filler": 2, "accepted_shift": 1}
    found = measured(
        block(ONE, plain(8.0, tokens=9), drafted(4.0, (5, 3), BenchMode.LVSPEC, 4, **kinds)),
        block(TWO, plain(2.0, tokens=3), drafted(2.0, (1, 1, 1), BenchMode.LVSPEC)),
    )
    variant = Variant(BenchMode.LVSPEC, 4)
    _, (ar, result) = summarise(found, (AR, variant), {variant: {"gamma": 4}})
    assert result.mean_accepted_length == pytest.approx(11 / 5)
    assert result.acceptance_rate == pytest.approx(6 / 20)
    assert result.accepted_lengths == {1: 3, 3: 1, 5: 1}
    # 13 tokens: 6 accepted, two of the prefill and five of the target's own.
    assert result.kinds == Kinds(exact=3, filler=2, shift=1, target=7)
    assert result.tokens_per_s == pytest.approx((8 / 4 + 3 / 2) / 2)
    assert result.settings == {"gamma": 4}
    assert result.answers == 2
    assert (ar.mean_accepted_length, ar.kinds, ar.acceptance_rate) == (None, None, None)
    assert known(ar.speedup_vs_ar).median == 1.0


def test_the_costs_of_a_round_predict_a_speedup():
    # ar: 0.1 s a step. 4 rounds: 16 draft steps in 0.16 s, 0.6 s of verifications, 0.04 s of the rest.
    profile = Profile(
        mode=BenchMode.EXACT,
        gamma=4,
        rounds=4,
        draft_steps=16,
        draft_s=0.16,
        verification_s=0.6,
        overhead_s=0.04,
    )
    found = measured(
        block(ONE, plain(1.0), drafted(0.5, (5, 5)), profiles=(profile,)),
        block(TWO, plain(5.0), drafted(0.5, (1, 1))),
    )
    _, (_, result) = summarise(found, (AR, EXACT), {})
    assert (result.c, result.v, result.o) == pytest.approx((0.1, 1.5, 0.1))
    assert result.mean_accepted_length == pytest.approx(3.0)
    assert result.predicted_speedup == pytest.approx(3.0 / (4 * 0.1 + 1.5 + 0.1))
    assert (known(result.costs).answers, known(result.costs).drafted_a_round) == (1, 4.0)


def test_one_answer_that_other_work_has_stretched_changes_no_cost_and_no_reference():
    quiet = Profile(
        mode=BenchMode.EXACT,
        gamma=4,
        rounds=2,
        draft_steps=8,
        draft_s=0.08,
        verification_s=0.3,
        overhead_s=0.02,
    )
    hit = quiet.model_copy(update={"draft_s": 9.0, "verification_s": 90.0})
    hf = BenchMode.HF_AR
    found = measured(
        block(ONE, plain(1.0), plain(2.0, mode=hf), drafted(0.5, (5, 5)), profiles=(quiet,)),
        block(TWO, plain(99.0), plain(2.0, mode=hf), drafted(0.5, (5, 5)), profiles=(hit,)),
        block(THREE, plain(1.0), plain(2.0, mode=hf), drafted(0.5, (5, 5)), profiles=(quiet,)),
    )
    reference, (_, _, result) = summarise(found, (AR, HF_AR, EXACT), {})
    assert reference == AR
    assert (result.c, result.v, result.o) == pytest.approx((0.1, 1.5, 0.1))


def test_a_peer_that_cannot_run_is_there_with_its_error():
    broken = plain(0.0, 0, BenchMode.HF_ASSISTED, error="ValueError: no", text=None)
    found = measured(block(ONE, plain(1.0), broken), block(TWO, plain(1.0), broken))
    _, (_, result) = summarise(found, (AR, ASSISTED), {})
    assert (result.error, result.failed, result.answers) == ("ValueError: no", 2, 0)
    assert result.speedup_vs_ar is None
    half = measured(
        block(ONE, plain(1.0), broken),
        block(TWO, plain(1.0), drafted(1.0, (2,), BenchMode.HF_ASSISTED, None)),
    )
    _, (_, result) = summarise(half, (AR, ASSISTED), {})
    assert (result.error, result.failed, result.answers) == (None, 1, 1)


def test_an_answer_of_one_token_has_no_speed():
    found = measured(
        block(ONE, plain(0.0, tokens=1), drafted(0.0, ())), block(TWO, plain(2.0), drafted(1.0, (5, 5)))
    )
    assert known(speedup(found, EXACT, AR)).median == pytest.approx(2.0)
    assert speedup(measured(block(ONE, plain(0.0, tokens=1), drafted(0.0, ()))), EXACT, AR) is None


def _result(mode: BenchMode, median: float, low: float | None = None, value: float = 1.0) -> ModeResult:
    kept = None if low is None else Estimate(value=value, low=low, high=1.0)
    return ModeResult(
        mode=mode, gamma=4, speedup_vs_ar=Spread(median=median, low=None, high=None), retention=kept
    )


def test_the_winner_is_the_fastest_that_is_shown_to_keep_the_quality():
    exact, loose = _result(BenchMode.EXACT, 1.5), _result(BenchMode.LVSPEC, 3.0, low=0.9985)
    assert winner((exact, loose)) == loose.variant
    careless = _result(BenchMode.LVSPEC_PRUNED, 4.0, low=0.99)
    assert winner((exact, loose, careless)) is None  # what may be faster at no loss is not passed over
    assert known(leader((exact, careless))).variant == careless.variant
    wrong = _result(BenchMode.LVSPEC_PRUNED, 4.0, low=0.8, value=0.9)
    assert winner((exact, wrong)) == exact.variant
    unknown = _result(BenchMode.LVSPEC, 9.0)  # nobody has looked at its quality
    assert winner((exact, unknown)) == exact.variant


def test_a_few_clips_on_which_nothing_changed_show_nothing():
    exact, loose = _result(BenchMode.EXACT, 1.5), _result(BenchMode.LVSPEC, 3.0, low=1.0)
    same = Estimate(value=1.0, low=1.0, high=1.0)

    def with_facts(count: int) -> ModeResult:
        kept = RelativeQuality(mode=0.9, ar=0.9, count=count, retention=same)
        return loose.model_copy(update={"fidelity": Fidelity(answers=9, clips=9, facts=kept)})

    assert winner((exact, with_facts(1499))) is None
    assert winner((exact, with_facts(1501))) == loose.variant
    assert known(leader((exact, with_facts(1499)))).variant == loose.variant
    assert leader(()) is None


@pytest.mark.parametrize(
    ("changes", "wins"),
    [
        ({}, True),
        ({"low": 0.99}, False),
        ({"low": None}, True),
        ({"low": None, "value": 0.99}, False),
        ({"repetition": 0.055}, True),  # the control repeats itself as often
        ({"repetition": 0.08}, False),
        ({"length": 82.0}, True),
        ({"length": 50.0}, False),
        ({"loss": 0.07}, True),
        ({"loss": 0.08}, False),  # many of the draft's words, though ar's are among them
        ({"loss": None}, True),
        ({"control": False}, False),  # nothing says how near is near enough
    ],
)
def test_without_labels_the_control_judges(changes: dict[str, Any], wins: bool):
    values = {
        "value": 1.04, "low": 1.0, "repetition": 0.03, "length": 99.0, "loss": 0.05, "control": True,
        **changes,
    }  # fmt: skip
    freedom = Freedom(
        content=Estimate(value=values["value"], low=values["low"], high=1.1),
        control_content=0.86, control_loss=0.05, control_repetition=0.05, control_length=90.0,
    )  # fmt: skip
    fidelity = Fidelity(
        answers=9, clips=9, freedom=freedom if values["control"] else None, loss_per_token=values["loss"],
        repetition=values["repetition"], ar_repetition=0.04, length=values["length"], ar_length=100.0,
    )  # fmt: skip
    exact, loose = _result(BenchMode.EXACT, 1.5), _result(BenchMode.LVSPEC, 3.0)
    loose = loose.model_copy(update={"fidelity": fidelity})
    assert winner((exact, loose)) == (loose if wins else exact).variant
    # Facts that are known go before the words of a text.
    wrong = loose.model_copy(update={"retention": Estimate(value=0.9, low=0.9, high=0.9)})
    assert winner((exact, wrong)) == exact.variant


def test_nothing_wins_that_is_slower_than_ar():
    assert winner((_result(BenchMode.AR, 1.0), _result(BenchMode.EXACT, 0.8))) is None
    assert winner(()) is None
