"""Answers on GPUs that compute on the CPU are the CPU's, and the host waits once a round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from lvspec_cli.models.kernels.fused import MOST_JOINED, Twins
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.models.steps import Workspace, run_again
from lvspec_cli.speculation.engine import Rounds, Session, SharedMemory, next_rounds
from lvspec_cli.types import DecodeSettings, Mode, RelevanceName, RuleSettings
from tests.conformance.conftest import Subject
from tests.conformance.test_exact import WANTED
from tests.conformance.test_slots import ALWAYS, ASKED, together
from tests.conformance.test_steps import Fixed, in_few
from tests.speculation.conftest import decode, with_generation
from tests.stand_in import Gpus, gpus, placed

RULE = RuleSettings(relevance=RelevanceName.ATTENTION, anchor_threshold=0.3, filler_margin=3.0, layers=(-1,))
LOOSE = replace(WANTED, mode=Mode.LVSPEC, rule=RULE, max_new_tokens=16)
BY_STATES = replace(RULE, relevance=RelevanceName.SIMILARITY)
ALONE = (
    replace(LOOSE, mode=Mode.EXACT, gamma=5, draft_keep=0.5),
    replace(LOOSE, gamma="auto"),
    replace(LOOSE, gamma=5, rule=BY_STATES),
    replace(LOOSE, mode=Mode.EXACT, gamma=4, temperature=1.0),
)
ONCE, WITH_A_LOOK = {"to the host": 1}, {"to the host": 2}


def on_gpus(pair: LoadedPair, *, draft: str = "cuda") -> LoadedPair:
    """The pair with its target on the first GPU."""
    assert pair.draft is not None
    drafting = pair.draft if draft == "cpu" else placed(pair.draft, draft)
    return replace(pair, target=placed(pair.target), draft=drafting)


def waits_of(steps: Sequence[Rounds], made: Gpus) -> list[Counter[str]]:
    """What the host waits for in each round, but the first two and those in which an answer was not drafted.

    In the first ones that are captured the device is told where keys and values are.
    """
    waits: list[Counter[str]] = []
    while True:
        made.waits.clear()
        rounds = next_rounds(steps)
        if not all(rounds):
            return waits[1:]
        if all(round_ is not None and round_.drafted for round_ in rounds):
            waits.append(made.waits.copy())


@pytest.mark.parametrize("wanted", ALONE)
@pytest.mark.parametrize("is_captured", [False, True])
def test_an_answer_is_the_cpus(subject: Subject, is_captured: bool, wanted: DecodeSettings) -> None:
    is_captured = is_captured and not subject.pair.target.family.waits_for_host
    pair, prompts = with_generation(subject.pair, repetition_penalty=1.2), subject.prompts("odd")
    fixed, expected = Fixed(pair), decode(pair, prompts, wanted)[0].tokens
    with gpus() as made:
        steps = Session.of(on_gpus(fixed.made() if is_captured else pair)).answer(prompts, wanted)
        waits = waits_of([steps], made)
    assert steps.generation.tokens == expected
    assert bool(fixed.target.replayed) == is_captured
    if not pair.target.family.waits_for_host:
        assert waits == [WITH_A_LOOK if wanted.gamma == "auto" else ONCE] * len(waits)
        assert waits


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("is_captured", [False, True])
def test_answers_together_are_the_cpus(subject: Subject, is_captured: bool, mode: Mode) -> None:
    pair = Fixed(subject.pair).made() if is_captured else subject.pair
    wanted = replace(LOOSE, mode=mode, gamma="auto", max_new_tokens=8)
    expected = together(subject, ALWAYS, wanted)
    with gpus():
        found = together(replace(subject, pair=on_gpus(pair)), ALWAYS, wanted)
    assert [one.tokens for one in found] == [other.tokens for other in expected]


@pytest.mark.parametrize("subject", ["qwen2_5_vl", "smolvlm"], indirect=True)
@pytest.mark.parametrize(("gamma", "expected"), [(4, ONCE), ("auto", WITH_A_LOOK)])
def test_a_round_of_several_waits_no_more_often(
    subject: Subject, gamma: int, expected: dict[str, int]
) -> None:
    wanted = replace(LOOSE, gamma=gamma, max_new_tokens=24)
    with gpus() as made:
        pair, shared = on_gpus(Fixed(subject.pair).made()), SharedMemory(2)
        prompts = [subject.prompts(*asked) for asked in ASKED[:2]]
        steps = [Session.of(pair, shared).answer(asked, wanted) for asked in prompts]
        waits = waits_of(steps, made)
    assert waits == [expected] * len(waits)
    assert len(waits) > 1


@pytest.mark.parametrize("subject", ["qwen2_5_vl", "qwen3_vl"], indirect=True)
def test_layers_of_few_operations_are_made_and_run(subject: Subject) -> None:
    wanted = replace(LOOSE, gamma=4, max_new_tokens=8)
    expected = together(subject, ALWAYS, wanted)
    with gpus():
        pair = on_gpus(subject.pair)
        assert pair.draft is not None
        target, draft = (
            replace(loaded, fused=in_few(loaded, Twins()), workspace=Workspace(run_again))
            for loaded in (pair.target, pair.draft)
        )
        assert target.fused is not None
        assert target.fused.joins == MOST_JOINED
        found = together(replace(subject, pair=replace(pair, target=target, draft=draft)), ALWAYS, wanted)
    assert [one.tokens for one in found] == [other.tokens for other in expected]


@pytest.mark.parametrize("subject", ["qwen2_5_vl", "llava_onevision"], indirect=True)
@pytest.mark.parametrize("draft", ["cpu", "cuda:1"])
def test_a_draft_elsewhere(subject: Subject, draft: str) -> None:
    for wanted in (each for each in ALONE if each.gamma != "auto"):  # which goes by what a step costs there
        expected = decode(subject.pair, subject.prompts("odd"), wanted)[0].tokens
        with gpus():
            found = decode(on_gpus(subject.pair, draft=draft), subject.prompts("odd"), wanted)[0].tokens
        assert found == expected


@pytest.mark.parametrize("name", RelevanceName)
@pytest.mark.parametrize("subject", ["qwen2_5_vl"], indirect=True)
def test_a_target_on_two_of_them(subject: Subject, name: RelevanceName) -> None:
    wanted = replace(LOOSE, rule=replace(RULE, relevance=name))
    expected, others = decode(subject.pair, subject.prompts("odd"), wanted)
    with gpus():
        target = placed(subject.pair.target, last="cuda:1")
        pair = replace(on_gpus(subject.pair), target=target)
        found, rounds = decode(pair, subject.prompts("odd"), wanted)
        session = Session.of(pair)
        session.encode(subject.prompts("odd"))
        last = session.target.layer_count - 1
        devices = [session.target.cache.keys(layer, 4).device for layer in (0, last)]
    assert devices == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert found.tokens == expected.tokens
    assert [one.relevance for one in rounds] == [other.relevance for other in others]
