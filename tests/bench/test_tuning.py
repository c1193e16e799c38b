"""What the search decides, with literals: halves, settings, turns, who goes on, what is taken."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.bench.calibrate import best_layer, fit_round_costs
from lvspec_cli.bench.relevance import Scheme, SchemeScores, ScoredCaption
from lvspec_cli.bench.search import (
    FEWEST_CLIPS,
    FINALISTS,
    RATES,
    Score,
    candidate_rules,
    candidate_thresholds,
    fastest_sufficient,
    predicted_speedup,
    promoted,
    rungs,
    split_halves,
)
from lvspec_cli.errors import NoInputError
from lvspec_cli.figures.answers import BenchMode, Estimate, Profile
from lvspec_cli.speculation.verify import is_exact
from lvspec_cli.types import RelevanceName, RoundCosts, RuleSettings
from tests.bench.made import drafted, plain

BASE = RuleSettings(anchor_threshold=0.5, anchor_margin=0.5, filler_margin=2.0)


@given(st.lists(st.text(max_size=4), unique=True), st.integers(0, 9))
def test_halves_are_disjoint_and_depend_on_names_and_seed_alone(names: list[str], seed: int):
    first, second = split_halves(names, seed)
    assert first | second == set(names)
    assert not first & second
    assert len(first) - len(second) in (0, 1)
    assert split_halves(names[::-1], seed) == (first, second)


def test_another_seed_gives_other_halves():
    names = [f"clip_{number}.mp4" for number in range(12)]
    assert split_halves(names, 0) != split_halves(names, 1)


def test_thresholds_are_quantiles_above_zero():
    assert candidate_thresholds([number / 100 for number in range(101)]) == (0.5, 0.65, 0.8, 0.9)
    assert candidate_thresholds([0.0] * 9 + [1.0]) == (0.1,)  # the nine tenths' quantile lies between
    assert candidate_thresholds([1.23456e-10] * 9 + [1.0]) == (1.23e-10, 0.1)
    assert candidate_thresholds([]) == ()


def test_settings_cover_each_part_evenly_and_begin_with_exact_mode_and_the_pairs_own():
    found = candidate_rules(BASE, RelevanceName.ATTENTION, (4, 8), (0.3, 0.6), 24, seed=1)
    assert is_exact(found[0].rule)
    assert (found[1].rule, found[1].gamma) == (BASE, 8)
    assert len(found) == 24
    assert [each.name for each in found[:2]] == ["attention-001", "attention-002"]
    assert len({(each.rule, each.gamma) for each in found}) == 24
    for value in (lambda each: each.gamma, lambda each: each.rule.anchor_threshold):
        counts = Counter(map(value, found[2:]))
        assert len(counts) == 2 or (0.5 in counts and len(counts) == 3)
        assert min(counts[key] for key in counts if key != 0.5) >= 10
    assert all(each.rule.filler_margin >= each.rule.anchor_margin for each in found)
    again = candidate_rules(BASE, RelevanceName.ATTENTION, (4, 8), (0.3, 0.6), 24, seed=1)
    assert again == found


def test_controls_vary_only_what_they_have():
    die = candidate_rules(BASE, RelevanceName.RANDOM, (4,), (), 12, seed=0)
    assert is_exact(die[0].rule)
    assert {each.rule.random_rate for each in die[1:]} == set(RATES)
    assert {(each.rule.anchor_margin, each.rule.filler_margin) for each in die[1:]} == {(0.0, inf)}
    bare = candidate_rules(BASE, RelevanceName.PLAUSIBLE, (4,), (), 12, seed=0)
    # Where nothing is deferred, ties are like all others.
    assert {each.rule.anchor_margin for each in bare if not each.rule.defer} == {0.0}
    assert len({each.rule.anchor_margin for each in bare if each.rule.defer}) > 2
    assert len({each.rule.filler_margin for each in bare}) > 4
    words = candidate_rules(BASE, RelevanceName.LEXICON, (4,), (), 12, seed=0)
    assert {each.rule.anchor_threshold for each in words} == {0.5}
    assert len({each.rule.anchor_margin for each in words}) > 3


@pytest.mark.parametrize(
    ("settings", "clips", "planned"),
    [
        (48, 36, ((48, 4), (16, 12), (6, 36))),
        (48, 11, ((48, 11),)),
        (2, 12, ((2, 4), (2, 12))),
        (9, 1, ((9, 1),)),
    ],
)
def test_turns_have_more_clips_for_fewer_settings(settings: int, clips: int, planned):
    assert rungs(settings, clips) == planned


@given(st.integers(1, 200), st.integers(1, 300))
def test_every_turn_grows_and_the_last_has_all_clips(settings: int, clips: int):
    planned = rungs(settings, clips)
    assert planned[-1][1] == clips
    assert planned[0][0] == settings
    assert planned[0][1] >= min(clips, FEWEST_CLIPS)
    assert all(one >= two >= min(settings, FINALISTS) for (one, _), (two, _) in pairwise(planned))
    assert all(one < two for (_, one), (_, two) in pairwise(planned))


def test_predicted_speedup_is_that_of_the_model():
    # 10 tokens in 2 rounds of 4 drafted: 5 / (4 * .1 + 1 + 5 * .02 + .2) = 5 / 1.7
    costs = RoundCosts(draft=0.1, verification=1.0, row=0.02, overhead=0.2)
    assert predicted_speedup([drafted(0.0, (5, 5))], costs) == pytest.approx(5 / 1.7)
    both = [drafted(0.0, (5, 5)), drafted(0.0, (1, 1, 1))]
    assert predicted_speedup(both, costs) == pytest.approx(13 / (5 * 1.7))
    assert predicted_speedup([plain(0.0)], costs) is None


def profile(gamma: int, draft: float, verification: float, overhead: float) -> Profile:
    return Profile(
        mode=BenchMode.LVSPEC, gamma=gamma, rounds=2, draft_steps=2 * gamma,
        draft_s=2 * gamma * draft, verification_s=2 * verification, overhead_s=2 * overhead,
    )  # fmt: skip


def test_costs_of_a_round_are_medians_and_a_line():
    # 0.5 s a step of ar; a verification takes 0.4 s and 0.01 s a row.
    quiet = [profile(gamma, 0.05, 0.4 + 0.01 * (gamma + 1), 0.1) for gamma in (4, 8, 16)]
    disturbed = [profile(gamma, 0.05, 9.0, 0.1) for gamma in (4, 8, 16)]
    slower = [each.model_copy(update={"overhead_s": 2 * 0.15}) for each in quiet]
    attention, lexicon = RelevanceName.ATTENTION, RelevanceName.LEXICON
    found = fit_round_costs({attention: slower, lexicon: [*quiet, *disturbed]}, 0.5)
    assert found[attention] == RoundCosts(draft=0.1, verification=0.8, row=0.02, overhead=0.3)
    assert found[lexicon] == RoundCosts(draft=0.1, verification=0.8, row=0.02, overhead=0.2)
    flat = fit_round_costs({lexicon: [profile(4, 0.05, 0.5, 0.1)]}, 0.5)[lexicon]
    assert (flat.verification, flat.row) == (1.0, 0.0)
    with pytest.raises(NoInputError, match="long enough"):
        fit_round_costs({lexicon: []}, 0.5)


def score(name: str, speedup: float, kept: tuple[float, float, float] | None) -> Score:
    found = Estimate(low=kept[0], value=kept[1], high=kept[2]) if kept else None
    return Score(name, 4, speedup, 2 * speedup, found, quality_bound=kept[0] if kept else None)


CAREFUL = score("careful", 1.5, (1.0, 1.0, 1.0))
MIDDLE = score("middle", 2.0, (0.99, 0.999, 1.0))
BOLD = score("bold", 3.0, (0.98, 0.995, 1.0))
SLOW = score("slow", 1.2, (0.99, 0.999, 1.0))
WILD = score("wild", 9.0, (0.7, 0.8, 0.9))
BLIND = score("blind", 9.0, None)


def test_those_that_no_other_beats_go_on_fastest_first_and_the_hopeless_go():
    everything = [SLOW, WILD, BLIND, MIDDLE, BOLD]
    assert promoted(everything, 3, 0.998) == ("bold", "middle", "slow")
    assert promoted(everything, 1, 0.998) == ("bold",)
    assert promoted([*everything, CAREFUL], 9, 0.998) == ("careful", "bold", "middle", "slow")


def test_half_of_the_places_are_for_the_fastest_that_will_be_known_to_keep_enough():
    # On all clips, 36 times as many, middle's interval is a sixth as wide: 0.999 - 0.009 / 6 = 0.9975.
    everything = [SLOW, WILD, MIDDLE, BOLD, CAREFUL]
    assert promoted(everything, 4, 0.997, fraction=1 / 36)[:2] == ("middle", "careful")
    assert promoted(everything, 4, 0.998, fraction=1 / 36)[:2] == ("careful", "bold")
    # Nothing changed, of so few facts that 0.2 of them may: on all clips 0.2 / 36 = 0.0056.
    unchanged = Score("unchanged", 4, 5.0, 9.0, Estimate(value=1.0, low=1.0, high=1.0), quality_bound=0.8)
    assert promoted([BOLD, CAREFUL, unchanged], 2, 0.994, fraction=1 / 36)[0] == "unchanged"
    assert promoted([BOLD, CAREFUL, unchanged], 1, 0.995, fraction=1 / 36) == ("careful",)


def test_where_all_are_hopeless_the_best_go_on():
    assert promoted([WILD, BLIND, score("worse", 9.5, (0.1, 0.2, 0.3))], 2, 0.998) == ("worse", "wild")
    assert promoted([BLIND], 1, 0.998) == ("blind",)


def test_the_fastest_that_is_shown_to_keep_enough_is_taken():
    assert fastest_sufficient([SLOW, WILD, CAREFUL, BLIND, MIDDLE, BOLD], 0.998) == CAREFUL
    assert fastest_sufficient([SLOW, WILD, CAREFUL, BLIND, MIDDLE, BOLD], 0.99) == MIDDLE
    assert fastest_sufficient([WILD, BLIND], 0.998) is None
    no_evidence = Score("few", 1, 2.0, 4.0, Estimate(value=1.0, low=1.0, high=1.0), quality_bound=0.9)
    assert fastest_sufficient([no_evidence], 0.998) is None


def test_the_layer_is_taken_that_tells_facts_best():
    def scored(facts: tuple[bool, ...], **layers: tuple[float, ...]) -> ScoredCaption:
        scores = {Scheme(RelevanceName.LENS, int(name[1:])): values for name, values in layers.items()}
        scores[Scheme(RelevanceName.LENS, 9, head=0)] = tuple(map(float, facts))  # a head alone is no layer
        rows = tuple(SchemeScores(**asdict(scheme), scores=values) for scheme, values in scores.items())
        return ScoredCaption(places=tuple(range(len(facts))), facts=facts, schemes=rows)

    first = scored((True, False), _0=(0.9, 0.1), _3=(0.9, 0.1), _5=(0.1, 0.9))
    second = scored((True, False), _0=(0.2, 0.3), _3=(0.8, 0.2), _5=(0.1, 0.9))
    assert best_layer([first, second]) == 3
    assert best_layer([first]) == 3  # of equals the last
    assert best_layer([scored((True,), _0=(0.9,))]) is None
    assert best_layer([]) is None
