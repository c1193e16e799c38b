"""Exact mode gives the very tokens of generate(do_sample=False)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.types import DecodeSettings, FinishReason, Mode, RelevanceName, RuleSettings, TokenKind
from tests.speculation.conftest import decode, generate, prompts_for, with_generation
from tests.tiny_families import TinyShape
from tests.tiny_models import FAMILIES, save_model

WORDS = st.sampled_from(
    [
        "red",
        "blue",
        "ball",
        "cube",
        "moves",
        "slowly",
        "left",
        "two",
        "not",
        "clip",
        "what",
        "how",
        "now",
        "there",
    ]
)
STRICT = RuleSettings(anchor_margin=0.0, filler_margin=0.0, shift_window=0)


@pytest.mark.parametrize("family", FAMILIES)
@given(
    question=st.lists(WORDS, min_size=1, max_size=6).map(" ".join),
    seed=st.integers(0, 5),
    gamma=st.integers(1, 12),
    keep=st.sampled_from([1.0, 1.0, 0.5, 0.1]),
    penalty=st.sampled_from([1.0, 1.0, 1.3, 0.8]),
    ends=st.sets(st.integers(0, 23), max_size=2),
    limit=st.integers(1, 24),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_exact_is_generate(
    pairs: dict[str, LoadedPair],
    family: str,
    question: str,
    seed: int,
    gamma: int,
    keep: float,
    penalty: float,
    ends: set[int],
    limit: int,
) -> None:
    pair = with_generation(pairs[family], repetition_penalty=penalty)
    prompts = prompts_for(pair, question, seed)
    free = generate(pair, prompts.target, max_new_tokens=24)
    # Ends that the answer runs into, so that it stops early, inside of rounds too.
    pair = with_generation(
        pair, end_ids=(*pair.target.generation.end_ids, *(free[at] for at in ends if at < len(free)))
    )
    expected = generate(pair, prompts.target, max_new_tokens=limit)
    wanted = DecodeSettings(
        mode=Mode.EXACT, gamma=gamma, max_new_tokens=limit, repetition_guard=False, draft_keep=keep
    )

    found, rounds = decode(pair, prompts, wanted)

    assert list(found.tokens) == expected
    stopped = expected[-1] in pair.target.generation.end_ids
    assert found.finish_reason == (FinishReason.STOP if stopped else FinishReason.LENGTH)
    assert set(found.kinds) <= {TokenKind.EXACT, TokenKind.TARGET}
    assert found.tokens == tuple(token for done in rounds for token in done.tokens)


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


def test_ar_is_generate(pair: LoadedPair) -> None:
    alone = replace(pair, draft=None)
    prompts = prompts_for(alone)
    found, _ = decode(alone, prompts, DecodeSettings(mode=Mode.AR, max_new_tokens=30))
    assert prompts.draft is None
    assert list(found.tokens) == generate(pair, prompts.target, max_new_tokens=30)
    assert found.stats.drafted == 0
    assert found.stats.mean_accepted_length == 1.0


@pytest.mark.parametrize(
    "values",
    [
        {"suppressed": (90, 369, 72)},
        {"suppressed_first": (90, 323)},
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


@pytest.mark.parametrize("padding", [0, 60])
@pytest.mark.parametrize("family", FAMILIES)
def test_paddings_of_the_vocabularies_may_differ(
    pair_folders: dict[str, tuple[Path, Path]], tmp_path: Path, family: str, padding: int
) -> None:
    folder = pair_folders[family][0]
    shape = TinyShape(extra_vocabulary=padding)
    draft = save_model(tmp_path / "draft", family, shape=shape, noise=(folder, 0.01))
    pair = load_pair(folder, draft, device="cpu", dtype="float32")
    assert pair.draft is not None
    assert pair.draft.vocabulary != pair.target.vocabulary
    # The likeliest token of all is one of the target's padding, which a smaller draft has no row for.
    with torch.no_grad():
        pair.target.model.lm_head.weight[-1] = 3 * pair.target.model.lm_head.weight[90]
    tokens = set()
    for seed in range(3):
        prompts = prompts_for(pair, seed=seed)
        found, _ = decode(pair, prompts, DecodeSettings(mode=Mode.EXACT, gamma=4, max_new_tokens=24))
        changed = pair.target.model
        assert list(found.tokens) == generate(pair, prompts.target, model=changed, max_new_tokens=24)
        tokens |= set(found.tokens)
    assert pair.target.vocabulary - 1 in tokens


def test_prompts_of_different_lengths(pair_folders: dict[str, tuple[Path, Path]]) -> None:
    """A draft of another family reads the video in its own way; only the answer's tokens are common."""
    pair = load_pair(pair_folders["qwen2_5_vl"][0], pair_folders["llava_onevision"][1], device="cpu")
    prompts = prompts_for(pair)
    assert prompts.draft is not None
    assert prompts.draft.length != prompts.target.length
    for gamma in (1, 5):
        found, _ = decode(pair, prompts, DecodeSettings(mode=Mode.EXACT, gamma=gamma, max_new_tokens=20))
        assert list(found.tokens) == generate(pair, prompts.target, max_new_tokens=20)
