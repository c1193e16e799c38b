"""The rule: literal cases, and the laws that hold for any proposal."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lvspec_cli.models.words import TokenSets
from lvspec_cli.speculation.repetition import starts_loop
from lvspec_cli.speculation.verify import (
    Evidence,
    History,
    Verification,
    effective,
    is_exact,
    judge,
    margin,
    may_vary,
    read,
    reduce,
)
from lvspec_cli.types import RelevanceName, RuleSettings, TokenKind

EXACT, FILLER, SHIFT, TARGET = TokenKind.EXACT, TokenKind.FILLER, TokenKind.SHIFT, TokenKind.TARGET
END, TWO, NOT, THE, VERY = 0, 1, 2, 3, 4
LEFT, RIGHT, LEFTWARD, RED = 61, 62, 63, 64
STOP = 71
MEANINGS = {LEFT: (0, 0), LEFTWARD: (0, 0), RIGHT: (0, 1), RED: (1, 0)}
WORDS = TokenSets(
    ends=frozenset({END}),
    protected=frozenset({TWO, NOT}),
    function=frozenset({THE, VERY}),
    meanings={token: frozenset({meaning}) for token, meaning in MEANINGS.items()},
    stops=frozenset({STOP}),
)
RULE = RuleSettings(
    anchor_threshold=0.5,
    anchor_margin=0.5,
    filler_margin=2.5,
    shift_window=0,
    max_loose_run=9,
    max_loose_in_window=9,
    loose_window=12,
    contraries=True,
)
SHIFTING = replace(RULE, anchor_margin=0.0, filler_margin=0.0, shift_window=2)


def evidence(
    drafted: list[int],
    target: list[int],
    gap: list[float] | None = None,
    relevance: list[float] | None = None,
) -> Evidence:
    count = len(drafted)
    return Evidence(
        tuple(drafted), tuple(target), tuple(gap or [9.0] * count), tuple(relevance or [0.0] * count)
    )


def kinds(found: Evidence, rule: RuleSettings = RULE, history: History = History()) -> list[TokenKind]:  # noqa: B008
    return list(judge(found, rule, WORDS, history).kinds)


@pytest.mark.parametrize(
    ("token", "own", "accepted"),
    [(LEFT, RIGHT, False), (RIGHT, LEFT, False), (LEFT, LEFTWARD, True), (LEFT, RED, True), (LEFT, 5, True)],
)
def test_a_contrary_never_passes_but_a_synonym_does(token: int, own: int, accepted: bool) -> None:
    rule = replace(RULE, filler_margin=math.inf)
    found = evidence([token], [own, 7], gap=[0.1])
    assert kinds(found, rule)[:1] == ([FILLER] if accepted else [TARGET])
    assert kinds(found, replace(rule, never_loosely=False))[:1] == [FILLER]
    # Nor by a shift: left, right is not right, left.
    swapped = evidence([LEFT, RIGHT], [RIGHT, RIGHT, 7])
    assert kinds(swapped, SHIFTING)[0] is TARGET
    assert kinds(swapped, replace(SHIFTING, never_loosely=False))[0] is SHIFT


@pytest.mark.parametrize(
    ("sentence_margin", "accepted"), [(0.0, False), (0.9, False), (1.1, True), (math.inf, True)]
)
def test_what_begins_a_sentence_has_a_margin_of_its_own(sentence_margin: float, accepted: bool) -> None:
    rule = replace(RULE, sentence_margin=sentence_margin)
    behind = evidence([5, STOP, 6, 7], [5, STOP, 16, 17, 8], gap=[0.0, 0.0, 1.0, 1.0])
    # Only the first token: the one behind it is as loose as any.
    expected = [FILLER, FILLER, TARGET] if accepted else [TARGET]
    assert kinds(behind, rule) == [EXACT, EXACT, *expected]
    # A full stop of the round before counts, too, and one that is not the last token does not.
    first = evidence([6], [16, 8], gap=[1.0])
    assert kinds(first, rule, History(tokens=(5, STOP)))[:1] == expected[:1]
    assert kinds(first, rule, History(tokens=(STOP, 5)))[:1] == [FILLER]
    # Nor may a shift begin it otherwise.
    shifting = replace(SHIFTING, sentence_margin=sentence_margin)
    late = evidence([THE, 50], [50, 50, 60], gap=[1.0, 0.0])
    assert kinds(late, shifting, History(tokens=(STOP,)))[0] is (SHIFT if accepted else TARGET)


def test_a_sentences_margin_makes_no_other_wider() -> None:
    rule = replace(RULE, filler_margin=0.5, sentence_margin=math.inf)
    assert kinds(evidence([6], [16, 8], gap=[1.0]), rule, History(tokens=(STOP,))) == [TARGET]


# --- cases -----------------------------------------------------------------------------------


def test_full_acceptance_adds_the_targets_bonus() -> None:
    verdict = judge(evidence([5, 6], [5, 6, 7]), RULE, WORDS, History())
    assert (verdict.accepted, verdict.tokens) == (2, (5, 6, 7))
    assert verdict.kinds == (EXACT, EXACT, TARGET)


def test_first_mismatch_is_corrected() -> None:
    verdict = judge(evidence([5, 6, 7], [5, 8, 7, 9]), RULE, WORDS, History())
    assert (verdict.accepted, verdict.tokens, verdict.kinds) == (1, (5, 8), (EXACT, TARGET))


def test_no_proposal_is_a_plain_step() -> None:
    assert judge(Evidence((), (7,), (), ()), RULE, WORDS, History()).tokens == (7,)


@pytest.mark.parametrize(
    ("gap", "relevance", "accepted"),
    [
        (2.4, 0.0, True),  # a filler within its margin
        (2.6, 0.0, False),
        (1.4, 0.25, True),  # half way to the threshold: 1.5
        (1.6, 0.25, False),
        (0.5, 0.9, True),  # a tie at an anchor
        (0.6, 0.9, False),
        (0.4, math.nan, True),
        (0.6, math.nan, False),
    ],
)
def test_margin_shrinks_as_relevance_grows(gap: float, relevance: float, accepted: bool) -> None:
    found = kinds(evidence([5, 6], [9, 6, 7], [gap, 0.0], [relevance, 0.0]))
    assert found == ([FILLER, EXACT, TARGET] if accepted else [TARGET])


def test_an_infinite_margin_is_a_step() -> None:
    rule = replace(RULE, filler_margin=math.inf)
    assert margin(0.49, rule) == math.inf
    assert margin(0.5, rule) == 0.5
    assert kinds(evidence([5], [9, 7], [80.0], [0.4]), rule) == [FILLER, TARGET]


def test_a_draw_at_zero_margin_is_refused() -> None:
    rule = replace(RULE, anchor_margin=0.0, filler_margin=0.0)
    assert kinds(evidence([5], [9, 7], [0.0]), rule) == [TARGET]


@pytest.mark.parametrize("special", [END, TWO, NOT])
def test_ends_numerals_negations_only_exact(special: int) -> None:
    loose = replace(RULE, filler_margin=math.inf, shift_window=2)
    assert kinds(evidence([special, 6], [9, special, 6]), loose) == [TARGET]
    assert kinds(evidence([9, special], [special, special, 6]), loose) == [TARGET]
    assert kinds(evidence([special], [special, 6]), loose)[0] == EXACT


def test_without_the_list_they_are_tokens_like_any_other() -> None:
    loose = replace(RULE, filler_margin=math.inf, never_loosely=False)
    assert kinds(evidence([TWO, NOT], [9, 9, 7]), loose) == [FILLER, FILLER, TARGET]
    assert kinds(evidence([5, END, 6], [9, 9, 9, 7]), loose) == [FILLER, FILLER]  # an accepted end ends it
    assert kinds(evidence([8], [9, 7]), loose, History(tokens=(8,))) == [FILLER, TARGET]
    shifting = replace(SHIFTING, never_loosely=False)
    assert kinds(evidence([TWO, 50], [50, 50, 60]), shifting) == [SHIFT, EXACT, TARGET]


def test_an_accepted_end_ends_the_round() -> None:
    verdict = judge(evidence([5, END, 6], [5, END, 6, 7]), RULE, WORDS, History())
    assert (verdict.tokens, verdict.kinds) == ((5, END), (EXACT, EXACT))


def test_no_more_loose_tokens_in_a_row_or_window_than_allowed() -> None:
    free = replace(RULE, filler_margin=math.inf)
    proposal = evidence([10, 11, 12, 13], [20, 21, 22, 23, 24])
    assert kinds(proposal, replace(free, max_loose_run=2)) == [FILLER, FILLER, TARGET]
    mixed = evidence([10, 21, 12, 23, 14], [20, 21, 22, 23, 24, 25])
    assert kinds(mixed, replace(free, max_loose_run=1, max_loose_in_window=2)) == [
        FILLER,
        EXACT,
        FILLER,
        EXACT,
        TARGET,
    ]
    before = History(loose=(True, True, False))
    assert kinds(mixed, replace(free, max_loose_in_window=2), before) == [TARGET]
    assert kinds(mixed, replace(free, max_loose_in_window=2, loose_window=3), before)[0] == FILLER
    assert kinds(mixed, replace(free, max_loose_run=0)) == [TARGET]


def test_history_carries_the_run_over_rounds() -> None:
    free = replace(RULE, filler_margin=math.inf, max_loose_run=2)
    history = History().extended((10, 11), (EXACT, FILLER), (0.0, 1.0), RuleSettings())
    assert kinds(evidence([12, 13], [22, 23, 24]), free, history) == [FILLER, TARGET]
    history = history.extended((12, 22), (FILLER, TARGET), (0.5, 0.0), RuleSettings())
    assert kinds(evidence([12, 13], [22, 23, 24]), free, history)[:2] == [FILLER, FILLER]


def test_a_loose_token_may_not_start_a_loop() -> None:
    free = replace(RULE, filler_margin=math.inf)
    assert kinds(evidence([8], [9, 7]), free, History(tokens=(8,))) == [TARGET]
    assert kinds(evidence([5, 6], [5, 9, 7]), free, History(tokens=(5, 6))) == [EXACT, TARGET]
    assert kinds(evidence([8], [8, 7]), free, History(tokens=(8,))) == [EXACT, TARGET]


# --- deferred window and budget ---------------------------------------------------------------

DEFERRED = replace(RULE, defer=2)


@pytest.mark.parametrize(
    ("drafted", "target", "sure", "accepted"),
    [
        ([10, 11, 12], [20, 11, 12, 13], True, 3),  # the next two match
        ([10, 11, 12], [20, 11, 22, 13], True, 0),  # one of them does not
        ([10, 11], [20, 11, 12], True, 0),  # the second is not in the proposal
        ([10, 11], [20, 11, 12], False, 2),  # which then does not count against it
        ([10, 11], [20, 21, 12], False, 0),
        ([10], [20, 21], False, 1),
        ([10, END], [20, END, 12], True, 2),  # nothing follows the end of an answer
        ([5, 10, 11, 12, 13], [5, 20, 11, 12, 23, 14], True, 4),
        ([10, 30, 11, 12], [20, 31, 11, 12, 13], True, 0),  # two loose ones beside each other
    ],
)
def test_a_loose_token_waits_for_what_follows(
    drafted: list[int], target: list[int], sure: bool, accepted: int
) -> None:
    found = evidence(drafted, target, gap=[1.0] * len(drafted))
    assert judge(found, replace(DEFERRED, defer_sure=sure), WORDS, History()).accepted == accepted


def test_a_shift_waits_for_nothing() -> None:
    swapped = evidence([THE, 8, 5], [8, 8, 9, 7])
    assert kinds(swapped, replace(SHIFTING, defer=2)) == [SHIFT, EXACT, TARGET]


@pytest.mark.parametrize(
    ("count", "loss", "gap", "accepted"),
    [
        (0, 0.0, 1.6, True),  # the reserve: 32 tokens of .05 nats
        (0, 0.0, 1.7, False),
        (20, 0.0, 2.5, True),
        (20, 2.0, 0.5, True),
        (20, 2.0, 0.7, False),
        (20, 3.0, 0.0, False),  # overdrawn by a larger budget before: not even a tie
    ],
)
def test_a_gap_is_at_most_what_the_budget_leaves(count: int, loss: float, gap: float, accepted: bool) -> None:
    found = evidence([10], [20, 21], gap=[gap])
    history = History(count=count, loss=loss)
    assert (kinds(found, replace(RULE, max_loss=0.05), history)[0] is FILLER) is accepted


def test_history_carries_the_loss_over_rounds() -> None:
    rule = replace(RULE, max_loss=0.05)
    history = History().extended((9,), (TARGET,), (0.0,), rule)
    verdict = judge(evidence([10, 11, 12], [20, 11, 22, 23], gap=[1.0, 0.0, 0.7]), rule, WORDS, history)
    assert verdict.kinds == (FILLER, EXACT, FILLER, TARGET)
    assert verdict.losses == (1.0, 0.0, 0.7, 0.0)
    after = history.extended(verdict.tokens, verdict.kinds, verdict.losses, rule)
    assert after.count == 5
    assert after.loss == pytest.approx(1.7)
    # .05 nats for each of 37 tokens are 1.85.
    assert kinds(evidence([13], [24, 25], gap=[0.14]), rule, after)[0] is FILLER
    assert kinds(evidence([13], [24, 25], gap=[0.16]), rule, after) == [TARGET]


# --- shift -----------------------------------------------------------------------------------


def test_late_a_filler_before_the_targets_word() -> None:
    # The target says red ..., the draft says very red
    found = evidence([VERY, 50], [50, 50, 60], relevance=[0.9, 0.9])
    assert kinds(found, SHIFTING) == [SHIFT, EXACT, TARGET]


def test_late_refuses_a_new_fact_before_an_anchor() -> None:
    # The target says red ..., the draft says large red
    found = evidence([40, 50], [50, 50, 60], relevance=[0.9, 0.9])
    assert kinds(found, SHIFTING) == [TARGET]


def test_late_swap_of_fillers() -> None:
    # The target says slowly now, the draft says now slowly
    found = evidence([30, 31], [31, 31, 60], relevance=[0.1, 0.1])
    assert kinds(found, SHIFTING) == [SHIFT, EXACT, TARGET]


def test_late_needs_the_targets_word_to_come_and_hold() -> None:
    assert kinds(evidence([VERY, 51], [50, 50, 60]), SHIFTING) == [TARGET]
    assert kinds(evidence([VERY, 50], [50, 52, 60]), SHIFTING) == [TARGET]
    far = evidence([VERY, 30, 31, 50], [50, 30, 31, 50, 60])
    assert kinds(far, SHIFTING) == [TARGET]
    assert kinds(far, replace(SHIFTING, shift_window=3))[0] == SHIFT


def test_a_sentence_ends_where_the_target_ends_it() -> None:
    # The target says red., the draft says red very. or red, and the target goes on where the draft stops
    for found in (
        evidence([VERY, STOP], [STOP, STOP, 60], relevance=[0.1, 0.1]),
        evidence([STOP, 31], [THE, STOP, 60], relevance=[0.1, 0.1]),
        evidence([STOP, 50], [50, 50, 60], relevance=[0.1, 0.1]),
    ):
        assert kinds(found, SHIFTING) == [TARGET]
        assert kinds(found, replace(SHIFTING, never_loosely=False))[0] is SHIFT
    # Nor is a stop put between.
    assert kinds(evidence([VERY, STOP, 50], [50, 50, 50, 60]), SHIFTING) == [TARGET]


def test_contraries_pass_where_the_rule_does_without_them() -> None:
    free = replace(RULE, contraries=False)
    assert kinds(evidence([LEFT], [RIGHT, 5], gap=[0.5]), free) == [FILLER, TARGET]
    assert kinds(evidence([TWO], [RIGHT, 5], gap=[0.5]), free) == [TARGET]


def test_without_contraries_and_relevance_only_function_words_are_fillers() -> None:
    def shifted(word: int, rule: RuleSettings) -> bool:
        found = replace(evidence([word, 8, 5], [8, 8, 9, 7]), relevance=())
        return kinds(found, rule)[0] is SHIFT

    free = replace(SHIFTING, contraries=False)
    assert (shifted(VERY, free), shifted(30, free)) == (True, False)
    assert (shifted(VERY, SHIFTING), shifted(30, SHIFTING)) == (True, True)


def test_without_relevance_a_word_with_a_contrary_is_no_filler() -> None:
    # The target says 50, the draft says red 50: where no relevance is read, the list alone tells
    unread = replace(evidence([RED, 50], [50, 50, 60]), relevance=())
    assert kinds(unread, SHIFTING) == [TARGET]
    assert kinds(unread, replace(SHIFTING, never_loosely=False))[0] is SHIFT
    assert kinds(evidence([RED, 50], [50, 50, 60], relevance=[0.1, 0.1]), SHIFTING)[0] is SHIFT
    other = replace(evidence([31, 50], [50, 50, 60]), relevance=())
    assert kinds(other, SHIFTING)[0] is SHIFT


def test_swapped_facts_are_no_shift() -> None:
    # The target says red and blue, the draft says blue and red
    found = evidence([51, THE, 50], [50, THE, 50, 60], relevance=[0.9, 0.0, 0.9])
    assert kinds(found, SHIFTING) == [TARGET]


def test_early_a_filler_is_left_out() -> None:
    found = evidence([30, 31], [THE, 30, 60], relevance=[0.1, 0.1])
    assert kinds(found, SHIFTING)[0] == SHIFT
    doubled = evidence([30, 30], [THE, 30, 60], relevance=[0.1, 0.1])
    assert kinds(doubled, SHIFTING) == [TARGET]
    at_an_anchor = evidence([30, 31], [THE, 30, 60], relevance=[0.9, 0.1])
    assert kinds(at_an_anchor, SHIFTING) == [TARGET]


def test_numbers_are_never_shifted_over() -> None:
    assert kinds(evidence([VERY, TWO], [TWO, TWO, 60]), SHIFTING) == [TARGET]
    assert kinds(evidence([VERY, TWO, 50], [50, TWO, 50, 60]), SHIFTING) == [TARGET]


# --- laws ------------------------------------------------------------------------------------

TOKENS = st.one_of(st.integers(3, 40), st.integers(3, 40), st.integers(0, 40))
CHANCE = st.floats(0, 1)
MARGINS = st.one_of(st.just(0.0), st.floats(0, 4), st.just(math.inf))
RULES = st.builds(
    RuleSettings,
    relevance=st.sampled_from(RelevanceName),
    anchor_threshold=CHANCE,
    anchor_margin=st.one_of(st.just(0.0), st.floats(0, 2)),
    filler_margin=MARGINS,
    shift_window=st.integers(0, 3),
    max_loose_run=st.integers(1, 4),
    max_loose_in_window=st.integers(1, 6),
    loose_window=st.integers(1, 8),
    defer=st.integers(0, 3),
    defer_sure=st.booleans(),
    max_loss=st.one_of(st.just(math.inf), st.floats(0, 0.2)),
    contraries=st.booleans(),
)
HISTORIES = st.builds(
    lambda past, more, loss: History(
        tuple(token for token, _ in past), tuple(loose for _, loose in past), len(past) + more, loss
    ),
    st.lists(st.tuples(TOKENS, st.booleans()), max_size=10),
    st.integers(0, 200),
    st.one_of(st.just(0.0), st.floats(0, 20)),
)


@st.composite
def proposals(draw: st.DrawFn, gamma: int | None = None) -> Evidence:
    gamma = draw(st.integers(0, 8)) if gamma is None else gamma
    drafted = draw(st.lists(TOKENS, min_size=gamma, max_size=gamma))
    # Agreements, words of the proposal's own out of order, and others: long prefixes and shifts occur.
    words = st.sampled_from(drafted) if drafted else TOKENS
    target = [draw(st.one_of(st.just(token), words, TOKENS)) for token in drafted] + [draw(TOKENS)]
    gap = [0.0 if ours == own else draw(st.floats(0, 3)) for ours, own in zip(drafted, target, strict=False)]
    relevance = draw(st.lists(CHANCE, min_size=gamma, max_size=gamma))
    return Evidence(tuple(drafted), tuple(target), tuple(gap), tuple(relevance))


@given(proposals(), RULES, HISTORIES)
def test_accepted_is_a_prefix_then_the_targets_own(
    found: Evidence, rule: RuleSettings, history: History
) -> None:
    verdict = judge(found, rule, WORDS, history)
    accepted = found.drafted[: verdict.accepted]
    assert verdict.tokens[: verdict.accepted] == accepted
    if accepted and accepted[-1] in WORDS.ends:
        assert verdict.tokens == accepted
    else:
        assert verdict.tokens == (*accepted, found.target[verdict.accepted])
        assert verdict.kinds[-1] is TARGET
    for ours, own, kind in zip(accepted, found.target, verdict.kinds, strict=False):
        assert (kind is EXACT) == (ours == own)


@given(proposals(), RULES, HISTORIES, st.data())
def test_more_relevance_never_accepts_more(
    found: Evidence, rule: RuleSettings, history: History, data: st.DataObject
) -> None:
    raised = tuple(data.draw(st.floats(score, 1)) for score in found.relevance)
    before = judge(found, rule, WORDS, history)
    after = judge(replace(found, relevance=raised), rule, WORDS, history)
    assert after.accepted <= before.accepted


@given(proposals(), RULES, HISTORIES)
def test_no_margins_and_no_shift_is_exact(found: Evidence, rule: RuleSettings, history: History) -> None:
    strict = replace(rule, anchor_margin=0.0, filler_margin=0.0, shift_window=0)
    none = replace(rule, relevance=RelevanceName.NONE)
    agreed = next(
        (at for at, token in enumerate(found.drafted) if token != found.target[at]), len(found.drafted)
    )
    end = next((at + 1 for at, token in enumerate(found.drafted[:agreed]) if token in WORDS.ends), agreed)
    for exact in (strict, none):
        assert is_exact(exact)
        assert judge(found, exact, WORDS, history).accepted == end


@given(proposals(8), proposals(8), st.integers(0, 8), RULES, HISTORIES)
def test_a_verdict_reads_no_further_than_the_window(
    first: Evidence, second: Evidence, place: int, rule: RuleSettings, history: History
) -> None:
    """Verdicts up to ``place`` are the same whatever stands behind ``place + window``."""
    cut = place + max(effective(rule).shift_window, effective(rule).defer) + 1

    def joined(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*ours[:cut], *theirs[cut:])

    other = Evidence(
        joined(first.drafted, second.drafted),
        joined(first.target, second.target),
        joined(first.gap, second.gap),
        joined(first.relevance, second.relevance),
    )
    one, two = judge(first, rule, WORDS, history), judge(other, rule, WORDS, history)
    assert min(one.accepted, place + 1) == min(two.accepted, place + 1)
    kept = min(one.accepted, place + 1)
    assert one.kinds[:kept] == two.kinds[:kept]


@given(proposals(), RULES, HISTORIES, st.integers(0, 4))
def test_a_longer_window_never_accepts_more(
    found: Evidence, rule: RuleSettings, history: History, more: int
) -> None:
    longer = replace(rule, defer=rule.defer + more)
    assert judge(found, longer, WORDS, history).accepted <= judge(found, rule, WORDS, history).accepted
    sure = judge(found, replace(longer, defer_sure=True), WORDS, history)
    assert sure.accepted <= judge(found, longer, WORDS, history).accepted


@given(proposals(), RULES, HISTORIES)
def test_the_last_places_of_a_proposal_take_nothing_loosely(
    found: Evidence, rule: RuleSettings, history: History
) -> None:
    rule = replace(
        rule, relevance=RelevanceName.PLAUSIBLE, defer_sure=True, shift_window=0, anchor_margin=0.0
    )
    verdict = judge(found, rule, WORDS, history)
    behind = len(found.drafted) - rule.defer
    ended = verdict.kinds[-1] is not TARGET
    assert ended or all(kind is not FILLER for kind in verdict.kinds[max(0, behind) :])
    for at, kind in enumerate(verdict.kinds):
        if kind is FILLER and not ended:
            assert all(after is EXACT for after in verdict.kinds[at + 1 : at + 1 + rule.defer])


@pytest.mark.parametrize(
    ("gap", "expected"), [(0.0, [FILLER, TARGET]), (0.5, [FILLER, TARGET]), (0.6, [TARGET])]
)
def test_a_tie_needs_no_window(gap: float, expected: list[TokenKind]) -> None:
    """Within the margin of anchors a token stays whatever follows it."""
    found = evidence([30], [31, 60], gap=[gap], relevance=[0.1])
    assert kinds(found, replace(RULE, defer=2)) == expected
    assert kinds(found, RULE) == [FILLER, TARGET]


@given(st.floats(0, 3), st.floats(0, 3), HISTORIES, TOKENS, TOKENS)
def test_the_control_says_near_ties_alone(
    gap: float, most: float, history: History, own: int, second: int
) -> None:
    allowed = may_vary(own, second, gap, most, WORDS, history)
    assert not allowed or (gap <= most and not {own, second} & WORDS.ends)
    assert not may_vary(own, second, math.nan, most, WORDS, history)
    if allowed:
        assert not WORDS.begins_sentence(history.tokens)
        assert not starts_loop(history.tokens, second)
    elif gap <= most and not {own, second} & WORDS.ends:
        assert WORDS.begins_sentence(history.tokens) or starts_loop(history.tokens, second)


@given(proposals(), RULES, HISTORIES, st.floats(0, 0.2))
def test_a_smaller_budget_never_accepts_more_and_is_kept(
    found: Evidence, rule: RuleSettings, history: History, less: float
) -> None:
    rule = replace(rule, relevance=RelevanceName.PLAUSIBLE)
    bounded = replace(rule, max_loss=min(less, rule.max_loss))
    verdict = judge(found, bounded, WORDS, history)
    assert verdict.accepted <= judge(found, rule, WORDS, history).accepted
    pairs = zip((*found.gap, 0.0), verdict.kinds, strict=False)
    losses = [gap if kind in (FILLER, SHIFT) else 0.0 for gap, kind in pairs]
    assert list(verdict.losses) == losses
    for count in range(1, len(losses) + 1):
        if losses[count - 1]:
            loss = history.loss + sum(losses[:count])
            assert loss <= bounded.max_loss * (history.count + count - 1 + 32) + 1e-9


@given(proposals(), RULES, HISTORIES)
def test_ends_and_fixed_tokens_are_never_loose(found: Evidence, rule: RuleSettings, history: History) -> None:
    verdict = judge(found, rule, WORDS, history)
    for ours, own, kind in zip(found.drafted, found.target, verdict.kinds, strict=False):
        if kind in (FILLER, SHIFT):
            assert not {ours, own} & (WORDS.ends | WORDS.protected)


@given(proposals(), RULES, HISTORIES)
@example(  # a run longer than the window
    Evidence((3, 4, 5, 3), (4, 5, 3, 4, 3), (0.0,) * 4, (0.0,) * 4),
    RuleSettings(shift_window=0, max_loose_run=2, max_loose_in_window=1, loose_window=1),
    History(),
)
def test_loose_tokens_stay_within_their_limits(found: Evidence, rule: RuleSettings, history: History) -> None:
    verdict = judge(found, rule, WORDS, history)
    loose = [kind in (FILLER, SHIFT) for kind in verdict.kinds]
    flags = [*history.loose, *loose]
    for at in range(len(history.loose), len(flags)):
        if flags[at]:
            assert sum(flags[max(0, at + 1 - rule.loose_window) : at + 1]) <= rule.max_loose_in_window
            run = next((back for back in range(at + 1) if not flags[at - back]), at + 1)
            assert run <= rule.max_loose_run


@given(proposals(), RULES, HISTORIES)
def test_nothing_is_shifted_among_anchors(found: Evidence, rule: RuleSettings, history: History) -> None:
    """Where all is an anchor and no word is a function word, the order stands."""
    anchors = replace(found, relevance=(1.0,) * len(found.drafted))
    bare = replace(WORDS, function=frozenset())
    assert SHIFT not in judge(anchors, rule, bare, history).kinds


@given(CHANCE, CHANCE, RULES)
def test_margin_never_rises(one: float, two: float, rule: RuleSettings) -> None:
    low, high = sorted((one, two))
    assert margin(high, rule) <= margin(low, rule)


# --- reduction -------------------------------------------------------------------------------


@given(st.integers(0, 6), st.integers(2, 40), st.integers(0, 1000), st.booleans())
def test_logits_are_reduced_as_by_a_loop(gamma: int, vocabulary: int, seed: int, scored: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(gamma + 1, vocabulary, generator=generator)
    drafted = torch.randint(0, vocabulary, (gamma,), generator=generator)
    scores = torch.rand(gamma, generator=generator)
    alone = Verification(logits, drafted, scores if scored else None)
    found = read(reduce([alone]).tolist(), is_scored=scored)
    chances = logits.log_softmax(-1)
    assert found.target == tuple(int(row.argmax()) for row in logits)
    assert found.drafted == tuple(int(token) for token in drafted)
    for at, token in enumerate(found.drafted):
        assert found.gap[at] == pytest.approx(float(chances[at].max() - chances[at, token]), abs=1e-5)
    assert found.relevance == (pytest.approx(scores.tolist()) if scored and gamma else ())


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=4), st.integers(0, 1000))
def test_several_are_reduced_as_each_alone(shapes: list[tuple[int, bool]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    several = [
        Verification(
            torch.randn(gamma + 1, 9, generator=generator),
            torch.randint(0, 9, (gamma,), generator=generator),
            torch.rand(gamma, generator=generator) if scored else None,
        )
        for gamma, scored in shapes
    ]
    table = reduce(several)
    assert table.dtype == torch.float32, "devices of Macs have no wider type"
    for one, rows in zip(several, table.split([one.positions for one in several]), strict=True):
        scored = one.relevance is not None
        assert read(rows.tolist(), is_scored=scored) == read(reduce([one]).tolist(), is_scored=scored)


def test_ids_of_large_vocabularies_stay_what_they_are() -> None:
    logits = torch.zeros(1, 300_001)
    logits[0, 299_999] = 1.0
    assert read(
        reduce([Verification(logits, torch.tensor([], dtype=torch.long))]).tolist(), is_scored=False
    ) == Evidence(drafted=(), target=(299_999,), gap=(), relevance=(), sound=(True,))
