"""The quality of a mode's answers compared with those of ``ar``.

Facts and right answers, similarity of the texts, and the target's own log probability of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lvspec_cli.demo.facts import FACT_KINDS
from lvspec_cli.demo.scenes import scene_from_dict
from lvspec_cli.demo.texts import Question
from lvspec_cli.figures.answers import (
    Block,
    Estimate,
    Fidelity,
    Freedom,
    Item,
    RelativeQuality,
    TimedText,
    Variant,
    lowest_retention,
)
from lvspec_cli.figures.labels import (
    Judgement,
    Label,
    Reference,
    chrf,
    content_kept,
    judge_text,
    repetition,
    rouge_l,
    same_answer,
    words,
)
from lvspec_cli.figures.statistics import interval_of_sums, ratio_of_sums

SHORT_WORDS = 5  # the most words of a short answer


def label_of(item: Item) -> Label | None:
    """What an item holds about its right answer; None if nothing is known."""
    if item.scene is not None:
        return scene_from_dict(item.scene)
    if item.any_of:
        return Question(item.kind or "", item.prompt, item.reference or "", item.any_of, item.none_of)
    if item.reference is not None or item.choices:
        return Reference(item.reference, item.choices)
    return None


@dataclass(frozen=True)
class Comparison:
    """A mode's answer to one item and the answer of ``ar`` to the same item."""

    item: Item
    mode: TimedText
    ar: TimedText

    @cached_property
    def judgements(self) -> tuple[Judgement, Judgement]:
        """Both answers, the mode's first, judged by the item's label."""
        label = label_of(self.item)
        return judge_text(self.mode.text or "", label), judge_text(self.ar.text or "", label)

    @property
    def has_facts(self) -> bool:
        """Whether it is a caption of a clip whose facts are known."""
        return bool(self.judgements[0].facts)

    @property
    def is_question(self) -> bool:
        """Whether it is a question whose right answer is known."""
        return self.judgements[0].right is not None

    @property
    def is_scored(self) -> bool:
        """Whether the target has scored both texts."""
        return None not in (self.mode.log_probability, self.ar.log_probability)

    @property
    def log_probability_change(self) -> float:
        """Nats a token, the mode's minus that of ``ar``."""
        return (self.mode.log_probability or 0.0) - (self.ar.log_probability or 0.0)

    @property
    def texts(self) -> tuple[str, str]:
        return self.mode.text or "", self.ar.text or ""

    @property
    def is_short(self) -> bool:
        """Whether the two answers either agree or differ: labelled, multiple-choice, or of few words."""
        item = self.item
        return (
            bool(item.choices or item.any_of or item.reference)
            or len(words(self.ar.text or "")) <= SHORT_WORDS
        )

    @property
    def is_same_answer(self) -> bool:
        """Whether both take the same choice; if neither takes one, whether both say the same words."""
        choice, ar_choice = (judgement.choice for judgement in self.judgements)
        if choice is not None or ar_choice is not None:
            return choice == ar_choice
        return same_answer(*self.texts)


def compare_blocks(
    items: Mapping[str, Item], blocks: Iterable[Block], variant: Variant, reference: Variant
) -> list[Comparison]:
    """For each item, the variant's first answer and the reference's answer of the same block."""
    comparisons: dict[str, Comparison] = {}
    for block in blocks:
        mode, ar = block.of(variant), block.of(reference)
        if block.item in comparisons or mode is None or ar is None or mode.error or ar.error:
            continue
        comparisons[block.item] = Comparison(items[block.item], mode, ar)
    return list(comparisons.values())


def fidelity_of(comparisons: Sequence[Comparison], controls: Sequence[Comparison] = ()) -> Fidelity | None:
    """All quality figures of one mode; None where nothing was compared.

    :param controls: the control's answers, compared with those of ``ar``, too.

    Intervals are over clips (``figures.statistics``): a resample takes all answers of a clip, the mode's and
    those of ``ar``, or none of them.
    """
    if not comparisons:
        return None
    captions = [comparison for comparison in comparisons if comparison.has_facts]
    questions = [comparison for comparison in comparisons if comparison.is_question]
    scored = [comparison for comparison in comparisons if comparison.is_scored]
    short = [comparison for comparison in comparisons if comparison.is_short]

    def mean(chosen: Sequence[Comparison], value: Callable[[Comparison], float | None]) -> Estimate | None:
        rows = _by_clip(chosen, lambda comparison: (value(comparison) or 0.0, 1))
        return ratio_of_sums(*rows) if rows else None

    def quality_of_kind(kind: str) -> RelativeQuality | None:
        return answer_quality([question for question in questions if question.item.kind == kind])

    return Fidelity(
        answers=len(comparisons),
        clips=len({comparison.item.file_name for comparison in comparisons}),
        facts=fact_quality(captions, "all"),
        facts_by_kind=_by_kind(FACT_KINDS, lambda kind: fact_quality(captions, kind)),
        questions=answer_quality(questions),
        questions_by_kind=_by_kind(
            sorted({question.item.kind for question in questions if question.item.kind}), quality_of_kind
        ),
        log_probability=mean(scored, lambda comparison: comparison.mode.log_probability),
        ar_log_probability=mean(scored, lambda comparison: comparison.ar.log_probability),
        log_probability_change=mean(scored, lambda comparison: comparison.log_probability_change),
        content_kept=_content_kept(comparisons),
        loss_per_token=_loss_per_token([comparison.mode for comparison in comparisons]),
        freedom=freedom_of(comparisons, controls),
        chrf=mean(comparisons, lambda comparison: chrf(*comparison.texts)),
        rouge_l=mean(comparisons, lambda comparison: rouge_l(*comparison.texts)),
        identical=mean(comparisons, lambda comparison: comparison.mode.text == comparison.ar.text),
        same_answers=mean(short, lambda comparison: comparison.is_same_answer),
        short_answers=len(short),
        repetition=_average(repetition(_tokens(comparison.mode)) for comparison in comparisons),
        ar_repetition=_average(repetition(_tokens(comparison.ar)) for comparison in comparisons),
        length=_average(comparison.mode.output_tokens for comparison in comparisons),
        ar_length=_average(comparison.ar.output_tokens for comparison in comparisons),
    )


def retention_of(comparisons: Sequence[Comparison]) -> Estimate | None:
    """``Fidelity.retention``, without computing the other figures."""
    captions = [comparison for comparison in comparisons if comparison.has_facts]
    questions = [comparison for comparison in comparisons if comparison.is_question]
    return lowest_retention(fact_quality(captions, "all"), answer_quality(questions))


def combined_quality(comparisons: Sequence[Comparison]) -> RelativeQuality | None:
    """Facts and answers in one F1: a question counts as one more fact to state.

    With few clips the two together have a narrower interval than either alone.
    """

    def counts(comparison: Comparison) -> tuple[float, ...]:
        if comparison.is_question:
            mode, ar = (2.0 * bool(judgement.right) for judgement in comparison.judgements)
            return mode, 2, ar, 2
        return _fact_counts(comparison, "all")

    labelled = [comparison for comparison in comparisons if comparison.is_question or comparison.has_facts]
    expected = sum(
        1 if comparison.is_question else comparison.judgements[1].facts["all"].expected
        for comparison in labelled
    )
    return _relative_quality(_by_clip(labelled, counts), expected)


def _content_kept(comparisons: Sequence[Comparison]) -> Estimate | None:
    """The share of the content words of ``ar``'s texts that the mode's texts have, too."""
    rows = _by_clip(comparisons, lambda comparison: content_kept(*comparison.texts))
    return ratio_of_sums(*rows) if rows and sum(rows[1]) else None


def freedom_of(comparisons: Sequence[Comparison], controls: Sequence[Comparison]) -> Freedom | None:
    """A mode beside the control, over the items that both answered; None where there are none.

    The interval of the ratio is over clips, paired.
    """
    by_item = {control.item.id: control for control in controls}
    pairs = [(both, by_item[both.item.id]) for both in comparisons if both.item.id in by_item]
    words_of = {
        both.item.id: (*content_kept(*both.texts), *content_kept(*control.texts)) for both, control in pairs
    }
    rows = _by_clip([both for both, _ in pairs], lambda both: words_of[both.item.id])
    content = _relative_quality(rows, len(pairs))
    if content is None or content.retention is None:
        return None
    answers = [control.mode for _, control in pairs]
    return Freedom(
        content=content.retention,
        control_content=content.ar,
        control_loss=_loss_per_token(answers),
        control_repetition=_average(repetition(_tokens(answer)) for answer in answers),
        control_length=_average(answer.output_tokens for answer in answers),
    )


def _loss_per_token(answers: Sequence[TimedText]) -> float | None:
    """Nats a token over all answers; None where it is not known of all."""
    losses = [answer.loss for answer in answers if answer.loss is not None]
    tokens = sum(answer.output_tokens for answer in answers)
    return sum(losses) / tokens if tokens and len(losses) == len(answers) else None


def fact_quality(captions: Sequence[Comparison], kind: str) -> RelativeQuality | None:
    """F1 of one kind of fact (``all``: of every kind), micro-averaged: 2 right / (stated + expected).

    :param captions: answers with facts to find only.
    :returns: None where facts of this kind are neither expected nor stated.
    """
    expected = sum(caption.judgements[1].facts[kind].expected for caption in captions)
    rows = _by_clip(captions, lambda caption: _fact_counts(caption, kind))
    quality = _relative_quality(rows, expected)
    lost = sum(_lost_facts(caption, kind) for caption in captions)
    return quality and quality.model_copy(update={"lost": lost})


def _lost_facts(caption: Comparison, kind: str) -> int:
    """How many more facts of a kind ``ar`` has right; of all kinds, each by itself."""
    mode, ar = (judgement.facts for judgement in caption.judgements)
    kinds = FACT_KINDS if kind == "all" else (kind,)
    return sum(max(0, ar[each].found_right - mode[each].found_right) for each in kinds)


def _fact_counts(caption: Comparison, kind: str) -> tuple[float, ...]:
    mode, ar = (judgement.facts[kind] for judgement in caption.judgements)
    return 2 * mode.found_right, mode.found + mode.expected, 2 * ar.found_right, ar.found + ar.expected


def answer_quality(questions: Sequence[Comparison]) -> RelativeQuality | None:
    """Accuracy: the share of questions answered right, of those whose right answer is known."""

    def counts(question: Comparison) -> tuple[float, float, float, float]:
        mode, ar = (bool(judgement.right) for judgement in question.judgements)
        return mode, 1, ar, 1

    quality = _relative_quality(_by_clip(questions, counts), len(questions))
    lost = sum(mode < ar for mode, _, ar, _ in map(counts, questions))
    return quality and quality.model_copy(update={"lost": lost})


def _relative_quality(rows: list[list[float]], count: int) -> RelativeQuality | None:
    """A ratio of sums over clips for the mode and for ar, and the ratio of the two.

    :param rows: (4, clips): numerators and denominators of the mode, then of ar.
    """
    sums = [sum(row) for row in rows]
    if not rows or not sums[1] or not sums[3]:
        return None
    mode, ar = sums[0] / sums[1], sums[2] / sums[3]
    if not ar:
        return RelativeQuality(mode=mode, ar=ar, count=count, retention=None)
    if rows[:2] == rows[2:]:  # exact modes: nothing varies
        low, high = (1.0, 1.0) if len(rows[0]) > 1 else (None, None)
    else:
        low, high = interval_of_sums(_retention, rows)
    retention = Estimate(value=mode / ar, low=low, high=high)
    return RelativeQuality(mode=mode, ar=ar, count=count, retention=retention)


def _retention(sums: Any) -> Any:
    numerator, denominator, ar_numerator, ar_denominator = sums
    return numerator / denominator / (ar_numerator / ar_denominator)


def _by_clip(
    comparisons: Sequence[Comparison], columns: Callable[[Comparison], Sequence[float]]
) -> list[list[float]]:
    """(columns, clips): each column summed over the answers of a clip. Empty without comparisons."""
    sums: dict[str, list[float]] = {}
    for comparison in comparisons:
        values = columns(comparison)
        clip_sums = sums.get(comparison.item.file_name, [0.0] * len(values))
        sums[comparison.item.file_name] = [a + b for a, b in zip(clip_sums, values, strict=True)]
    return [list(column) for column in zip(*sums.values(), strict=True)]


def _by_kind(
    kinds: Iterable[str], quality_of: Callable[[str], RelativeQuality | None]
) -> dict[str, RelativeQuality]:
    return {kind: quality for kind in kinds if (quality := quality_of(kind))}


def _tokens(answer: TimedText) -> Sequence[object]:
    """The units in which repetition is counted: tokens, or words where the tokens were not stored."""
    return answer.tokens or words(answer.text or "")


def _average(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
