"""Whether speculation pays, by the clock: the pace of rounds beside steps of the target alone.

A step is measured now and then, and thrown away, so that no token depends on when. Speculation is given up
only where it is slower by a margin over the last rounds and over many, against several recent steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

ROUNDS = 16  # the last rounds, and the fewest that decide
MANY = 128  # rounds that are remembered
STEPS = 3  # single steps among the last rounds that a decision needs
FIRST_STEP = 12  # rounds before the first of them
NEXT_STEP = 64  # rounds between two while nothing is wrong
MARGIN = 1.1  # times as slow as the target alone
OUTLIERS = 8  # one round of so many, the slowest, may be the machine's fault


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
