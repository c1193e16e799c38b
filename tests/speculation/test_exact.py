"""What is exact mode by another name, and what a generation_config adds; by family: tests/conformance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lvspec_cli.models.load import LoadedPair
from lvspec_cli.types import DecodeSettings, Mode, RelevanceName, RuleSettings
from tests.speculation.conftest import decode, generate, prompts_for, with_generation

STRICT = RuleSettings(anchor_margin=0.0, filler_margin=0.0, shift_window=0)


@pytest.mark.sampled
@pytest.mark.parametrize(
    "rule",
    [
        STRICT,
        *(replace(STRICT, relevance=name) for name in RelevanceName),
        RuleSettings(relevance=RelevanceName.NONE),
    ],
    ids=str,
)
def test_strict_rules_are_exact_mode(pair: LoadedPair, rule: RuleSettings) -> None:
    prompts = prompts_for(pair)
    wanted = DecodeSettings(mode=Mode.EXACT, gamma=5, max_new_tokens=30)
    exact, exact_rounds = decode(pair, prompts, wanted)
    loose, loose_rounds = decode(pair, prompts, replace(wanted, mode=Mode.LVSPEC, rule=rule))
    assert (loose.tokens, loose.kinds) == (exact.tokens, exact.kinds)
    assert [done.drafted for done in loose_rounds] == [done.drafted for done in exact_rounds]


@pytest.mark.parametrize(
    "values",
    [
        {"suppressed": (90, 369, 72)},
        {"suppressed_first": (90, 323)},
        {"min_new_tokens": 4},
        {"min_new_tokens": 9},
    ],
    ids=lambda values: next(iter(values)),
)
def test_other_settings_of_generation_config(pair: LoadedPair, values: dict[str, Any]) -> None:
    names = {"suppressed": "suppress_tokens", "suppressed_first": "begin_suppress_tokens"}
    prompts = prompts_for(pair)
    free = generate(pair, prompts.target, max_new_tokens=24)
    if "min_new_tokens" in values:
        pair = with_generation(pair, end_ids=(free[3], free[6], free[15]))
    else:
        values = dict.fromkeys(values, (free[0], free[5]))
    given_names = {names.get(name, name): value for name, value in values.items()}
    expected = generate(pair, prompts.target, max_new_tokens=24, **given_names)
    assert expected != free
    changed = with_generation(pair, **values)
    found, _ = decode(changed, prompts, DecodeSettings(mode=Mode.EXACT, gamma=4, max_new_tokens=24))
    assert list(found.tokens) == expected


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_the_penalty_counts_what_a_round_has_drafted(pair: LoadedPair, penalty: float) -> None:
    """Few words are left to say, so that drafted tokens come again within their round."""
    prompts = prompts_for(pair)
    allowed = set(generate(pair, prompts.target, max_new_tokens=8)) - set(pair.target.generation.end_ids)
    others = tuple(index for index in range(pair.target.vocabulary) if index not in allowed)
    expected = generate(
        pair,
        prompts.target,
        max_new_tokens=24,
        suppress_tokens=list(others),
        repetition_penalty=penalty,
    )
    few = with_generation(pair, suppressed=others, repetition_penalty=penalty)
    wanted = DecodeSettings(mode=Mode.EXACT, gamma=6, max_new_tokens=24, repetition_guard=False)
    found, rounds = decode(few, prompts, wanted)
    assert list(found.tokens) == expected
    assert any(len(set(done.tokens)) < len(done.tokens) for done in rounds)
