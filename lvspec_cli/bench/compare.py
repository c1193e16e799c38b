"""Two results beside each other: what changed, and what got worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lvspec_cli.bench.results import Results
from lvspec_cli.figures.answers import ModeResult


@dataclass(frozen=True)
class Change:
    """One figure of one mode in both results. None where it is not known, or the mode could not run."""

    mode: str
    figure: str
    before: float | None
    after: float | None
    regression: bool

    @property
    def share(self) -> float | None:
        """Change as a share of what was before."""
        if self.before is None or self.after is None or self.before == 0:
            return None
        return self.after / self.before - 1


@dataclass(frozen=True)
class Margins:
    """By which share a figure may fall, and the retention by how much (as a share of ar's quality).

    Without labels there is no retention; how likely the target finds the texts is a figure like the others.
    """

    speed: float = 0.05
    retention: float = 0.002


# More is better in each. Tokens a second are shown and not judged: they change with the machine.
_FIGURES = ("speedup", "end-to-end speedup", "mean accepted length", "retention", "likelihood", "tokens/s")
_SHOWN_ONLY = ("tokens/s",)


def compare_results(before: Results, after: Results, margins: Margins) -> tuple[Change, ...]:
    """All figures of all modes of ``before``, then of those that are new in ``after``.

    A mode that is gone, or cannot run any more, is a regression.
    """
    old = {each.variant: each for each in before.modes}
    new = {each.variant: each for each in after.modes}
    return tuple(
        change
        for variant in (*old, *(variant for variant in new if variant not in old))
        for change in _changes(str(variant), old.get(variant), new.get(variant), margins)
    )


def _changes(
    name: str, before: ModeResult | None, after: ModeResult | None, margins: Margins
) -> Iterator[Change]:
    first, second = _figures(before), _figures(after)
    for figure in _FIGURES:
        old, new = first.get(figure), second.get(figure)
        if old is None and new is None:
            continue
        yield Change(name, figure, old, new, _is_worse(figure, old, new, margins))


def _figures(result: ModeResult | None) -> dict[str, float | None]:
    if result is None:
        return {}
    likelihood = result.fidelity.likelihood if result.fidelity else None
    spreads = (result.speedup_vs_ar, result.end_to_end_speedup_vs_ar)
    values = (
        *(spread.median if spread else None for spread in spreads),
        result.mean_accepted_length,
        result.retention.value if result.retention else None,
        likelihood.value if likelihood else None,
        result.tokens_per_s,
    )
    return dict(zip(_FIGURES, values, strict=True))


def _is_worse(figure: str, before: float | None, after: float | None, margins: Margins) -> bool:
    if before is None or figure in _SHOWN_ONLY:
        return False
    if after is None:
        return True
    if figure == "retention":
        return after < before - margins.retention
    return after < before * (1 - margins.speed)


def differing_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Whether two runs are the same run: of each fact in which two dumps of models differ, its name, what it
    was and what it is. What ``after`` does not know decides nothing."""
    for name, value in after.items():
        if before.get(name) != value:
            yield name, before.get(name), value


def differences(before: Results, after: Results) -> Iterator[str]:
    """What was not the same in both runs, in words: their figures may differ for that alone."""
    for part in ("environment", "settings"):
        old, new = (getattr(each, part).model_dump(mode="json") for each in (before, after))
        for name, was, now in differing_fields(old, new):
            yield f"{name}: {_short(was)}, now {_short(now)}"
    if [item.id for item in before.items] != [item.id for item in after.items]:
        yield f"items: {len(before.items)}, now {len(after.items)}, or others"


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
