"""Relevance that reads no states of the model; what does is in tests/conformance."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lvspec_cli.errors import UsageError
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.speculation.relevance import layers_of, shares_below
from lvspec_cli.types import DecodeSettings, PairPrompts, RelevanceName, Round, RuleSettings
from tests.speculation.conftest import decode, prompts_for

GAMMA = 5
CLOSED = RuleSettings(anchor_threshold=0.0, anchor_margin=1e-9, filler_margin=0.0, shift_window=0)


def rounds_of(pair: LoadedPair, prompts: PairPrompts, rule: RuleSettings) -> list[Round]:
    return decode(pair, prompts, DecodeSettings(gamma=GAMMA, max_new_tokens=40, rule=rule))[1]


def test_lexicon_knows_function_words(pair: LoadedPair) -> None:
    prompts = prompts_for(pair)
    rounds = rounds_of(pair, prompts, replace(CLOSED, relevance=RelevanceName.LEXICON))
    for done in rounds[1:]:
        assert done.relevance == tuple(float(token not in pair.words.function) for token in done.drafted)


def test_rank_is_the_rarer_of_the_two_tokens(pair: LoadedPair) -> None:
    rounds = rounds_of(pair, prompts_for(pair), replace(CLOSED, relevance=RelevanceName.RANK))
    for done in rounds[1:]:
        greater = map(max, done.drafted, done.target)
        expected = [math.log(1 + token) / math.log(pair.target.vocabulary) for token in greater]
        assert done.relevance == pytest.approx(expected)


def test_rank_and_attention_weigh_the_same(pair: LoadedPair) -> None:
    rules = [
        replace(CLOSED, relevance=name, attention_scale=0.02)
        for name in (RelevanceName.RANK, RelevanceName.ATTENTION, RelevanceName.RANK_ATTENTION)
    ]
    for ranked, attending, both in zip(
        *(rounds_of(pair, prompts_for(pair), rule) for rule in rules), strict=True
    ):
        expected = [
            (rank + min(share / 0.02, 1)) / 2
            for rank, share in zip(ranked.relevance, attending.relevance, strict=True)
        ]
        assert both.relevance == pytest.approx(expected, abs=1e-5)


def test_shares_below() -> None:
    assert shares_below(torch.tensor([0.3, 0.9, 0.1, 0.3])).tolist() == [0.25, 0.75, 0.0, 0.25]


@pytest.mark.parametrize(("rate", "expected"), [(0.0, {1.0}), (1.0, {0.0}), (0.5, {0.0, 1.0})])
def test_random_throws_its_die_by_seed(pair: LoadedPair, rate: float, expected: set[float]) -> None:
    rule = RuleSettings(relevance=RelevanceName.RANDOM, random_rate=rate)
    prompts = prompts_for(pair)
    first, again = (rounds_of(pair, prompts, rule) for _ in range(2))
    assert first == again
    assert {score for done in first for score in done.relevance} == expected


@pytest.mark.parametrize("name", [RelevanceName.PLAUSIBLE, RelevanceName.NONE])
def test_nothing_is_scored_that_is_not_read(pair: LoadedPair, name: RelevanceName) -> None:
    rounds = rounds_of(pair, prompts_for(pair), RuleSettings(relevance=name))
    assert {done.relevance for done in rounds} == {()}


def test_layers_are_counted_from_either_end() -> None:
    assert layers_of(RuleSettings(layers=(-1, 2, 0)), 3) == (0, 2)
    for layers in ((3,), (-4,), ()):
        with pytest.raises(UsageError):
            layers_of(RuleSettings(layers=layers), 3)
