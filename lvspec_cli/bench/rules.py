"""Settings of the rule under names of their own: the rule less one of its parts, or whatever a file says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, get_type_hints

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, RootModel, TypeAdapter, create_model

from lvspec_cli.bench.results import BenchMode, Variant
from lvspec_cli.errors import UsageError
from lvspec_cli.registry import Name, read_yaml
from lvspec_cli.types import GREATEST_GAMMA, Gamma, RelevanceName, RuleSettings

NO_LIMIT = 1_000_000  # loose tokens


@dataclass(frozen=True)
class NamedRule:
    """One more line of the report. ``gamma``: where it has its own."""

    name: str
    rule: RuleSettings
    gamma: Gamma | None = None
    mode: BenchMode = BenchMode.LVSPEC

    @property
    def variant(self) -> Variant:
        return Variant(self.mode, self.gamma, label=self.name)


def ablations(rule: RuleSettings) -> tuple[NamedRule, ...]:
    """The rule less one of its parts (DESIGN.md, section 4), or with one that it does not have.

    ``no-anchors``: every token has a filler's margin. ``no-ties``: an anchor has none. ``no-fillers``: every
    token has an anchor's margin. ``no-sentences``: what begins one is a token like any other. ``no-limits``:
    as many loose tokens in a row as there may be. ``no-list``: no limits, and ends, numerals, negations,
    contraries and loops are tokens like any other. ``with-anchors``: what looks at the video has to match.
    ``with-sentences``: so has what begins one. ``with-shift``: a token may come a place or two early or late.
    """
    unlimited = replace(rule, max_loose_run=NO_LIMIT, max_loose_in_window=NO_LIMIT)
    found = {
        "no-anchors": replace(rule, relevance=RelevanceName.PLAUSIBLE),
        "no-ties": replace(rule, anchor_margin=0.0),
        "no-fillers": replace(rule, filler_margin=rule.anchor_margin),
        "no-sentences": replace(rule, sentence_margin=inf),
        "no-shift": replace(rule, shift_window=0),
        "no-limits": unlimited,
        "no-list": replace(unlimited, never_loosely=False),
    }
    if rule.relevance is RelevanceName.PLAUSIBLE:
        found["with-anchors"] = replace(rule, relevance=RelevanceName.ATTENTION, anchor_margin=0.0)
    if rule.sentence_margin > 0:
        found["with-sentences"] = replace(rule, sentence_margin=0.0)
    if rule.shift_window == 0:
        found["with-shift"] = replace(rule, shift_window=2)
    return tuple(NamedRule(name, each) for name, each in found.items() if each != rule)


def controls(rule: RuleSettings) -> tuple[Variant, ...]:
    """Every other relevance with the rule's own thresholds: what ``lvspec tune`` finds for each is fairer."""
    others = (each for each in RelevanceName if each not in (rule.relevance, RelevanceName.NONE))
    return tuple(Variant(BenchMode.LVSPEC, relevance=each) for each in others)


def read_rules(path: Path, rule: RuleSettings) -> tuple[NamedRule, ...]:
    """A YAML file of names, each with what is other than in ``rule``, and if it likes gamma and mode.

    :raises UsageError: with the file, the line and the key that are wrong.
    """
    remedy = f"under each name stand settings of the rule: {', '.join(_ROW.model_fields)}"
    rows = read_yaml(path, _File, "a YAML file of rules", remedy).root
    if not rows:
        raise UsageError(f"{path}: there is no rule in it", "write no-shift: {shift_window: 0}")
    return tuple(_named(name, row, rule) for name, row in rows.items())


def _named(name: str, row: BaseModel, rule: RuleSettings) -> NamedRule:
    given = {key: value for key, value in row.model_dump(exclude_unset=True).items() if value is not None}
    mode, gamma = BenchMode(given.pop("mode", BenchMode.LVSPEC)), given.pop("gamma", None)
    return NamedRule(name, replace(rule, **given), gamma, mode)


_HINTS = get_type_hints(RuleSettings, include_extras=True)
_KEYS: dict[str, Any] = {
    **{field.name: (Optional[_HINTS[field.name]], None) for field in fields(RuleSettings)},  # noqa: UP045
    "gamma": (Annotated[int, Ge(1), Le(GREATEST_GAMMA)] | Literal["auto"] | None, None),
    "mode": (Literal["lvspec", "lvspec-pruned"], "lvspec"),
}
_ROW: Any = create_model("_ROW", __config__=ConfigDict(extra="forbid", frozen=True), **_KEYS)


class _File(RootModel[dict[Name, _ROW]]):
    model_config = ConfigDict(frozen=True)


def rule_fields(rule: RuleSettings) -> dict[str, Any]:
    """A rule as JSON can hold it."""
    found = _RULE.dump_python(rule, mode="json")
    return {name: "Infinity" if value == float("inf") else value for name, value in found.items()}


_RULE = TypeAdapter(RuleSettings)


def as_yaml(rule: RuleSettings) -> dict[str, Any]:
    """A rule as YAML can hold it."""
    return _RULE.dump_python(rule, mode="json")


def changes(rule: RuleSettings, base: RuleSettings) -> dict[str, Any]:
    """What is other in one rule than in another, as YAML can hold it."""
    own, other = as_yaml(rule), as_yaml(base)
    return {name: value for name, value in own.items() if value != other[name]}


def rules_of(named: Sequence[NamedRule]) -> Mapping[str, RuleSettings]:
    """By name.

    :raises UsageError: two have the same one.
    """
    found: dict[str, RuleSettings] = {}
    for each in named:
        if each.name in found:
            raise UsageError(f"two rules have the name {each.name!r}", "give one of them another")
        found[each.name] = each.rule
    return found
