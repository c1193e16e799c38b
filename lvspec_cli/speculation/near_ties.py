"""Decisions by numbers so close that rounding could turn them.

In float32 a row's logits are, but for rounding, the same in any pass. But sums of a pass of more rows may be
in another order. So where the two likeliest tokens are as good as equal, what is said could depend on what is
drafted, or on the answers beside it. Such a decision is taken again by numbers that depend on nothing but the
prompt and the answer so far (``Answer.take``).
"""

from __future__ import annotations

from lvspec_cli.models.words import TokenSets
from lvspec_cli.speculation.verify import Evidence, History, judge, rounding_of
from lvspec_cli.types import RuleSettings

_OF_RELEVANCE = 2e-5  # a difference of two that rounding may make


def is_near_tie(best: float, second: float) -> bool:
    """Whether rounding may decide which of a row's two greatest logits is the greater one."""
    return best - second < rounding_of(best)


def first_near_tie(evidence: Evidence) -> int | None:
    """The first position at which rounding may decide which token is the target's own."""
    pairs = zip(evidence.lead, evidence.rounding, strict=True)
    return next((at for at, (lead, rounding) in enumerate(pairs) if lead < rounding), None)


def is_steady(evidence: Evidence, rule: RuleSettings, words: TokenSets, history: History) -> bool:
    """Whether rounding can change nothing about what a rule accepts of a round.

    The greater gaps and relevance are, the less is accepted (``verify.judge``). So a verdict stands if the
    greatest and the smallest numbers that rounding may make of them give the same.
    """
    if first_near_tie(evidence) is not None:
        return False
    if evidence.drafted == evidence.target[:-1]:
        return True
    one, other = (judge(_moved(evidence, sign), rule, words, history) for sign in (1.0, -1.0))
    return (one.tokens, one.kinds) == (other.tokens, other.kinds)


def _moved(evidence: Evidence, sign: float) -> Evidence:
    """The evidence with all gaps and relevance as far away as rounding may have moved them."""
    gaps = zip(evidence.gap, evidence.rounding, strict=False)
    return Evidence(
        evidence.drafted,
        evidence.target,
        gap=tuple(gap + sign * rounding for gap, rounding in gaps),
        relevance=tuple(_not_negative(score + sign * _OF_RELEVANCE) for score in evidence.relevance),
        bound=evidence.bound,
    )


def _not_negative(score: float) -> float:
    return 0.0 if score < 0 else score  # not-a-number stays what it is
