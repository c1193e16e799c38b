"""The pair's own rule against every other line of the report, clip by clip: by how much it beats them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lvspec_cli.bench.fidelity import compare_blocks, retention_of
from lvspec_cli.bench.intervals import interval_of_sums
from lvspec_cli.bench.results import BenchMode, Contrast, Estimate, Measurement, ModeResult, Variant
from lvspec_cli.bench.summary import Measured, speedup
from lvspec_cli.types import Gamma


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
