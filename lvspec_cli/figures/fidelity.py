"""What a mode keeps of ``ar``: facts and answers, likeness, and how likely the target finds its texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lvspec_cli.demo.facts import FACT_KINDS
from lvspec_cli.demo.questions import Question
from lvspec_cli.demo.scenes import scene_from_dict
from lvspec_cli.figures.answers import Block, Estimate, Fidelity, Item, Kept, TimedText, Variant, least_kept
from lvspec_cli.figures.intervals import interval_of_sums, ratio_of_sums
from lvspec_cli.figures.labels import (
    Judgement,
    Label,
    Reference,
    chrf,
    judge_text,
    repetition,
    rouge_l,
    same_answer,
    words,
)

SHORT = 5  # words: up to so many an answer is short


def label_of(item: Item) -> Label | None:
    """What an item says of the right answer."""
    if item.scene is not None:
        return scene_from_dict(item.scene)
    if item.any_of:
        return Question(item.kind or "", item.prompt, item.reference or "", item.any_of, item.none_of)
    if item.reference is not None or item.choices:
        return Reference(item.reference, item.choices)
    return None


@dataclass(frozen=True)
class Compared:
    """One answer of a mode beside that of ``ar`` to the same item."""

    item: Item
    mode: TimedText
    ar: TimedText

    @cached_property
    def judged(self) -> tuple[Judgement, Judgement]:
        label = label_of(self.item)
        return judge_text(self.mode.text or "", label), judge_text(self.ar.text or "", label)

    @property
    def is_short(self) -> bool:
        """Whether the answer is one that agrees or not: labelled, multiple-choice, or of few words."""
        item = self.item
        return bool(item.choices or item.any_of or item.reference) or len(words(self.ar.text or "")) <= SHORT

    @property
    def is_same_answer(self) -> bool:
        """The same choice where both take one; else the same right or wrong words."""
        choice, ar_choice = (judged.choice for judged in self.judged)
        if choice is not None or ar_choice is not None:
            return choice == ar_choice
        return same_answer(self.mode.text or "", self.ar.text or "")


def compare_blocks(
    items: Mapping[str, Item], blocks: Iterable[Block], variant: Variant, reference: Variant
) -> list[Compared]:
    """The first answer of a variant to each item beside that of the reference in the same block."""
    found: dict[str, Compared] = {}
    for block in blocks:
        mode, ar = block.of(variant), block.of(reference)
        if block.item in found or mode is None or ar is None or mode.error or ar.error:
            continue
        found[block.item] = Compared(items[block.item], mode, ar)
    return list(found.values())


def fidelity_of(compared: Sequence[Compared], *, seed: int = 0) -> Fidelity | None:
    """All figures of one mode; None where nothing was compared.

    Intervals are over clips (``bench.intervals``): a clip brings all its answers, the mode's and ar's alike.
    """
    if not compared:
        return None
    captions = [each for each in compared if each.judged[0].facts]
    questions = [each for each in compared if each.judged[0].right is not None]
    scored = [each for each in compared if None not in (each.mode.log_probability, each.ar.log_probability)]
    short = [each for each in compared if each.is_short]

    def mean(chosen: Sequence[Compared], value: Callable[[Compared], float | None]) -> Estimate | None:
        rows = _by_clip(chosen, lambda each: (value(each) or 0.0, 1))
        return ratio_of_sums(*rows, seed=seed) if rows else None

    return Fidelity(
        answers=len(compared),
        clips=len({each.item.file_name for each in compared}),
        facts=kept_facts(captions, "all", seed=seed),
        facts_by_kind=_by_kind(FACT_KINDS, lambda kind: kept_facts(captions, kind, seed=seed)),
        questions=kept_answers(questions, seed=seed),
        questions_by_kind=_by_kind(
            sorted({each.item.kind for each in questions if each.item.kind}),
            lambda kind: kept_answers([each for each in questions if each.item.kind == kind], seed=seed),
        ),
        log_probability=mean(scored, lambda each: each.mode.log_probability),
        ar_log_probability=mean(scored, lambda each: each.ar.log_probability),
        log_probability_change=mean(scored, _change),
        chrf=mean(compared, lambda each: chrf(*_texts(each))),
        rouge_l=mean(compared, lambda each: rouge_l(*_texts(each))),
        identical=mean(compared, lambda each: each.mode.text == each.ar.text),
        same_answers=mean(short, lambda each: each.is_same_answer),
        short_answers=len(short),
        repetition=_average(repetition(_tokens(each.mode)) for each in compared),
        ar_repetition=_average(repetition(_tokens(each.ar)) for each in compared),
        length=_average(each.mode.output_tokens for each in compared),
        ar_length=_average(each.ar.output_tokens for each in compared),
    )


def retention_of(compared: Sequence[Compared], *, seed: int = 0) -> Estimate | None:
    """``Fidelity.retention`` alone."""
    captions = [each for each in compared if each.judged[0].facts]
    questions = [each for each in compared if each.judged[0].right is not None]
    return least_kept(kept_facts(captions, "all", seed=seed), kept_answers(questions, seed=seed))


def right_kept(compared: Sequence[Compared], *, seed: int = 0) -> Kept | None:
    """Facts and answers together: F1 in which a question is one more fact to tell.

    Over both there is more to go by than over either, where few clips have to do.
    """

    def counts(each: Compared) -> tuple[float, ...]:
        if each.judged[0].right is not None:
            ours, theirs = (2.0 * bool(judged.right) for judged in each.judged)
            return ours, 2, theirs, 2
        return _fact_counts(each, "all")

    known = [each for each in compared if each.judged[0].right is not None or each.judged[0].facts]
    expected = sum(
        each.judged[1].facts["all"].expected if each.judged[0].right is None else 1 for each in known
    )
    return _kept(_by_clip(known, counts), expected, seed)


def likelihood_kept(compared: Sequence[Compared], *, seed: int = 0) -> Estimate | None:
    """How likely the target finds the mode's texts, against its own: exp of the mean change of nats a token.

    It needs no label. None where the texts were not scored.
    """
    scored = [each for each in compared if None not in (each.mode.log_probability, each.ar.log_probability)]
    rows = _by_clip(scored, lambda each: (_change(each), 1)) if scored else []
    change = ratio_of_sums(*rows, seed=seed) if rows else None
    if change is None:
        return None
    low, high = (None if end is None else math.exp(end) for end in (change.low, change.high))
    return Estimate(value=math.exp(change.value), low=low, high=high)


def kept_facts(captions: Sequence[Compared], kind: str, *, seed: int = 0) -> Kept | None:
    """F1 of one kind of fact (``all``: of every kind), micro-averaged: 2 right / (found + expected).

    Only answers with facts to find may be given; None where there were none of this kind to find or found.
    """

    expected = sum(each.judged[1].facts[kind].expected for each in captions)
    return _kept(_by_clip(captions, lambda each: _fact_counts(each, kind)), expected, seed)


def _fact_counts(each: Compared, kind: str) -> tuple[float, ...]:
    ours, theirs = (judged.facts[kind] for judged in each.judged)
    return (
        2 * ours.found_right, ours.found + ours.expected,
        2 * theirs.found_right, theirs.found + theirs.expected,
    )  # fmt: skip


def kept_answers(questions: Sequence[Compared], *, seed: int = 0) -> Kept | None:
    """Accuracy: the share of questions that are answered right; of each the right answer is known."""

    def counts(each: Compared) -> tuple[float, ...]:
        ours, theirs = (bool(judged.right) for judged in each.judged)
        return ours, 1, theirs, 1

    return _kept(_by_clip(questions, counts), len(questions), seed)


def _kept(rows: list[list[float]], count: int, seed: int) -> Kept | None:
    """Two ratios of sums over clips, and their own ratio. ``rows``: the mode's two sums, then ar's."""
    sums = [sum(row) for row in rows]
    if not rows or not sums[1] or not sums[3]:
        return None
    mode, ar = sums[0] / sums[1], sums[2] / sums[3]
    if not ar:
        return Kept(mode=mode, ar=ar, count=count, retention=None)
    if rows[:2] == rows[2:]:  # exact modes: nothing varies
        ends: tuple[float | None, float | None] = (1.0, 1.0) if len(rows[0]) > 1 else (None, None)
    else:
        ends = interval_of_sums(_retention, rows, seed=seed)
    return Kept(mode=mode, ar=ar, count=count, retention=Estimate(value=mode / ar, low=ends[0], high=ends[1]))


def _retention(sums: Any) -> Any:
    above, below, ar_above, ar_below = sums
    return above / below / (ar_above / ar_below)


def _by_clip(
    compared: Sequence[Compared], columns: Callable[[Compared], Sequence[float]]
) -> list[list[float]]:
    """Columns, each of one number a clip: the sum over its answers."""
    rows: dict[str, list[float]] = {}
    for each in compared:
        numbers = columns(each)
        before = rows.get(each.item.file_name, [0.0] * len(numbers))
        rows[each.item.file_name] = [one + other for one, other in zip(before, numbers, strict=True)]
    return [list(column) for column in zip(*rows.values(), strict=True)]


def _by_kind(kinds: Iterable[str], kept: Callable[[str], Kept | None]) -> dict[str, Kept]:
    return {kind: found for kind in kinds if (found := kept(kind))}


def _texts(each: Compared) -> tuple[str, str]:
    return each.mode.text or "", each.ar.text or ""


def _tokens(answer: TimedText) -> Sequence[object]:
    """What a text repeats: its tokens, or its words where the tokens were not kept."""
    return answer.tokens or words(answer.text or "")


def _change(each: Compared) -> float:
    return (each.mode.log_probability or 0.0) - (each.ar.log_probability or 0.0)


def _average(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
