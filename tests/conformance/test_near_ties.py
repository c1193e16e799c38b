"""Where rounding could decide what is said, the prompt and the answer alone decide it, in every family."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lvspec_cli.models import together
from lvspec_cli.models.decoder import Decoder, Pass
from lvspec_cli.models.delta import BUFFER
from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.models.steps import StepOutputs
from lvspec_cli.models.together import Step, run_together
from lvspec_cli.speculation.answer import Answer
from lvspec_cli.speculation.engine import Session, SharedMemory, next_rounds
from lvspec_cli.types import DecodeSettings, Gamma, Mode, PairPrompts, RelevanceName, Round, RuleSettings
from tests.conformance.conftest import Subject
from tests.conformance.test_slots import ASKED
from tests.conformance.test_steps import Fixed, captured
from tests.speculation.conftest import with_generation

RULE = RuleSettings(relevance=RelevanceName.LEXICON, filler_margin=3.0, anchor_margin=1.0)
WANTED = DecodeSettings(gamma=3, max_new_tokens=14, rule=RULE, repetition_guard=False)


def with_twins(pair: LoadedPair, *, drafted_only: bool = False) -> LoadedPair:
    """The pair, where every fourth token has a twin that is just as likely.

    :param drafted_only: for the draft, and not for the target.
    """

    def changed(loaded: LoadedModel) -> LoadedModel:
        model = copy.deepcopy(loaded.model)
        head = model.get_output_embeddings()
        weights = head.weight.detach().clone()
        weights[1::4] = weights[0:-1:4]
        head.weight = nn.Parameter(weights, requires_grad=False)
        return replace(loaded, model=model)

    assert pair.draft is not None
    target = pair.target if drafted_only else changed(pair.target)
    return replace(pair, target=target, draft=changed(pair.draft))


def noise(seed: int) -> Callable[[Tensor | None], Tensor]:
    draw = torch.Generator().manual_seed(seed)

    def moved(logits: Tensor | None) -> Tensor:
        assert logits is not None
        return logits + 2e-6 * (torch.rand(logits.shape, generator=draw) - 0.5)

    return moved


@contextmanager
def rounded(seed: int, least: int) -> Iterator[None]:
    """Logits of passes of ``least`` answers or more are off by as much as sums in other orders may be."""
    moved = noise(seed)

    def run(steps: Sequence[Step]) -> list[Pass]:
        passes = run_together(steps)
        if len(steps) < least:
            return passes
        return [replace(done, logits=moved(done.logits)) for done in passes]

    with pytest.MonkeyPatch.context() as patch:
        for module in ("answer", "draft"):
            patch.setattr(f"lvspec_cli.speculation.{module}.run_together", run)
        yield


@contextmanager
def captured_passes_rounded(seed: int) -> Iterator[None]:
    """The same of passes that are captured, of one answer or several. None may be part of a decision."""
    moved, replayed, replayed_together = noise(seed), Decoder._replayed, together._Joint.replayed
    decide, deciding = Answer._by_itself, list[Answer]()

    def single(decoder: Decoder, *given: Any) -> Pass:
        assert not deciding
        done = replayed(decoder, *given)
        return replace(done, logits=moved(done.logits))

    def several(joint: together._Joint) -> tuple[StepOutputs, bool] | None:
        assert not deciding
        found = replayed_together(joint)
        return found and (replace(found[0], logits=moved(found[0].logits)), found[1])

    def by_itself(answer: Answer) -> Round:
        deciding.append(answer)
        try:
            return decide(answer)
        finally:
            deciding.clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "_replayed", single)
        patch.setattr(together._Joint, "replayed", several)
        patch.setattr(Answer, "_by_itself", by_itself)
        yield


def alone(pair: LoadedPair, prompts: PairPrompts, wanted: DecodeSettings) -> tuple[int, ...]:
    return Session.of(pair).answer(prompts, wanted).run().tokens


def beside(pair: LoadedPair, asked: Sequence[PairPrompts], wanted: DecodeSettings) -> list[tuple[int, ...]]:
    """Their tokens, if the last of them joins late."""
    shared = SharedMemory(len(asked))
    steps = [Session.of(pair, shared).answer(prompts, wanted) for prompts in asked]
    for _ in range(3):
        next_rounds(steps[:-1])
    while any(next_rounds(steps)):
        pass
    return [each.generation.tokens for each in steps]


def prompts_of(subject: Subject) -> list[PairPrompts]:
    return [subject.prompts(*asked) for asked in ASKED[:3]]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("gamma", [3, "auto"])
def test_an_answer_is_what_it_is_alone(subject: Subject, mode: Mode, gamma: Gamma) -> None:
    pair, asked = with_twins(subject.pair), prompts_of(subject)
    wanted = replace(WANTED, mode=mode, gamma=gamma)
    expected = [alone(pair, prompts, wanted) for prompts in asked]
    for seed in range(2):
        with rounded(seed, least=2):
            assert beside(pair, asked, wanted) == expected


def test_what_is_drafted_loosely_depends_on_no_other_answer(subject: Subject) -> None:
    pair, asked = with_twins(subject.pair, drafted_only=True), prompts_of(subject)
    expected = [alone(pair, prompts, WANTED) for prompts in asked]
    for seed in range(2):
        with rounded(seed, least=2):
            assert beside(pair, asked, WANTED) == expected


def test_otherwise_rounding_would_decide(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests around this one are worth."""
    monkeypatch.setattr(Answer, "_settles", lambda *_: False)
    pair, asked, wanted = with_twins(subject.pair), prompts_of(subject), replace(WANTED, mode=Mode.AR)
    found = set()
    for seed in range(3):
        with rounded(seed, least=2):
            found.add(tuple(beside(pair, asked, wanted)))
    assert len(found) == 3


@pytest.mark.parametrize("gamma", [1, 5])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_exact_is_what_the_target_says_alone(subject: Subject, gamma: int, penalty: float) -> None:
    pair = with_generation(with_twins(subject.pair), repetition_penalty=penalty)
    for seed, prompts in enumerate(prompts_of(subject)):
        expected = alone(pair, prompts, replace(WANTED, mode=Mode.AR))
        with rounded(seed, least=1):
            for mode in (Mode.AR, Mode.EXACT):
                assert alone(pair, prompts, replace(WANTED, mode=mode, gamma=gamma)) == expected


def test_a_long_answer_is_run_again_in_pieces(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, asked = with_twins(subject.pair), prompts_of(subject)
    forward, rows = Decoder.forward, list[int]()

    def counted(decoder: Decoder, tokens: Tensor, *more: Any, **further: Any) -> Pass:
        rows.append(len(tokens))
        return forward(decoder, tokens, *more, **further)

    monkeypatch.setattr("lvspec_cli.speculation.answer.QUESTION_ROWS", 6)
    monkeypatch.setattr(Decoder, "forward", counted)
    for mode in Mode:
        wanted = replace(WANTED, mode=mode)
        expected = [alone(pair, prompts, wanted) for prompts in asked]
        with rounded(0, least=2):
            assert beside(pair, asked, wanted) == expected
    assert max(rows) == 6


@captured
@pytest.mark.parametrize(
    ("mode", "gamma", "drafted_only"), [*product(Mode, [3, "auto"], [False]), (Mode.LVSPEC, 1, True)]
)
def test_where_passes_are_captured_neither_those_of_one_nor_of_several_decide(
    subject: Subject, mode: Mode, gamma: Gamma, drafted_only: bool
) -> None:
    fixed, asked = Fixed(with_twins(subject.pair, drafted_only=drafted_only)), prompts_of(subject)
    pair, wanted = fixed.made(), replace(WANTED, mode=mode, gamma=gamma)
    found = []
    for seed in range(2):
        with captured_passes_rounded(seed):
            found += [[alone(pair, one, wanted) for one in asked], beside(pair, asked, wanted)]
    assert found == [found[0]] * 4
    assert fixed.target.replayed


@pytest.mark.parametrize("subject", ["qwen3_5"], indirect=True)
@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.LVSPEC])
def test_states_that_have_taken_in_the_answer_come_back_to_the_prompt(subject: Subject, mode: Mode) -> None:
    pair = with_generation(with_twins(subject.pair), end_ids=())
    wanted, asked = replace(WANTED, mode=mode, max_new_tokens=BUFFER + 40), prompts_of(subject)[:2]
    expected = [alone(pair, prompts, wanted) for prompts in asked]
    with rounded(0, least=2):
        assert beside(pair, asked, wanted) == expected
