"""Giving up speculation where it does not pay: decided by literal seconds, carried out with a slow draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.models.steps import Workspace, run_again
from lvspec_cli.speculation.engine import Session
from lvspec_cli.speculation.fallback import (
    Fallback,
    Pace,
    TimedRound,
    does_not_pay,
    seconds_a_token,
    wants_step,
)
from lvspec_cli.types import Adaptation, DecodeSettings, Gamma, Mode, Round, RoundCosts, TokenKind
from tests.speculation.conftest import decode, prompts_for, with_generation
from tests.tiny_families import TinyShape
from tests.tiny_models import make_clip, save_model


def pace(*rounds: tuple[float, int], steps: Sequence[float] = ()) -> Pace:
    """Rounds of seconds and tokens, with the steps before the last of them."""
    found = Pace()
    for place, (seconds, tokens) in enumerate(rounds):
        if place == len(rounds) - 1:
            for step in steps:
                found = found.with_step(step)
        found = found.with_round(seconds, tokens)
    return found


STEPS = (0.1, 0.1, 0.1)
SLOW, QUICK = (0.3, 2), (0.15, 3)  # .15 and .05 seconds a token, where a step takes .1


@pytest.mark.parametrize(
    ("found", "gives_up"),
    [
        (pace(*[SLOW] * 16, steps=STEPS), True),
        (pace(*[SLOW] * 15, steps=STEPS), False),  # too few rounds
        (pace(*[SLOW] * 16, steps=STEPS[:2]), False),  # too few steps
        (pace(*[QUICK] * 16, steps=STEPS), False),
        (pace(*[(0.218, 2)] * 16, steps=STEPS), False),  # slower, but within the margin
        (pace(*[(0.222, 2)] * 16, steps=STEPS), True),
        (pace(*[SLOW] * 16, steps=(0.1, 0.2, 0.2)), False),  # the median step counts
        (pace(*[SLOW] * 16, steps=(9.0, 0.1, 0.1)), True),
        (pace(*[QUICK] * 14, (9.0, 1), (9.0, 1), steps=STEPS), False),  # two hiccups of the machine
        (pace(*[QUICK] * 60, *[SLOW] * 16, steps=STEPS), False),  # the last rounds only
        (pace(*[SLOW] * 60, *[QUICK] * 16, steps=STEPS), False),  # the first rounds only
        (pace(*[QUICK] * 200, *[SLOW] * 128, steps=STEPS), True),  # long enough
    ],
)
def test_speculation_is_given_up_where_it_is_slower(found: Pace, gives_up: bool) -> None:
    assert does_not_pay(found) is gives_up


def test_old_steps_say_nothing_of_now() -> None:
    found = pace(*[SLOW] * 16, steps=STEPS)
    for _ in range(16):
        found = found.with_round(*SLOW)
    assert found.recent_steps == []
    assert not does_not_pay(found)


def measured_at(rounds: Sequence[tuple[float, int]], step: float = 0.1) -> list[int]:
    """Before which rounds a step is measured, counted from 0."""
    found, places = Pace(), []
    for place, each in enumerate(rounds):
        if wants_step(found):
            found = found.with_step(step)
            places.append(place)
        found = found.with_round(*each)
    return places


def test_steps_are_measured_seldom_while_speculation_pays() -> None:
    assert measured_at([QUICK] * 200) == [12, 76, 140]


def test_steps_are_measured_until_they_suffice_where_it_does_not() -> None:
    assert measured_at([SLOW] * 16) == [12, 13, 14]


@given(st.lists(st.tuples(st.floats(0.001, 10), st.integers(1, 17)), min_size=1, max_size=150))
def test_no_rounds_that_are_quicker_than_steps_are_given_up(rounds: list[tuple[float, int]]) -> None:
    step = max(seconds / tokens for seconds, tokens in rounds)
    found = Pace()
    for seconds, tokens in rounds:
        if wants_step(found):
            found = found.with_step(step)
            assert not does_not_pay(found)
        found = found.with_round(seconds, tokens)
    assert len(found.rounds) <= 128


def test_the_slowest_rounds_do_not_count() -> None:
    rounds = [TimedRound(1.0, 2)] * 15 + [TimedRound(50.0, 1)]
    assert seconds_a_token(rounds) == 0.5


@pytest.fixture(scope="module")
def slow_pair(tmp_path_factory: pytest.TempPathFactory) -> LoadedPair:
    """A draft that is six times as deep as its target, and knows nothing of it."""
    folder = tmp_path_factory.mktemp("slow")
    target = save_model(folder / "target", "qwen2_5_vl", shape=TinyShape(layers=1))
    draft = save_model(folder / "draft", "qwen2_5_vl", shape=TinyShape(layers=6), seed=5)
    return with_generation(load_pair(target, draft, device="cpu", dtype="float32"), end_ids=())


WANTED = DecodeSettings(
    mode=Mode.EXACT,
    adaptation=Adaptation(6, RoundCosts(draft=0.01)),  # which is not so
    max_new_tokens=40,
    repetition_guard=False,
    fallback=True,
)


@pytest.mark.parametrize("gamma", [4, "auto"])
def test_a_draft_that_is_slower_than_its_target_is_left(slow_pair: LoadedPair, gamma: Gamma) -> None:
    wanted = replace(WANTED, gamma=gamma)
    session, prompts = Session.of(slow_pair), prompts_for(slow_pair)
    found, rounds = decode(slow_pair, prompts, wanted, session)
    assert found.tokens == decode(slow_pair, prompts, replace(wanted, mode=Mode.AR))[0].tokens
    assert found.stats.fallback
    assert not rounds[0].fallback
    alone = [done for done in rounds if done.fallback]
    assert len(alone) >= 10
    assert len(rounds) - len(alone) >= 17  # the token of prefill, and as many rounds as decide
    assert rounds[-len(alone) :] == alone
    assert all(not done.drafted and done.kinds == (TokenKind.TARGET,) for done in alone)
    assert all(done.drafted for done in rounds[1 : -len(alone)])


def test_the_rest_of_the_clip_goes_without_the_draft_and_the_next_one_tries_again(
    slow_pair: LoadedPair,
) -> None:
    session, wanted = Session.of(slow_pair), replace(WANTED, gamma=4)
    decode(slow_pair, prompts_for(slow_pair), wanted, session)
    further = prompts_for(slow_pair, "colour")
    found, rounds = decode(slow_pair, further, wanted, session)
    assert found.tokens == decode(slow_pair, further, replace(wanted, mode=Mode.AR))[0].tokens
    assert found.stats.fallback
    assert found.stats.drafted == 0
    assert all(done.fallback for done in rounds)
    other = build_prompts(slow_pair, make_clip(8, seed=3), "What moves?")
    short = replace(wanted, max_new_tokens=6)
    assert decode(slow_pair, further, short, session)[1][1].drafted  # other settings, another pace
    assert decode(slow_pair, other, wanted, session)[1][1].drafted


def test_without_the_wish_nothing_is_measured(slow_pair: LoadedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvspec_cli.speculation.answer.Answer.time_step", None)
    found, rounds = decode(
        slow_pair, prompts_for(slow_pair), replace(WANTED, gamma=4, max_new_tokens=24, fallback=False)
    )
    assert not found.stats.fallback
    assert all(done.drafted for done in rounds[1:-1])


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.LVSPEC])
def test_a_step_that_is_measured_leaves_nothing_behind(
    pair: LoadedPair, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvspec_cli.speculation.fallback.wants_step", lambda pace: True)
    monkeypatch.setattr("lvspec_cli.speculation.fallback.does_not_pay", lambda pace: False)
    prompts = prompts_for(pair)
    wanted = replace(WANTED, mode=mode, max_new_tokens=24)
    measured, rounds = decode(pair, prompts, wanted)
    plain, plain_rounds = decode(pair, prompts, replace(wanted, fallback=False))
    assert (measured.tokens, rounds) == (plain.tokens, plain_rounds)


@dataclass
class Capturing:
    """An answer of which passes are captured now and then; the clock stands still."""

    captures: int = 0
    steps: int = 0
    captured_steps: int = 0  # of which a pass is captured
    speculates: bool = True

    def time_step(self) -> float:
        self.steps += 1
        self.captures += self.steps <= self.captured_steps
        return 0.1

    def fall_back(self) -> None:
        self.speculates = False


def test_what_is_captured_does_not_count() -> None:
    answer, fallback = Capturing(captured_steps=2), Fallback(None, WANTED)
    drafted = Round((1, 2), (TokenKind.EXACT, TokenKind.TARGET), drafted=(1,), target=(1, 2))
    for captured in (*[True] * 3, *[False] * 16):
        fallback.before_round(answer)
        answer.captures += captured
        fallback.after_round(answer, drafted)
    pace = fallback._pace
    assert len(pace.rounds) == 16
    assert [step.after for step in pace.steps] == [14]
    assert answer.steps == 3, "the third of which counts"


def test_captures_are_counted(pairs: dict[str, LoadedPair]) -> None:
    pair = pairs["qwen2_5_vl"]
    assert pair.draft is not None
    target, draft = (replace(loaded, workspace=Workspace(run_again)) for loaded in (pair.target, pair.draft))
    steps = Session.of(replace(pair, target=target, draft=draft)).answer(
        prompts_for(pair), replace(WANTED, gamma=2, fallback=False, max_new_tokens=30)
    )
    counts = [steps._answer.captures for _ in islice(steps, 8)]
    assert counts[0] == 0, "after the prefill"
    assert 3 <= counts[-1] == counts[-4] <= 4, "of one row of the draft, and two, and of three of the target"
    for _ in range(2):
        steps._answer.time_step()
        counts.append(steps._answer.captures)
    assert counts[-2:] == [counts[-3] + 1] * 2
