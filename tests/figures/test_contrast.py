"""One line against another, over the same answers: figures counted by hand."""

from __future__ import annotations

import pytest

from lvspec_cli.figures.answers import BenchMode, Variant
from lvspec_cli.figures.summary import Measured, best_gammas, contrast, contrasts, summarise
from tests.bench.made import block, drafted, item, known, plain

AR, OWN = Variant(BenchMode.AR), Variant(BenchMode.LVSPEC, 4)
PRUNED, BARE = Variant(BenchMode.EXACT_PRUNED, 4), Variant(BenchMode.LVSPEC, 8, label="bare")
LOOSE = BenchMode.LVSPEC


def measured():
    items = [item(name, any_of=("red",), reference="red") for name in ("one.mp4", "two.mp4")]
    # 10 tokens behind the first: in 2 rounds and 2 s; in 1 round and 1 s, once with a wrong answer.
    own = drafted(2.0, (5, 5), LOOSE, 4, text="red")
    rows = [(own, drafted(1.0, (10,), LOOSE, 8, label="bare", text=text)) for text in ("blue", "red")]
    blocks = [
        block(
            each,
            plain(10.0, text="red"),
            own,
            drafted(4.0, (2,) * 5, BenchMode.EXACT_PRUNED, text="red"),
            bare,
        )
        for each, (own, bare) in zip(items, rows, strict=True)
    ]
    return Measured({each.id: each for each in items}, blocks)


def test_speed_accepted_length_and_quality_are_ratios():
    found = contrast(measured(), OWN, PRUNED)
    assert (found.line, found.other) == ("lvspec γ=4", "exact-pruned γ=4")
    assert known(found.speed).median == pytest.approx(2.0)
    assert known(found.accepted_length).value == pytest.approx(5 / 2)
    assert known(found.quality).value == 1.0
    bare = contrast(measured(), OWN, BARE)
    assert known(bare.speed).median == pytest.approx(0.5)
    assert known(bare.accepted_length).value == pytest.approx(5 / 10)
    assert known(bare.quality).value == pytest.approx(2.0)  # 2 of 2 right against 1 of 2


def test_the_pairs_own_rule_is_held_against_every_other_line():
    variants = (AR, OWN, PRUNED, BARE)
    _, modes = summarise(measured(), variants, {})
    assert [each.other for each in contrasts(measured(), modes)] == ["exact-pruned γ=4", "lvspec/bare γ=8"]
    assert contrasts(measured(), [each for each in modes if each.variant != OWN]) == ()


def test_a_line_of_one_gamma_is_held_against_the_same_gamma():
    one = item("one.mp4")
    own = [drafted(seconds, (5, 5), LOOSE, gamma) for gamma, seconds in ((4, 5.0), (8, 2.0))]
    bare = [drafted(4.0, (5, 5), LOOSE, 4, label="bare")]
    found = Measured({one.id: one}, [block(one, plain(10.0), *own, *bare)])
    variants = (AR, OWN, Variant(LOOSE, 8), Variant(LOOSE, 4, label="bare"))
    _, modes = summarise(found, variants, {})
    (only,) = contrasts(found, modes)
    assert (only.line, only.other) == ("lvspec γ=4", "lvspec/bare γ=4")
    assert known(only.speed).median == pytest.approx(0.8)
    tuned, same = contrasts(found, modes, 8)  # each at the gamma that was found for it, then at one
    assert (tuned.line, tuned.other) == ("lvspec γ=8", "lvspec/bare γ=4")
    assert same == only
    assert contrasts(found, modes, 5)[0].line == "lvspec γ=8"  # the pair's own was not run: its best


def test_of_each_line_the_fastest_gamma_counts():
    one = item("one.mp4")
    slow, fast = drafted(5.0, (5, 5), gamma=4), drafted(2.0, (5, 5), gamma=8)
    found = Measured({one.id: one}, [block(one, plain(10.0), slow, fast)])
    exact = [Variant(BenchMode.EXACT, gamma) for gamma in (4, 8)]
    _, modes = summarise(found, (AR, *exact), {})
    assert best_gammas(modes) == {"exact": exact[1]}


def test_untimed_answers_have_no_speed_and_the_one_that_accepts_most_counts():
    one = item("one.mp4")
    few, many = drafted(0.0, (2,) * 5, gamma=4), drafted(0.0, (10,), gamma=8)
    found = Measured({one.id: one}, [block(one, plain(0.0), few, many)])
    exact = [Variant(BenchMode.EXACT, gamma) for gamma in (4, 8)]
    reference, modes = summarise(found, (AR, *exact), {})
    assert reference == AR
    assert [each.speedup_vs_ar for each in modes] == [None] * 3
    assert best_gammas(modes) == {"exact": exact[1]}
    assert contrast(found, *exact).speed is None
