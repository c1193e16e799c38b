"""Whether speculation pays, by the clock: the pace of rounds beside steps of the target alone.

A step is measured now and then, and thrown away, so that no token depends on when. Speculation is given up
only where it is slower by a margin over the last rounds and over many, against several recent steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Protocol

from lvspec_cli.types import DecodeSettings, Round

ROUNDS = 16  # the last rounds, and the fewest that decide
MANY = 128  # rounds that are remembered
STEPS = 3  # single steps among the last rounds that a decision needs
FIRST_STEP = 12  # rounds before the first of them
NEXT_STEP = 64  # rounds between two while nothing is wrong
MARGIN = 1.1  # times as slow as the target alone
OUTLIERS = 8  # one round of so many, the slowest, may be the machine's fault


class Speculating(Protocol):
    """What the fallback has to know of an answer."""

    @property
    def speculates(self) -> bool: ...
    def time_step(self) -> float: ...
    def fall_back(self) -> None: ...


class Fallback:
    """Ends speculation where the target alone is faster: for one clip, and one way to decode.

    Told of every answer and every round, it decides for the answer at hand and for all that follow.
    Nothing is timed unless ``settings.fallback`` asks for it.
    """

    def __init__(self, prefix: tuple[int, ...] | None, settings: DecodeSettings) -> None:
        self._prefix, self._settings = prefix, settings
        self._pace = Pace()
        self._began: float | None = None  # of the round at hand, where it is timed
        self._has_happened = False

    def is_for(self, prefix: tuple[int, ...] | None, settings: DecodeSettings) -> bool:
        """Whether what was timed holds for a clip, by the tokens of its prefix, and for these settings."""
        return (self._prefix, self._settings) == (prefix, settings)

    def before_answer(self, answer: Speculating) -> None:
        """An answer about a clip that goes on without the draft begins without it."""
        if self._has_happened:
            answer.fall_back()

    def before_round(self, answer: Speculating) -> None:
        """Time a step of the target alone where one is due; end the answer's speculation if it is slower."""
        self._began = None
        if not self._settings.fallback or not answer.speculates:
            return
        if wants_step(self._pace):
            self._pace = self._pace.with_step(answer.time_step())
        if does_not_pay(self._pace):
            self._has_happened = True
            answer.fall_back()
        self._began = time.perf_counter()

    def after_round(self, done: Round) -> None:
        """Take in how long the round took, if it had a draft."""
        if self._began is not None and done.drafted:
            self._pace = self._pace.with_round(time.perf_counter() - self._began, len(done.tokens))


@dataclass(frozen=True)
class TimedRound:
    """One round, with the length that it added."""

    seconds: float
    tokens: int


@dataclass(frozen=True)
class TimedStep:
    """One step of the target alone, behind so many rounds."""

    seconds: float
    after: int


@dataclass(frozen=True)
class Pace:
    """What was timed of one clip lately, in order."""

    count: int = 0  # of all rounds
    rounds: tuple[TimedRound, ...] = ()
    steps: tuple[TimedStep, ...] = ()

    def with_round(self, seconds: float, tokens: int) -> Pace:
        return replace(self, count=self.count + 1, rounds=(*self.rounds, TimedRound(seconds, tokens))[-MANY:])

    def with_step(self, seconds: float) -> Pace:
        return replace(self, steps=(*self.steps, TimedStep(seconds, self.count))[-ROUNDS:])

    @property
    def recent_steps(self) -> list[float]:
        """Seconds of the steps among the last rounds."""
        return [step.seconds for step in self.steps if self.count - step.after < ROUNDS]


def wants_step(pace: Pace) -> bool:
    """Whether it is time to measure a step: the first, a regular one, or one to make sure."""
    if pace.count < FIRST_STEP:
        return False
    recent = pace.recent_steps
    if not recent:
        return not pace.steps or pace.count - pace.steps[-1].after >= NEXT_STEP
    return len(recent) < STEPS and _is_slow(pace, recent)


def does_not_pay(pace: Pace) -> bool:
    """Whether the clip goes on faster without the draft."""
    recent = pace.recent_steps
    return pace.count >= ROUNDS and len(recent) >= STEPS and _is_slow(pace, recent)


def seconds_a_token(rounds: Sequence[TimedRound]) -> float:
    """Of all rounds but the slowest, one of each ``OUTLIERS``."""
    kept = sorted(rounds, key=lambda each: each.seconds)[: len(rounds) - len(rounds) // OUTLIERS]
    return sum(each.seconds for each in kept) / sum(each.tokens for each in kept)


def _is_slow(pace: Pace, steps: Sequence[float]) -> bool:
    limit = MARGIN * median(steps)
    return all(seconds_a_token(rounds) > limit for rounds in (pace.rounds, pace.rounds[-ROUNDS:]))
