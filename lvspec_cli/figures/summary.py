"""Blocks summarised as figures of each mode, and the pair's rule compared with every other line.

Pure functions: ``results.json`` is enough to compute the figures again. The speedup predicted from the costs
of a round (docs/design.md, "What a round costs") is

    speedup = t / (gamma * c + v + o)

t is the mean accepted length; c is a draft step, v a verification and o the overhead of a round, in steps of
the reference (the faster of our ``ar`` and transformers'). ``gamma`` is the number of tokens actually drafted
in a round, which is smaller at the end of an answer.

c, v and o are measured on separate answers whose passes are timed; t and the reference's step come from the
ordinary measurements. So the prediction is independent of the observed speedup.
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
    Costs,
    Estimate,
    Fidelity,
    Item,
    Kinds,
    Measurement,
    ModeResult,
    Profile,
    Spread,
    TimedText,
    Variant,
    lower_bound,
    retention_lower_bound,
)
from lvspec_cli.figures.fidelity import compare_blocks, fidelity_of, retention_of
from lvspec_cli.figures.statistics import interval_of_sums, median_spread, ratio_of_sums
from lvspec_cli.types import Gamma


def costs_of(blocks: Sequence[Block], variant: Variant, reference: Variant) -> Costs | None:
    """Seconds of each part of a round: medians over a variant's profiles. None without profiles.

    Not means: other work on the machine sometimes makes an answer several times slower.
    """
    profiles: list[Profile] = []
    steps: list[float] = []
    for block in blocks:
        profile = next((profile for profile in block.profiles if profile.variant == variant), None)
        plain = block.of(reference)
        if profile is not None and profile.draft_steps and plain is not None and plain.seconds_per_token:
            profiles.append(profile)
            steps.append(plain.seconds_per_token)
    if not profiles:
        return None
    return Costs(
        answers=len(profiles),
        draft_step_s=median(profile.draft_s / profile.draft_steps for profile in profiles),
        verification_s=median(profile.verification_s / profile.rounds for profile in profiles),
        overhead_s=median(profile.overhead_s / profile.rounds for profile in profiles),
        drafted_a_round=sum(profile.draft_steps for profile in profiles)
        / sum(profile.rounds for profile in profiles),
        ar_step_s=median(steps),
    )


@dataclass(frozen=True)
class CostModel:
    """The costs of a round in steps of the reference."""

    c: float
    v: float
    o: float
    drafted: float  # tokens a round

    def speedup(self, mean_accepted_length: float) -> float:
        """The predicted speedup at a mean accepted length."""
        return mean_accepted_length / (self.drafted * self.c + self.v + self.o)


def cost_model(costs: Costs) -> CostModel:
    """Costs in steps of the reference."""
    step = costs.ar_step_s
    return CostModel(
        c=costs.draft_step_s / step,
        v=costs.verification_s / step,
        o=costs.overhead_s / step,
        drafted=costs.drafted_a_round,
    )


MIN_RETENTION = 0.998
# For clips without known answers: see ``is_within_freedom``.
MOST_LOSS = 1.5  # times the control's
MORE_REPETITION = 0.01
LEAST_LENGTH = 0.9


@dataclass(frozen=True)
class Measured:
    """All measurements: what the figures are computed from."""

    items: Mapping[str, Item]  # by id
    blocks: Sequence[Block]

    def of(self, variant: Variant) -> list[Measurement]:
        """The variant's answers that did not fail."""
        answers = (block.of(variant) for block in self.blocks)
        return [answer for answer in answers if answer is not None and answer.error is None]

    def clips(self) -> dict[str, list[Block]]:
        """The blocks of each clip, by its file name."""
        blocks: dict[str, list[Block]] = defaultdict(list)
        for block in self.blocks:
            blocks[self.items[block.item].file_name].append(block)
        return dict(blocks)


def reference_of(measured: Measured, variants: Sequence[Variant]) -> Variant:
    """The plain mode that decodes fastest, ours or transformers': the baseline of all speedups.

    If nothing was timed, the first plain mode.

    :raises ValueError: no plain mode was measured.
    """
    answers = {variant: measured.of(variant) for variant in variants if variant.mode.is_plain}
    timed = [variant for variant in answers if _seconds_a_token(answers[variant])]
    untimed = [
        variant
        for variant in answers
        if answers[variant] and not any(answer.decode_s for answer in answers[variant])
    ]
    plain = timed or untimed
    if not plain:
        raise ValueError("no plain mode was measured")
    best, *others = plain
    for candidate in others:
        ratio = speedup(measured, candidate, best)
        if ratio is not None and ratio.median > 1:
            best = candidate
    return best


def summarise(
    measured: Measured,
    variants: Sequence[Variant],
    settings: Mapping[Variant, Mapping[str, object]],
) -> tuple[Variant, tuple[ModeResult, ...]]:
    """The reference of all speedups, and the figures of every variant in their order."""
    reference = reference_of(measured, variants)
    quality_reference = _quality_reference(measured, variants, reference)
    results = (_result(measured, variant, reference, quality_reference) for variant in variants)
    return reference, tuple(
        result.model_copy(update={"settings": dict(settings.get(result.variant, {}))}) for result in results
    )


def _quality_reference(measured: Measured, variants: Sequence[Variant], reference: Variant) -> Variant:
    """Our own ar where it was run, otherwise the reference of the speedups."""
    own = Variant(BenchMode.AR)
    return own if own in variants and measured.of(own) else reference


def _result(
    measured: Measured, variant: Variant, reference: Variant, quality_reference: Variant
) -> ModeResult:
    answers = measured.of(variant)
    errors = [answer.error for block in measured.blocks if (answer := block.of(variant)) and answer.error]
    result = ModeResult(
        **asdict(variant),
        error=errors[0] if errors and not answers else None,
        failed=len(errors),
        answers=len(answers),
    )
    if not answers:
        return result
    compared = (
        compare_blocks(measured.items, measured.blocks, mode, quality_reference)
        for mode in (variant, Variant(BenchMode.CONTROL))
    )
    fidelity = fidelity_of(*compared)
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
        "video_s": median(answer.video_s for answer in answers),
        "prompt_s": median(answer.prompt_s for answer in answers),
        "prefill_s": median(answer.prefill_s for answer in answers),
        "decode_s": median(answer.decode_s for answer in answers),
    }


def speedup(measured: Measured, variant: Variant, reference: Variant) -> Spread | None:
    """Decoding seconds a token of the reference / those of the variant: the median over clips.

    A clip's ratio is the median over its repeats; a repeat's ratio is that of all its answers together.
    """
    return median_spread(_ratios(measured, variant, reference, _decode_ratio))


def speedup_over_clips(clips: Iterable[Sequence[tuple[TimedText, TimedText]]]) -> Spread | None:
    """The decoding speedup of a single run.

    :param clips: for each clip, pairs of the mode's answer and the reference's answer.
    """
    timed = ([pair for pair in pairs if all(map(_is_timed, pair))] for pairs in clips)
    return median_spread([_decode_ratio(pairs) for pairs in timed if pairs])


def end_to_end_speedup(measured: Measured, variant: Variant, reference: Variant) -> Spread | None:
    """The speedup of an answer's whole time, from the video's file to the last token.

    The variant's time is scaled to an answer as long as the reference's, at its own seconds a token: a
    shorter answer is no advantage.
    """
    return median_spread(_ratios(measured, variant, reference, _end_to_end_ratio))


AnswerPair = tuple[Measurement, Measurement]  # of the variant and of the reference, in one block
Ratio = Callable[[Sequence[AnswerPair]], float]


def _ratios(measured: Measured, variant: Variant, reference: Variant, ratio: Ratio) -> list[float]:
    """One ratio for each clip on which both variants were timed."""
    ratios = []
    for blocks in measured.clips().values():
        by_repeat: dict[int, list[AnswerPair]] = defaultdict(list)
        for block in blocks:
            answer, baseline = block.of(variant), block.of(reference)
            if answer and baseline and answer.seconds_per_token and baseline.seconds_per_token:
                by_repeat[block.repeat].append((answer, baseline))
        if by_repeat:
            ratios.append(median(map(ratio, by_repeat.values())))
    return ratios


def _decode_ratio(pairs: Sequence[tuple[TimedText, TimedText]]) -> float:
    seconds, baseline_seconds = (_seconds_a_token(answers) for answers in zip(*pairs, strict=True))
    assert seconds
    assert baseline_seconds
    return baseline_seconds / seconds


def _end_to_end_ratio(pairs: Sequence[AnswerPair]) -> float:
    seconds = sum(_scaled_seconds(answer, baseline) for answer, baseline in pairs)
    return sum(baseline.end_to_end_s for _, baseline in pairs) / seconds


def _scaled_seconds(answer: Measurement, baseline: Measurement) -> float:
    """The answer's end-to-end seconds if it were as long as the baseline's answer."""
    step = answer.seconds_per_token or 0.0
    before_decoding = answer.end_to_end_s - answer.decode_s
    return before_decoding + step * max(0, baseline.output_tokens - answer.first_tokens)


def _is_timed(answer: TimedText) -> bool:
    """Whether it has tokens after the prefill and the time of their decoding."""
    return answer.output_tokens > answer.first_tokens and answer.decode_s > 0


def _seconds_a_token(answers: Iterable[TimedText]) -> float | None:
    """Decoding seconds / decoded tokens, over all timed answers; None without any."""
    timed = [answer for answer in answers if _is_timed(answer)]
    tokens = sum(answer.output_tokens - answer.first_tokens for answer in timed)
    return sum(answer.decode_s for answer in timed) / tokens if tokens else None


def _tokens_a_second(measured: Measured, variant: Variant) -> float | None:
    """Decoded tokens a second: the median over clips."""
    clips = measured.clips().values()
    seconds = [
        _seconds_a_token(answer for block in blocks if (answer := block.of(variant))) for blocks in clips
    ]
    rates = [1 / clip_seconds for clip_seconds in seconds if clip_seconds]
    return median(rates) if rates else None


def _acceptance(measured: Measured, variant: Variant, answers: Sequence[Measurement]) -> dict[str, object]:
    if not variant.mode.drafts:
        return {}
    drafted = sum(answer.drafted or 0 for answer in answers)
    exact = sum(answer.accepted_exact for answer in answers)
    filler = sum(answer.accepted_filler for answer in answers)
    shift = sum(answer.accepted_shift for answer in answers)
    accepted, output = exact + filler + shift, sum(answer.output_tokens for answer in answers)
    kinds = Kinds(exact=exact, filler=filler, shift=shift, target=output - accepted)
    lengths = Counter(length for answer in answers for length in answer.accepted_lengths)
    length = _mean_accepted_length(measured, variant)
    return {
        "mean_accepted_length": length.value if length else None,
        "mean_accepted_length_interval": length,
        "acceptance_rate": accepted / drafted if drafted else None,
        "kinds": kinds,
        "accepted_lengths": dict(sorted(lengths.items())),
    }


def _mean_accepted_length(measured: Measured, variant: Variant) -> Estimate | None:
    sums = []
    for blocks in measured.clips().values():
        counts = [_counts(answer) for block in blocks if (answer := block.of(variant)) and answer.rounds]
        if counts:
            sums.append([float(sum(column)) for column in zip(*counts, strict=True)])
    return ratio_of_sums(*zip(*sums, strict=True)) if sums else None


def _predicted(measured: Measured, variant: Variant, reference: Variant) -> dict[str, object]:
    costs = costs_of(measured.blocks, variant, reference)
    length = _mean_accepted_length(measured, variant)
    if costs is None or length is None:
        return {}
    model = cost_model(costs)
    return {
        "c": model.c,
        "v": model.v,
        "o": model.o,
        "predicted_speedup": model.speedup(length.value),
        "costs": costs,
    }


def winner(results: Sequence[ModeResult], min_retention: float = MIN_RETENTION) -> Variant | None:
    """The fastest mode, if it is proven to keep ar's quality. None where a faster one may keep it, too."""
    best = leader(results, min_retention)
    return best.variant if best is not None and keeps_quality(best, min_retention) else None


def leader(results: Sequence[ModeResult], min_retention: float = MIN_RETENTION) -> ModeResult | None:
    """The fastest mode that is faster than ar and keeps its quality, as far as was measured.

    Either it is proven to (``keeps_quality``), or its measured retention suffices and its interval, or the
    number of facts, does not prove it yet.
    """

    def suffices(result: ModeResult) -> bool:
        measured = result.retention.value if result.retention is not None else 0.0
        return measured >= min_retention or keeps_quality(result, min_retention)

    faster = [result for result in results if result.mode.drafts and median_speedup(result) > 1]
    return max(filter(suffices, faster), key=median_speedup, default=None)


def median_speedup(result: ModeResult) -> float:
    """Of decoding; 0 where it was not timed."""
    return result.speedup_vs_ar.median if result.speedup_vs_ar else 0.0


def keeps_quality(result: ModeResult, min_retention: float = MIN_RETENTION) -> bool:
    """Whether a mode is proven to keep ar's quality. A mode that is not loose gives the target's own text.

    For a loose mode with labels, the lower bounds of the retention of facts and of answers
    (``retention_lower_bound``) must reach ``min_retention``.

    Without labels the control decides (``is_within_freedom``).
    """
    if not result.mode.is_loose:
        return True
    fidelity = result.fidelity
    if result.retention is not None:
        qualities = (fidelity.facts, fidelity.questions) if fidelity else ()
        bounds = [retention_lower_bound(quality) for quality in qualities if quality]
        bounds = bounds or [lower_bound(result.retention)]
        return all(bound is not None and bound >= min_retention for bound in bounds)
    return fidelity is not None and is_within_freedom(fidelity, min_retention)


def is_within_freedom(fidelity: Fidelity, min_retention: float) -> bool:
    """Whether a mode's texts are as near to ar's as those of the control, which says how far the target's own
    second choices lead away from them.

    At the lower bound they keep at least ``min_retention`` of the content words that the control keeps. And
    they are not bought by drift: no more loss a token than ``MOST_LOSS`` times the control's, no more
    repetition than the greater of ar's and the control's, and no shorter texts. A wrong fact among many right
    words is not detected.
    """
    freedom = fidelity.freedom
    if freedom is None:
        return False
    loss, most = fidelity.loss_per_token, freedom.control_loss
    return (
        lower_bound(freedom.content) >= min_retention
        and (loss is None or most is None or loss <= MOST_LOSS * most)
        and fidelity.repetition <= max(fidelity.ar_repetition, freedom.control_repetition) + MORE_REPETITION
        and fidelity.length >= LEAST_LENGTH * min(fidelity.ar_length, freedom.control_length)
    )


def contrasts(
    measured: Measured, modes: Sequence[ModeResult], gamma: Gamma | None = None
) -> tuple[Contrast, ...]:
    """The pair's own rule against every other line, each at its best gamma.

    Both lines are compared at gammas that both were run with, if there are any; otherwise the line with more
    gammas would have an unfair choice. A named rule with a single gamma is compared twice: with the pair's
    rule at the pair's gamma (two settings), and at the named rule's gamma if the pair's rule was run with it
    (two rules).

    :param gamma: the pair's own.
    """
    own = [mode for mode in modes if mode.variant.name == BenchMode.LVSPEC and mode.answers]
    if not own:
        return ()
    results = []
    for name, other in best_gammas(modes).items():
        if name == BenchMode.LVSPEC:
            continue
        gammas = {mode.gamma for mode in modes if mode.variant.name == name}
        if other.label and len(gammas) == 1 and gamma is not None:
            gammas = {gamma}
        comparable = [mode for mode in own if mode.gamma in gammas] or own
        lines = [best_gammas(comparable)[BenchMode.LVSPEC]]
        if other.label:
            lines += [mode.variant for mode in own if mode.gamma == other.gamma]
        results += [contrast(measured, line, other) for line in dict.fromkeys(lines)]
    return tuple(results)


def best_gammas(modes: Sequence[ModeResult]) -> dict[str, Variant]:
    """The fastest gamma of each line that drafts, by the line's name; if untimed, that which accepts most.

    Gammas that were run on fewer clips than the line's others are left out.
    """

    def rank(result: ModeResult) -> tuple[int, float, float]:
        return result.answers, median_speedup(result), result.mean_accepted_length or 0.0

    best: dict[str, ModeResult] = {}
    for result in modes:
        if result.answers and result.mode.drafts:
            name = result.variant.name
            best[name] = max(best.get(name, result), result, key=rank)
    return {name: result.variant for name, result in best.items()}


def contrast(measured: Measured, line: Variant, other: Variant) -> Contrast:
    """One line of the report against another, over the items that both answered."""
    return Contrast(
        line=str(line),
        other=str(other),
        speed=speedup(measured, line, other),
        accepted_length=_lengths(measured, line, other),
        quality=retention_of(compare_blocks(measured.items, measured.blocks, line, other)),
    )


def _lengths(measured: Measured, line: Variant, other: Variant) -> Estimate | None:
    """Mean accepted length of ``line`` / that of ``other``, over all clips."""
    rows = []
    for blocks in measured.clips().values():
        pairs = [(a, b) for block in blocks if (a := block.of(line)) and (b := block.of(other))]
        counts = [(*_counts(a), *_counts(b)) for a, b in pairs if a.rounds and b.rounds]
        if counts:
            rows.append([float(sum(column)) for column in zip(*counts, strict=True)])
    columns = list(zip(*rows, strict=True))
    if not all(map(sum, columns)) or not rows:
        return None
    low, high = interval_of_sums(_ratio, columns)
    return Estimate(value=float(_ratio([sum(column) for column in columns])), low=low, high=high)


def _counts(answer: Measurement) -> tuple[int, int]:
    """Tokens after the prefill, and rounds."""
    return answer.output_tokens - answer.first_tokens, answer.rounds or 0


def _ratio(sums: Any) -> Any:
    tokens, rounds, other_tokens, other_rounds = sums
    return (tokens / rounds) / (other_tokens / other_rounds)
