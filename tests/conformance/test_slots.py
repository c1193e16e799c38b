"""Answers that are decoded together are those that each would be alone, whatever joins or leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lvspec_cli.models.load import load_pair
from lvspec_cli.models.steps import Replay, StepOutputs, Workspace, run_again
from lvspec_cli.speculation.answer import Answer
from lvspec_cli.speculation.draft import Drafting
from lvspec_cli.speculation.draft_length import AdaptiveLength, DraftLengthPolicy
from lvspec_cli.speculation.engine import Rounds, Session, SharedMemory, next_rounds
from lvspec_cli.types import (
    Adaptation,
    DecodeSettings,
    Generation,
    Mode,
    RelevanceName,
    Round,
    RoundCosts,
    RuleSettings,
)
from tests.conformance.conftest import Subject
from tests.conformance.test_steps import Fixed, Uneven, captured
from tests.models.test_fused import OneByOne
from tests.speculation.conftest import with_generation

LONGEST = 10  # tokens
EXACT = DecodeSettings(mode=Mode.EXACT, gamma=3, max_new_tokens=LONGEST, repetition_guard=False)
ASKED = (
    ("odd", "What moves?"),
    ("one-frame", "how many balls"),
    ("wide", "what now"),
    ("odd", "which colour"),
)


@dataclass(frozen=True)
class Joining:
    """An answer that begins when so many rounds have been decoded."""

    asked: int  # index into ASKED
    at: int
    tokens: int  # at most


def together(subject: Subject, answers: Sequence[Joining], wanted: DecodeSettings) -> list[Generation]:
    """Decode them in one batch, each from its round on."""
    going: dict[int, Rounds] = {}
    done: dict[int, Generation] = {}
    number, shared = 0, SharedMemory(len(answers))
    while len(done) < len(answers):
        for index, answer in enumerate(answers):
            if answer.at <= number and index not in going and index not in done:
                session = Session.of(subject.pair, shared)
                limited = replace(wanted, max_new_tokens=answer.tokens)
                going[index] = session.answer(subject.prompts(*ASKED[answer.asked]), limited)
        for index, round_ in zip(list(going), next_rounds(list(going.values())), strict=True):
            if round_ is None:
                done[index] = going.pop(index).generation
        number += 1
    return [done[index] for index in range(len(answers))]


ALWAYS = [Joining(0, 0, LONGEST), Joining(1, 0, 7), Joining(2, 2, LONGEST), Joining(3, 3, 4)]
joining = st.builds(Joining, st.integers(0, 3), st.integers(0, 5), st.integers(1, LONGEST))


@settings(max_examples=2)
@given(st.lists(joining, min_size=2, max_size=4))
@example(ALWAYS)
def test_answers_together_are_generate(subject: Subject, answers: list[Joining]) -> None:
    for answer, generation in zip(answers, together(subject, answers, EXACT), strict=True):
        whole = subject.generated(*ASKED[answer.asked], LONGEST)
        assert list(generation.tokens) == whole[: answer.tokens]


@captured
def test_captured_passes_of_several_answers_are_generate(subject: Subject) -> None:
    fixed = Fixed(subject.pair)
    made = fixed.made()
    at_once = [replace(answer, at=0) for answer in ALWAYS]  # four rows, and one of padding
    for answers, mode in ((ALWAYS, Mode.EXACT), (at_once, Mode.AR)):
        found = together(replace(subject, pair=made), answers, replace(EXACT, mode=mode))
        for answer, generation in zip(answers, found, strict=True):
            whole = subject.generated(*ASKED[answer.asked], LONGEST)
            assert list(generation.tokens) == whole[: answer.tokens]
    has_states = made.target.family.has_states
    assert {bool(fixed.target.replayed), bool(fixed.draft.replayed)} == {not has_states}
    workspace = made.target.workspace
    assert workspace is not None
    assert workspace.can_capture
    assert not workspace.alone.kept, "the last one's passes are the others' too"


# Biases, normalised heads, and neither.
@pytest.mark.parametrize("subject", ["qwen2_5_vl", "qwen3_vl", "smolvlm"], indirect=True)
def test_fused_passes_of_several_answers_are_those_of_one(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And tell what relevance wants of the layers that it watches."""
    rule = RuleSettings(
        relevance=RelevanceName.ATTENTION, anchor_threshold=0.3, filler_margin=3.0, layers=(1, -1)
    )
    loose = replace(EXACT, mode=Mode.LVSPEC, rule=rule)
    expected = together(subject, ALWAYS, loose)
    fixed = Fixed(subject.pair)
    pair = fixed.made(fused=True)
    monkeypatch.setattr(type(pair.target.family), "queries", None)
    found = together(replace(subject, pair=pair), ALWAYS, loose)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert fixed.target.replayed
    assert pair.target.workspace is not None
    assert pair.target.workspace.can_capture


@pytest.mark.parametrize("subject", ["qwen2_5_vl"], indirect=True)
@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.LVSPEC])
def test_drafts_of_several_answers_run_ahead_together(
    subject: Subject, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rounds as if the host looked at every step, to the bit of what the policies have observed, and
    it looks less often."""
    costs = Adaptation(costs=RoundCosts(draft=0.05))
    wanted = replace(EXACT, mode=mode, gamma="auto", adaptation=costs)
    limits = (24, 40, 9)
    penalised = with_generation(subject.pair, repetition_penalty=1.3)

    def decoded() -> tuple[list[list[Round | None]], list[list[int]], list[DraftLengthPolicy[Any]], int]:
        pair = Fixed(penalised).made(fused=True, operations=OneByOne())
        shared = SharedMemory(3)
        sessions = [Session.of(pair, shared) for _ in limits]
        going = [
            session.answer(subject.prompts(*asked), replace(wanted, max_new_tokens=limit))
            for session, asked, limit in zip(sessions, ASKED, limits, strict=False)
        ]
        looks.clear()
        rounds, drafts = [next_rounds(going)], [session.draft for session in sessions]
        rows = list[list[int]]()
        while any(rounds[-1]):
            rounds.append(next_rounds(going))
            rows.append([draft.cache.length for draft in drafts if draft is not None])
        return rounds, rows, [steps._answer._policy for steps in going], len(looks)

    looks, observe = list[int](), AdaptiveLength.observe

    def look(policy: AdaptiveLength, measured: torch.Tensor) -> Sequence[float]:
        looks.append(len(measured))
        return observe(policy, measured)

    monkeypatch.setattr(AdaptiveLength, "observe", look)
    rounds, rows, policies, count = decoded()
    monkeypatch.setattr(Drafting, "runs_ahead", False)
    *expected, others = decoded()
    assert [rounds, rows, policies] == expected
    assert count <= len(rounds), "about one look a round"
    assert count < 0.3 * others


@pytest.mark.parametrize("subject", ["qwen2_5_vl"], indirect=True)
def test_where_the_memory_grows_fused_passes_are_not_captured_anew(subject: Subject) -> None:
    wanted = replace(EXACT, mode=Mode.AR)
    counts = []
    for fused in (False, True):
        fixed = Fixed(subject.pair)
        pair, shared = fixed.made(fused=fused), SharedMemory(2)
        assert pair.target.workspace is not None
        for clip, tokens in (("two-frames", 24), ("odd", 600)):
            alone = Session.of(pair, shared).answer(
                subject.prompts(clip), replace(wanted, max_new_tokens=tokens)
            )
            assert list(alone.run().tokens) == subject.generate(clip, max_new_tokens=tokens)
            del alone
        counts.append(fixed.target.captured)
        assert len(pair.target.workspace.together.kept) == 1
        other = Session.of(pair, SharedMemory(2)).answer(subject.prompts("odd"), wanted)
        assert list(other.run().tokens) == subject.generate("odd", max_new_tokens=LONGEST)
        assert len(pair.target.workspace.together.kept) == 1, "those over a memory that has gone are dropped"
    assert counts == [2, 1]


@pytest.mark.parametrize("subject", ["qwen2_5_vl"], indirect=True)
@pytest.mark.parametrize("failure", [torch.OutOfMemoryError("short"), RuntimeError("not permitted")])
def test_passes_of_several_answers_that_cannot_be_captured_are_run(
    subject: Subject, failure: Exception
) -> None:
    failures = [failure]

    def capture(run: Callable[[], StepOutputs]) -> Replay:
        if failures:
            raise failures.pop()
        return run_again(run)

    workspace = Workspace(capture)
    pair = replace(subject.pair, target=replace(subject.pair.target, workspace=workspace))
    found = together(replace(subject, pair=pair), ALWAYS, EXACT)
    for answer, generation in zip(ALWAYS, found, strict=True):
        whole = subject.generated(*ASKED[answer.asked], LONGEST)
        assert list(generation.tokens) == whole[: answer.tokens]
    is_short = isinstance(failure, torch.OutOfMemoryError)
    assert bool(workspace.together.kept) == workspace.can_capture == is_short, "until the slots are elsewhere"


@pytest.mark.parametrize("subject", ["qwen2_5_vl"], indirect=True)
def test_in_16_bits_answers_together_are_to_the_letter_where_rows_stand_alone(subject: Subject) -> None:
    half = Fixed(load_pair(*subject.folders, device="cpu", dtype="bfloat16"))
    for operations, is_known in ((OneByOne(), True), (Uneven(), False)):
        pair, shared = half.made(fused=True, operations=operations), SharedMemory(2)
        sessions = [Session.of(pair, shared) for _ in range(2)]
        wanted = replace(EXACT, max_new_tokens=24)
        clips = [subject.prompts(clip) for clip in ("odd", "wide")]
        going = [session.answer(prompts, wanted) for session, prompts in zip(sessions, clips, strict=True)]
        while any(next_rounds(going)):
            pass
        found = [steps.generation.tokens for steps in going]
        assert [session.is_to_the_letter(wanted) for session in sessions] == [is_known] * 2
        alone = replace(wanted, mode=Mode.AR)
        texts = [Session.of(pair).answer(prompts, alone).run().tokens for prompts in clips]
        assert (found == texts) == is_known


@pytest.mark.parametrize("subject", ["qwen2_5_vl"], indirect=True)
def test_an_answer_goes_on_where_anothers_tokens_were_not_taken(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device knows what each of them has said, which a repetition penalty counts."""
    pair = with_generation(subject.pair, repetition_penalty=1.3)
    shared, wanted = SharedMemory(2), replace(EXACT, max_new_tokens=24)
    prompts = [subject.prompts(*asked) for asked in ASKED[:2]]
    expected = [Session.of(pair).answer(asked, wanted).run().tokens for asked in prompts]
    going = [Session.of(pair, shared).answer(asked, wanted) for asked in prompts]
    for _ in range(3):
        next_rounds(going)
    take = Answer.take

    def taken(answer: Answer, *others: Any) -> Round:
        if answer is going[1]._answer:
            raise MemoryError
        return take(answer, *others)

    with monkeypatch.context() as patched:
        patched.setattr(Answer, "take", taken)
        with pytest.raises(MemoryError):
            next_rounds(going)
    assert [rounds.drop_round() for rounds in going] == [False, True]
    assert going[1].run().tokens == expected[1]
    going[0]._failed = False  # its tokens were taken, and nobody was told: here they are in the answer
    assert going[0].run().tokens == expected[0]
