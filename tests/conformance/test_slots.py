"""Answers that are decoded together are those that each would be alone, whatever joins or leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lvspec_cli.speculation.engine import Rounds, Session, SharedMemory, next_rounds
from lvspec_cli.types import DecodeSettings, Generation, Mode
from tests.conformance.conftest import Subject

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


joining = st.builds(Joining, st.integers(0, 3), st.integers(0, 5), st.integers(1, LONGEST))


@settings(max_examples=2)
@given(st.lists(joining, min_size=2, max_size=4))
@example([Joining(0, 0, LONGEST), Joining(1, 0, 7), Joining(2, 2, LONGEST), Joining(3, 3, 4)])
def test_answers_together_are_generate(subject: Subject, answers: list[Joining]) -> None:
    for answer, generation in zip(answers, together(subject, answers, EXACT), strict=True):
        whole = subject.generated(*ASKED[answer.asked], LONGEST)
        assert list(generation.tokens) == whole[: answer.tokens]
