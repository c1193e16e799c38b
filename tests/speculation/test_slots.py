"""Whatever answers join, end or are interrupted beside it, an answer has the rounds that it has alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lvspec_cli.models.load import LoadedPair
from lvspec_cli.speculation.engine import Rounds, Session, SharedMemory, next_rounds
from lvspec_cli.types import DecodeSettings, Gamma, Generation, Mode, PairPrompts, Round, RuleSettings
from tests.speculation.conftest import prompts_for, with_generation
from tests.speculation.test_engine import Transfers

QUESTIONS = ("What moves?", "how many balls are there now", "why")
WANTED = DecodeSettings(rule=RuleSettings(filler_margin=3.0), repetition_guard=False)


@dataclass(frozen=True)
class Joining:
    """An answer that begins when so many rounds have been decoded, and may be interrupted."""

    question: int
    at: int
    tokens: int  # at most
    mode: Mode
    rounds: int | None  # after which it is interrupted
    gamma: Gamma = 3


joining = st.builds(
    Joining,
    st.integers(0, 2),
    st.integers(0, 6),
    st.integers(1, 9),
    st.sampled_from(Mode),
    st.none() | st.integers(1, 4),
)


class Together:
    """A batch, and what came of each answer so far."""

    def __init__(self, pair: LoadedPair, answers: Sequence[Joining], prompts: Sequence[PairPrompts]) -> None:
        self._pair, self._answers, self._prompts = pair, answers, prompts
        self._shared = SharedMemory(len(answers))
        self._going: dict[int, Rounds] = {}
        self.rounds: list[list[Round]] = [[] for _ in answers]

    def _begin(self, index: int) -> Rounds:
        answer = self._answers[index]
        return Session.of(self._pair, self._shared).answer(
            self._prompts[answer.question],
            replace(WANTED, mode=answer.mode, gamma=answer.gamma, max_new_tokens=answer.tokens),
            interrupted=lambda: len(self.rounds[index]) == answer.rounds,
        )

    def run(self) -> list[Generation]:
        done: dict[int, Generation] = {}
        number = 0
        while len(done) < len(self._answers):
            for index, answer in enumerate(self._answers):
                if answer.at <= number and index not in {*self._going, *done}:
                    self._going[index] = self._begin(index)
            for index, round_ in zip([*self._going], next_rounds([*self._going.values()]), strict=True):
                if round_ is None:
                    done[index] = self._going.pop(index).generation
                else:
                    self.rounds[index].append(round_)
            number += 1
        return [done[index] for index in range(len(self._answers))]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=st.lists(joining, min_size=2, max_size=4), gamma=st.sampled_from((3, "auto")))
def test_an_answer_does_not_depend_on_those_beside_it(
    pair: LoadedPair, answers: list[Joining], gamma: Gamma
) -> None:
    answers = [replace(answer, gamma=gamma) for answer in answers]  # a run has one
    prompts = [prompts_for(pair, question, seed) for seed, question in enumerate(QUESTIONS)]
    batch = Together(pair, answers, prompts)
    for answer, found, rounds in zip(answers, batch.run(), batch.rounds, strict=True):
        alone = Together(pair, [replace(answer, at=0)], prompts)
        (expected,) = alone.run()
        if (answer.mode, answer.gamma) == (Mode.EXACT, "auto"):
            # Beside others it may draft fewer. Its tokens are the target's own, whatever it drafts.
            shorter, longer = sorted((found.tokens, expected.tokens), key=len)
            assert longer[: len(shorter)] == shorter
            assert shorter == longer or answer.rounds is not None
            continue
        assert (found.tokens, found.kinds) == (expected.tokens, expected.kinds)
        assert found.finish_reason == expected.finish_reason
        assert [(done.drafted, done.target) for done in rounds] == [
            (done.drafted, done.target) for done in alone.rounds[0]
        ]


def test_a_copy_answers_another_question_while_the_first_is_answered(pair: LoadedPair) -> None:
    first, second = prompts_for(pair, QUESTIONS[0]), prompts_for(pair, QUESTIONS[1])
    wanted = replace(WANTED, mode=Mode.EXACT, gamma=3, max_new_tokens=8)
    session = Session.of(pair, SharedMemory(2))
    one = session.answer(first, wanted)
    next_rounds([one])
    other = session.copied().answer(second, wanted)
    while any(next_rounds([one, other])):
        pass
    assert one.generation.tokens == Session.of(pair).answer(first, wanted).run().tokens
    assert other.generation.tokens == Session.of(pair).answer(second, wanted).run().tokens


def test_one_transfer_to_the_host_a_round_for_all(pair: LoadedPair) -> None:
    pair, shared = with_generation(pair, end_ids=()), SharedMemory(3)
    wanted = replace(WANTED, gamma=3, max_new_tokens=40)
    modes = (Mode.LVSPEC, Mode.EXACT, Mode.AR)
    many = [
        Session.of(pair, shared).answer(prompts_for(pair, question), replace(wanted, mode=mode))
        for question, mode in zip(QUESTIONS, modes, strict=True)
    ]
    next_rounds(many)
    for _ in range(3):
        with Transfers() as transfers:
            next_rounds(many)
        assert transfers.count == 1


def test_answers_without_memory_for_several_have_no_copies(pair: LoadedPair) -> None:
    with pytest.raises(RuntimeError, match="one answer only"):
        Session.of(pair).copied()
