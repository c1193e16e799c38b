"""Answers on GPUs that compute on the CPU are the CPU's, and a round waits for what it has to."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from lvspec_cli.models.load import LoadedPair
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import DecodeSettings, Mode, RelevanceName, RuleSettings
from tests.conformance.conftest import Subject
from tests.conformance.test_exact import WANTED
from tests.conformance.test_slots import ALWAYS, together
from tests.conformance.test_steps import Fixed
from tests.speculation.conftest import decode, with_generation
from tests.stand_in import Gpus, gpus, placed

LOOSE = replace(
    WANTED,
    mode=Mode.LVSPEC,
    rule=RuleSettings(relevance=RelevanceName.ATTENTION, anchor_threshold=0.3, filler_margin=3.0, layers=(-1,)),
)
SETTINGS = (
    replace(WANTED, gamma=5, draft_keep=0.5),
    replace(LOOSE, gamma="auto"),
    replace(LOOSE, gamma=5, rule=replace(LOOSE.rule, relevance=RelevanceName.SIMILARITY)),
    replace(WANTED, mode=Mode.AR),
    replace(WANTED, gamma=4, temperature=1.0),
)


def on_gpus(pair: LoadedPair, target: str = "cuda", draft: str = "cuda", last: str | None = None) -> LoadedPair:
    assert pair.draft is not None
    return replace(
        pair, target=placed(pair.target, target, last), draft=placed(pair.draft, draft) if draft != "cpu" else pair.draft
    )


def decoded(
    pair: LoadedPair, subject: Subject, clip: str, wanted: DecodeSettings, made: Gpus
) -> tuple[tuple[int, ...], list[Counter[str]]]:
    """An answer's tokens, and what the host waited for in each of its rounds."""
    steps, waits = Session.of(pair).answer(subject.prompts(clip), wanted), []
    for _ in steps:
        waits.append(made.waits.copy())
        made.waits.clear()
    return steps.generation.tokens, waits


@pytest.mark.parametrize("is_captured", [False, True])
def test_answers_on_a_gpu_are_the_cpus(subject: Subject, is_captured: bool) -> None:
    if is_captured and subject.pair.target.family.waits_for_host:
        pytest.skip("its passes are not captured")
    pair = with_generation(subject.pair, repetition_penalty=1.2)
    fixed = Fixed(pair)
    for wanted in SETTINGS:
        expected = decode(pair, subject.prompts("odd"), wanted)[0].tokens
        with gpus() as made:
            there = on_gpus(fixed.made() if is_captured else pair)
            found, waits = decoded(there, subject, "odd", wanted, made)
        print(wanted.mode, wanted.gamma, waits[1:4])
        assert found == expected
    assert bool(fixed.target.replayed) == is_captured


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("is_captured", [False, True])
def test_answers_together_on_a_gpu_are_the_cpus(subject: Subject, mode: Mode, is_captured: bool) -> None:
    fixed = Fixed(subject.pair)
    wanted = replace(LOOSE, mode=mode, gamma="auto", max_new_tokens=10)
    expected = together(subject, ALWAYS, wanted)
    with gpus():
        there = on_gpus(fixed.made() if is_captured else subject.pair)
        found = together(replace(subject, pair=there), ALWAYS, wanted)
    assert [one.tokens for one in found] == [other.tokens for other in expected]
