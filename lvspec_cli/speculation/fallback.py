"""Decides by the clock whether speculation pays: times of rounds against times of steps of the target alone.

Now and then one step of the target is timed and its result thrown away, so that no token depends on it.
Speculation ends only if it is slower than several recent steps by a margin, over the last rounds and
over many rounds. A step or a round in which a pass was captured as a CUDA graph does not count: it took long
for what is done once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Protocol

from lvspec_cli.types import DecodeSettings, Round

ROUNDS = 16  # how many rounds count as the last ones; a decision needs at least as many
MANY = 128  # rounds that are remembered
STEPS = 3  # timed steps among the last rounds that a decision needs
FIRST_STEP = 12  # rounds before the first step is timed
NEXT_STEP = 64  # rounds between two timed steps, as long as speculation pays
MARGIN = 1.1  # speculation is slow if it takes this many times the target's seconds a token
OUTLIERS = 8  # the slowest 1 / OUTLIERS of the rounds are ignored: the machine may have been busy


class Speculating(Protocol):
    """The part of an answer that a fallback uses."""

    @property
    def speculates(self) -> bool: ...
    @property
    def captures(self) -> int: ...
    def time_step(self) -> float: ...
    def fall_back(self) -> None: ...


class Fallback:
    """Ends speculation on one clip, with given settings, once the target alone is found to be faster.

    Call its methods around every answer and every round. The decision holds for the current answer and all
    later ones. Nothing is timed unless ``settings.fallback`` is set.
    """

    def __init__(self, prefix: tuple[int, ...] | None, settings: DecodeSettings) -> None:
        self._prefix, self._settings = prefix, settings
        self._pace = Pace()
        self._began: float | None = None  # when the current round began, if it is timed
        self._captures = 0  # before it
        self._has_happened = False

    def is_for(self, prefix: tuple[int, ...] | None, settings: DecodeSettings) -> bool:
        """Whether it was made for this clip, known by the tokens of its prefix, and these settings."""
        return (self._prefix, self._settings) == (prefix, settings)

    def before_answer(self, answer: Speculating) -> None:
        """Decode the answer without the draft, if speculation on this clip has ended before."""
        if self._has_happened:
            answer.fall_back()

    def before_round(self, answer: Speculating) -> None:
        """Time one step of the target alone if it is time for one, then end speculation if that is faster."""
        self._began = None
        if not self._settings.fallback or not answer.speculates:
            return
        if wants_step(self._pace):
            captures, seconds = answer.captures, answer.time_step()
            if answer.captures == captures:
                self._pace = self._pace.with_step(seconds)
        if does_not_pay(self._pace):
            self._has_happened = True
            answer.fall_back()
        self._began, self._captures = time.perf_counter(), answer.captures

    def after_round(self, answer: Speculating, done: Round) -> None:
        """Remember the seconds of a round, if it was drafted."""
        if self._began is not None and done.drafted and answer.captures == self._captures:
            self._pace = self._pace.with_round(time.perf_counter() - self._began, len(done.tokens))


@dataclass(frozen=True)
class TimedRound:
    """One drafted round."""

    seconds: float
    tokens: int  # added to the answer


@dataclass(frozen=True)
class TimedStep:
    """One step of the target alone."""

    seconds: float
    after: int  # rounds before it


@dataclass(frozen=True)
class Pace:
    """The recent times of one clip, oldest first."""

    count: int = 0  # all rounds so far, also those that are not remembered
    rounds: tuple[TimedRound, ...] = ()
    steps: tuple[TimedStep, ...] = ()

    def with_round(self, seconds: float, tokens: int) -> Pace:
        """The times with one more round."""
        return replace(self, count=self.count + 1, rounds=(*self.rounds, TimedRound(seconds, tokens))[-MANY:])

    def with_step(self, seconds: float) -> Pace:
        """The times with one more step of the target alone."""
        return replace(self, steps=(*self.steps, TimedStep(seconds, self.count))[-ROUNDS:])

    @property
    def recent_steps(self) -> list[float]:
        """Seconds of the steps that were timed among the last ``ROUNDS`` rounds."""
        return [step.seconds for step in self.steps if self.count - step.after < ROUNDS]


def wants_step(pace: Pace) -> bool:
    """Whether to time a step now: the first one, a regular one, or another one to confirm that rounds are
    slow."""
    if pace.count < FIRST_STEP:
        return False
    recent = pace.recent_steps
    if not recent:
        return not pace.steps or pace.count - pace.steps[-1].after >= NEXT_STEP
    return len(recent) < STEPS and _is_slow(pace, recent)


def does_not_pay(pace: Pace) -> bool:
    """Whether decoding is faster without the draft."""
    recent = pace.recent_steps
    return pace.count >= ROUNDS and len(recent) >= STEPS and _is_slow(pace, recent)


def seconds_a_token(rounds: Sequence[TimedRound]) -> float:
    """Seconds a token, without the slowest eighth of the rounds (1 / ``OUTLIERS``)."""
    fastest = sorted(rounds, key=lambda timed: timed.seconds)[: len(rounds) - len(rounds) // OUTLIERS]
    return sum(timed.seconds for timed in fastest) / sum(timed.tokens for timed in fastest)


def _is_slow(pace: Pace, steps: Sequence[float]) -> bool:
    limit = MARGIN * median(steps)
    return all(seconds_a_token(rounds) > limit for rounds in (pace.rounds, pace.rounds[-ROUNDS:]))
