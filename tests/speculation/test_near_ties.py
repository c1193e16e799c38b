"""Which decisions rounding could turn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lvspec_cli.speculation.near_ties import first_near_tie, is_near_tie, is_steady
from lvspec_cli.speculation.verify import ROUNDING, Evidence, History, Verification, judge, read, reduce
from lvspec_cli.types import RuleSettings
from tests.speculation.test_verify import HISTORIES, RULE, RULES, WORDS, evidence, proposals

NEAR, FAR = ROUNDING / 2, 2 * ROUNDING


@pytest.mark.parametrize(
    ("best", "second", "is_near"),
    [
        (1.0, 1.0, True),
        (1.0, 1.0 - NEAR, True),
        (1.0, 1.0 - FAR, False),
        (0.1, 0.1 - NEAR, True),  # rounding is not less than that of a logit of 1
        (40.0, 40.0 - 30 * ROUNDING, True),
        (-40.0, -40.0 - 30 * ROUNDING, True),
        (40.0, 40.0 - 50 * ROUNDING, False),
        (1.0, -torch.inf, False),  # nothing else may be said
        (torch.nan, torch.nan, False),
    ],
)
def test_two_logits_are_near_by_their_size(best: float, second: float, is_near: bool) -> None:
    assert is_near_tie(best, second) is is_near


def seen(found: Evidence, *leads: float, rounding: float = ROUNDING) -> Evidence:
    """The evidence with distances of the second choices, all far by default."""
    count = len(found.target)
    return replace(found, lead=leads or (1.0,) * count, rounding=(rounding,) * count)


def test_the_first_near_tie_is_found() -> None:
    found = evidence([61, 62], [61, 62, 63])
    assert first_near_tie(seen(found, FAR, FAR, NEAR)) == 2
    assert first_near_tie(seen(found, FAR, NEAR, NEAR)) == 1
    assert first_near_tie(seen(found, FAR, FAR, FAR)) is None
    assert first_near_tie(found) is None, "nobody asked for distances"


@pytest.mark.parametrize(
    ("gap", "relevance", "steady"),
    [
        (2.0, 0.0, True),
        (2.5 - NEAR, 0.0, False),  # the widest margin
        (2.5 + NEAR, 0.0, False),
        (2.5 + FAR, 0.0, True),
        (0.5 + NEAR, 0.9, False),  # that of an anchor
        (0.5 + FAR, 0.9, True),
        (0.8, 0.5 - 1e-6, True),  # the margin is continuous, and narrow there
        (1.5, 0.25 - 1e-6, False),
        (1.5, 0.24, True),
    ],
)
def test_a_round_is_steady_where_no_margin_is_near(gap: float, relevance: float, steady: bool) -> None:
    found = seen(evidence([61, 70], [64, 70, 70], [gap, 0.0], [relevance, 0.0]))
    assert is_steady(found, RULE, WORDS, History()) is steady


def test_nothing_is_near_where_a_grammar_leaves_no_room_for_loose_tokens() -> None:
    found = seen(evidence([61, 70], [64, 70, 70], [2.5, 0.0], [0.0, 0.0]))
    assert not is_steady(found, RULE, WORDS, History())
    assert is_steady(replace(found, bound=(True, False)), RULE, WORDS, History())


def test_a_round_is_not_steady_where_the_targets_own_token_is_a_near_tie() -> None:
    found = evidence([61, 70], [61, 70, 70], [0.0, 0.0])
    assert is_steady(seen(found), RULE, WORDS, History())
    for at in range(3):
        leads = [1.0] * 3
        leads[at] = NEAR
        assert not is_steady(seen(found, *leads), RULE, WORDS, History())


@given(proposals(), RULES, HISTORIES, st.data(), st.sampled_from([1e-6, 0.05]))
@example(evidence([61], [64, 1], [2.5]), RULE, History(), None, 0.05)
def test_what_is_steady_stays_whatever_rounding_does(
    found: Evidence, rule: RuleSettings, history: History, data: st.DataObject | None, rounding: float
) -> None:
    found = seen(found, rounding=rounding)
    if data is None:
        assert not is_steady(found, rule, WORDS, history)
        return
    if not is_steady(found, rule, WORDS, history):
        return
    verdict = judge(found, rule, WORDS, history)
    moved = replace(
        found,
        gap=tuple(gap + data.draw(st.floats(-rounding, rounding)) for gap in found.gap),
        relevance=tuple(max(0.0, score + data.draw(st.floats(-2e-5, 2e-5))) for score in found.relevance),
    )
    other = judge(moved, rule, WORDS, history)
    assert (verdict.tokens, verdict.kinds) == (other.tokens, other.kinds)


def test_distances_come_with_what_is_reduced() -> None:
    logits = torch.tensor([[1.0, 4.0, 3.5], [-8.0, -8.0, -9.0]])
    one = Verification(logits, torch.tensor([2]), torch.tensor([0.25]))
    found = read(reduce([one], is_rounded=True).tolist(), is_scored=True, is_rounded=True)
    assert found.lead == (0.5, 0.0)
    assert found.rounding == (4.0 * ROUNDING, 8.0 * ROUNDING)
    assert found.relevance == (0.25,)
    plain = read(reduce([one]).tolist(), is_scored=True)
    assert replace(found, lead=(), rounding=()) == plain
