"""From blocks to the figures of each mode, and by how much the pair's rule beats each: pure functions.

``results.json`` is enough to compute them again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from lvspec_cli.figures.answers import (
    BenchMode,
    Block,
    Contrast,
    Estimate,
    Item,
    Kinds,
    Measurement,
    ModeResult,
    Spread,
    TimedText,
    Variant,
    lower_end,
    surely_kept,
)
from lvspec_cli.figures.costs import costs_of, model_of
from lvspec_cli.figures.fidelity import compare_blocks, fidelity_of, retention_of
from lvspec_cli.figures.intervals import interval_of_sums, median_spread, ratio_of_sums
from lvspec_cli.types import Gamma

MIN_RETENTION = 0.998
# Where nobody knows the right answers: see ``keeps_quality``.
MIN_LIKELIHOOD = 0.9
MORE_REPETITION = 0.01
LEAST_LENGTH = 0.9


@dataclass(frozen=True)
class Measured:
    """All that was measured, as the figures are computed from it."""

    items: Mapping[str, Item]  # by id
    blocks: Sequence[Block]

    def of(self, variant: Variant) -> list[Measurement]:
        """Its answers that did not fail."""
        found = (block.of(variant) for block in self.blocks)
        return [each for each in found if each is not None and each.error is None]

    def clips(self) -> dict[str, list[Block]]:
        """The blocks of each clip."""
        found: dict[str, list[Block]] = defaultdict(list)
        for block in self.blocks:
            found[self.items[block.item].file_name].append(block)
        return dict(found)


def reference_of(measured: Measured, variants: Sequence[Variant]) -> Variant:
    """The plain mode that decodes fastest, ours or transformers': what speedups are held against.

    Where nothing was timed, the first.

    :raises ValueError: none was measured.
    """
    measurable = [each for each in variants if each.mode.is_plain and measured.of(each)]
    timed = [each for each in measurable if _seconds_a_token(measured.of(each))]
    untimed = [each for each in measurable if not any(one.decode_s for one in measured.of(each))]
    plain = timed or untimed
    if not plain:
        raise ValueError("no plain mode was measured")
    best, *others = plain
    for other in others:
        ahead = speedup(measured, other, best)
        if ahead is not None and ahead.median > 1:
            best = other
    return best


def summarise(
    measured: Measured,
    variants: Sequence[Variant],
    settings: Mapping[Variant, Mapping[str, object]],
) -> tuple[Variant, tuple[ModeResult, ...]]:
    """The reference of all speedups, and the figures of every variant in their order."""
    reference = reference_of(measured, variants)
    judge = _quality_reference(measured, variants, reference)
    results = tuple(_result(measured, variant, reference, judge) for variant in variants)
    return reference, tuple(
        each.model_copy(update={"settings": dict(settings.get(each.variant, {}))}) for each in results
    )


def _quality_reference(measured: Measured, variants: Sequence[Variant], reference: Variant) -> Variant:
    """Our own ar where it was run, else transformers'."""
    own = Variant(BenchMode.AR)
    return own if own in variants and measured.of(own) else reference


def _result(measured: Measured, variant: Variant, reference: Variant, judge: Variant) -> ModeResult:
    answers = measured.of(variant)
    errors = [each for block in measured.blocks if (each := block.of(variant)) is not None and each.error]
    result = ModeResult(
        **asdict(variant),
        error=errors[0].error if errors and not answers else None,
        failed=len(errors),
        answers=len(answers),
    )
    if not answers:
        return result
    fidelity = fidelity_of(compare_blocks(measured.items, measured.blocks, variant, judge))
    return result.model_copy(
        update={
            **_speed(measured, variant, reference, answers),
            **_acceptance(measured, variant, answers),
            **_predicted(measured, variant, reference),
            "fidelity": fidelity,
            "retention": fidelity.retention if fidelity else None,
        }
    )


def _speed(
    measured: Measured, variant: Variant, reference: Variant, answers: Sequence[Measurement]
) -> dict[str, object]:
    return {
        "speedup_vs_ar": speedup(measured, variant, reference),
        "end_to_end_speedup_vs_ar": end_to_end_speedup(measured, variant, reference),
        "tokens_per_s": _tokens_a_second(measured, variant),
        "video_s": median(each.video_s for each in answers),
        "prompt_s": median(each.prompt_s for each in answers),
        "prefill_s": median(each.prefill_s for each in answers),
        "decode_s": median(each.decode_s for each in answers),
    }


def speedup(measured: Measured, variant: Variant, reference: Variant) -> Spread | None:
    """Seconds a token of the reference / of the variant: the median over clips.

    A clip's ratio is the median over its repeats, and in a repeat that of all its answers together.
    """
    return median_spread(_ratios(measured, variant, reference, _decode_ratio))


def speedup_over_clips(clips: Iterable[Sequence[tuple[TimedText, TimedText]]]) -> Spread | None:
    """The same of one run: of each clip the answers of a mode, each with that of the reference."""
    timed = ([both for both in pairs if all(map(_is_timed, both))] for pairs in clips)
    return median_spread([_decode_ratio(pairs) for pairs in timed if pairs])


def end_to_end_speedup(measured: Measured, variant: Variant, reference: Variant) -> Spread | None:
    """The same of the whole time of an answer, from the video's file to the last token.

    For the variant this is its time up to the first token and, at its own seconds a token, an answer as long
    as the reference's: a mode gains nothing by saying less.
    """
    return median_spread(_ratios(measured, variant, reference, _end_to_end_ratio))


Both = tuple[Measurement, Measurement]  # of the variant and of the reference, in one block
Ratio = Callable[[Sequence[Both]], float]


def _ratios(measured: Measured, variant: Variant, reference: Variant, ratio: Ratio) -> list[float]:
    """One a clip, of the clips where there is any."""
    found = []
    for blocks in measured.clips().values():
        by_repeat: dict[int, list[Both]] = defaultdict(list)
        for block in blocks:
            ours, theirs = block.of(variant), block.of(reference)
            if ours and theirs and ours.seconds_per_token and theirs.seconds_per_token:
                by_repeat[block.repeat].append((ours, theirs))
        if by_repeat:
            found.append(median(ratio(both) for both in by_repeat.values()))
    return found


def _decode_ratio(both: Sequence[tuple[TimedText, TimedText]]) -> float:
    ours, theirs = (_seconds_a_token(side) for side in zip(*both, strict=True))
    assert ours
    assert theirs
    return theirs / ours


def _end_to_end_ratio(both: Sequence[Both]) -> float:
    ours = sum(_as_long_as(mine, theirs) for mine, theirs in both)
    return sum(theirs.end_to_end_s for _, theirs in both) / ours


def _as_long_as(mine: Measurement, theirs: Measurement) -> float:
    """Seconds of a whole answer, were it as long as the other."""
    step = mine.seconds_per_token or 0.0
    before = mine.end_to_end_s - mine.decode_s
    return before + step * max(0, theirs.output_tokens - mine.first_tokens)


def _is_timed(answer: TimedText) -> bool:
    """Whether it was decoded for some time: the prefill may have given all there is, or nothing was timed."""
    return answer.output_tokens > answer.first_tokens and answer.decode_s > 0


def _seconds_a_token(answers: Iterable[TimedText]) -> float | None:
    """Of decoding, over all of them; None where none was timed."""
    decoded = [each for each in answers if _is_timed(each)]
    tokens = sum(each.output_tokens - each.first_tokens for each in decoded)
    return sum(each.decode_s for each in decoded) / tokens if tokens else None


def _tokens_a_second(measured: Measured, variant: Variant) -> float | None:
    """Of decoding: the median over clips."""
    rates = []
    for blocks in measured.clips().values():
        found = (block.of(variant) for block in blocks)
        seconds = _seconds_a_token(each for each in found if each is not None)
        if seconds:
            rates.append(1 / seconds)
    return median(rates) if rates else None


def _acceptance(measured: Measured, variant: Variant, answers: Sequence[Measurement]) -> dict[str, object]:
    if variant.mode.is_plain:
        return {}
    drafted = sum(each.drafted or 0 for each in answers)
    kinds = Kinds(
        exact=sum(each.accepted_exact for each in answers),
        filler=sum(each.accepted_filler for each in answers),
        shift=sum(each.accepted_shift for each in answers),
        target=sum(each.output_tokens for each in answers) - sum(map(_accepted, answers)),
    )
    length = _mean_accepted_length(measured, variant)
    return {
        "mean_accepted_length": length.value if length else None,
        "mean_accepted_length_interval": length,
        "acceptance_rate": sum(map(_accepted, answers)) / drafted if drafted else None,
        "kinds": kinds,
        "accepted_lengths": dict(
            sorted(Counter(length for each in answers for length in each.accepted_lengths).items())
        ),
    }


def _mean_accepted_length(measured: Measured, variant: Variant) -> Estimate | None:
    sums = []
    for blocks in measured.clips().values():
        found = [each for block in blocks if (each := block.of(variant)) is not None and each.rounds]
        if found:
            tokens = sum(each.output_tokens - each.first_tokens for each in found)
            sums.append((float(tokens), float(sum(each.rounds or 0 for each in found))))
    return ratio_of_sums(*zip(*sums, strict=True)) if sums else None


def _accepted(measured: Measurement) -> int:
    return measured.accepted_exact + measured.accepted_filler + measured.accepted_shift


def _predicted(measured: Measured, variant: Variant, reference: Variant) -> dict[str, object]:
    costs = costs_of(measured.blocks, variant, reference)
    length = _mean_accepted_length(measured, variant)
    if costs is None or length is None:
        return {}
    model = model_of(costs)
    return {
        "c": model.c,
        "v": model.v,
        "o": model.o,
        "predicted_speedup": model.speedup(length.value),
        "costs": costs,
    }


def winner(results: Sequence[ModeResult], least: float = MIN_RETENTION) -> Variant | None:
    """The fastest of those that keep ar's quality (``keeps_quality``); None where none is faster than ar."""
    kept = [
        each
        for each in results
        if each.speedup_vs_ar is not None and not each.mode.is_plain and keeps_quality(each, least)
    ]
    best = max(kept, key=_decoding, default=None)
    if best is None or best.speedup_vs_ar is None or best.speedup_vs_ar.median <= 1:
        return None
    return best.variant


def faster_unshown(results: Sequence[ModeResult], least: float = MIN_RETENTION) -> ModeResult | None:
    """The fastest mode, where it keeps enough as far as is seen and that is not shown yet."""
    best = max(results, key=_decoding, default=None)
    if best is None or best.retention is None or keeps_quality(best, least):
        return None
    return best if best.retention.value >= least and _decoding(best) > 1 else None


def _decoding(result: ModeResult) -> float:
    return result.speedup_vs_ar.median if result.speedup_vs_ar else 0.0


def keeps_quality(result: ModeResult, least: float = MIN_RETENTION) -> bool:
    """Whether a mode is shown to keep ar's quality. One that is not loose says what the target says.

    Of a loose one the lower end of its retention has to be ``least``, of facts and of questions
    (``surely_kept``). Without labels the target judges: at
    the lower end a token of the texts has to be MIN_LIKELIHOOD times as probable to it as one of ar's, and
    the texts may not get there by repeating themselves (share of 4-grams) or by saying less (tokens). That
    finds damage, not a wrong colour: a wrong fact that is told well is likely, too.
    """
    if not result.mode.is_loose:
        return True
    found = result.fidelity
    if result.retention is not None:
        ends = [surely_kept(each) for each in (found.facts, found.questions) if each] if found else []
        return all(end is not None and end >= least for end in ends or [lower_end(result.retention)])
    if found is None or found.likelihood is None:
        return False
    return (
        lower_end(found.likelihood) >= MIN_LIKELIHOOD
        and found.repetition <= found.ar_repetition + MORE_REPETITION
        and found.length >= LEAST_LENGTH * found.ar_length
    )


def contrasts(
    measured: Measured, modes: Sequence[ModeResult], gamma: Gamma | None = None
) -> tuple[Contrast, ...]:
    """The pair's own rule against every other line, each at its best gamma.

    Of the own rule's gammas those count that the other was run with too, where there are any: one that was
    tried with more of them would have an advantage. A rule with a name and one gamma has that for its own;
    the pair's rule stands against it at the one that is the pair's, ``gamma``, and then once more at the
    same, where it was run with that: the first tells two settings apart, the second two rules.
    """
    best = best_of_each(modes)
    own = [each for each in modes if each.variant.name == BenchMode.LVSPEC and each.answers]
    found = []
    for name, other in best.items():
        if own and name != BenchMode.LVSPEC:
            ran = {each.gamma for each in modes if each.variant.name == name}
            if other.label and len(ran) == 1 and gamma is not None:
                ran = {gamma}
            both = [each for each in own if each.gamma in ran] or own
            lines = {best_of_each(both)[BenchMode.LVSPEC]: None}
            if other.label:
                lines |= {each.variant: None for each in own if each.gamma == other.gamma}
            found += [contrast(measured, line, other) for line in lines]
    return tuple(found)


def best_of_each(modes: Sequence[ModeResult]) -> dict[str, Variant]:
    """Of each line that drafts, by name, the gamma that is fastest; untimed, the one that accepts most.

    Gammas that were run on fewer clips do not stand against those that were run on more.
    """

    def rank(each: ModeResult) -> tuple[int, float, float]:
        speed = each.speedup_vs_ar.median if each.speedup_vs_ar else 0.0
        return each.answers, speed, each.mean_accepted_length or 0.0

    found: dict[str, ModeResult] = {}
    for each in modes:
        if each.answers and not each.mode.is_plain:
            name = each.variant.name
            found[name] = max(found.get(name, each), each, key=rank)
    return {name: each.variant for name, each in found.items()}


def contrast(measured: Measured, line: Variant, other: Variant) -> Contrast:
    """One line against another, over the answers that both gave."""
    return Contrast(
        line=str(line),
        other=str(other),
        speed=speedup(measured, line, other),
        accepted_length=_lengths(measured, line, other),
        quality=retention_of(compare_blocks(measured.items, measured.blocks, line, other)),
    )


def _lengths(measured: Measured, line: Variant, other: Variant) -> Estimate | None:
    """Mean accepted length of one / of the other: tokens behind the first / rounds, over all clips."""
    rows = []
    for blocks in measured.clips().values():
        both = [(one, two) for block in blocks if (one := block.of(line)) and (two := block.of(other))]
        counts = [(*_counts(one), *_counts(two)) for one, two in both if one.rounds and two.rounds]
        if counts:
            rows.append([float(sum(column)) for column in zip(*counts, strict=True)])
    columns = list(zip(*rows, strict=True))
    if not all(map(sum, columns)) or not rows:
        return None
    low, high = interval_of_sums(_ratio, columns)
    return Estimate(value=float(_ratio([sum(column) for column in columns])), low=low, high=high)


def _counts(answer: Measurement) -> tuple[int, int]:
    return answer.output_tokens - answer.first_tokens, answer.rounds or 0


def _ratio(sums: Any) -> Any:
    tokens, rounds, other_tokens, other_rounds = sums
    return (tokens / rounds) / (other_tokens / other_rounds)
