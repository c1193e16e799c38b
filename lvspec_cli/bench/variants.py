"""The lines of a report: what ``--modes``, ``--gamma``, ``--ablate`` and ``--variants`` name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, get_type_hints

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, RootModel, TypeAdapter, create_model

from lvspec_cli.errors import UsageError
from lvspec_cli.figures.answers import BenchMode, Variant
from lvspec_cli.pairs.registry import Name, read_yaml
from lvspec_cli.types import (
    GREATEST_GAMMA,
    DecodeSettings,
    Gamma,
    Mode,
    RelevanceName,
    RuleSettings,
    read_gamma,
)

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
    """The rule less one of its parts (docs/design.md, "The rule"), or with one that it does not have.

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


# ar first: it is what the others are held against, and decides whether a clip can be measured at all.
ALL_MODES = tuple(map(str, BenchMode))


_OWN = {
    BenchMode.AR: Mode.AR,
    BenchMode.EXACT: Mode.EXACT,
    BenchMode.EXACT_PRUNED: Mode.EXACT,
    BenchMode.LVSPEC: Mode.LVSPEC,
    BenchMode.LVSPEC_PRUNED: Mode.LVSPEC,
}


def parse_modes(text: str) -> tuple[Variant, ...]:
    """Modes with commas between them, each once; ``lvspec:random`` is the rule with another relevance.

    :raises UsageError: a word is no mode, or nothing among them goes token by token as ``ar`` does.
    """
    found = tuple(dict.fromkeys(_parse_mode(word.strip()) for word in text.split(",") if word.strip()))
    if not any(variant.mode.is_plain for variant in found):
        raise UsageError("--modes has nothing to compare with", "add ar or hf-ar")
    return found


def _parse_mode(word: str) -> Variant:
    name, colon, scheme = word.partition(":")
    if name not in ALL_MODES:
        raise UsageError(f"--modes does not know {name!r}", f"choose among {', '.join(ALL_MODES)}")
    mode = BenchMode(name)
    if not colon:
        return Variant(mode)
    if not mode.is_loose:
        raise UsageError(f"--modes {word}: only loose modes have a relevance", "write lvspec:random")
    if scheme not in list(RelevanceName):
        raise UsageError(
            f"--modes {word}: there is no relevance {scheme!r}", f"choose among {', '.join(RelevanceName)}"
        )
    return Variant(mode, relevance=RelevanceName(scheme))


def parse_gammas(text: str) -> tuple[Gamma, ...]:
    """Numbers and ``auto`` with commas between them, each once, in ascending order.

    :raises UsageError: one is neither, or there is none.
    """
    remedy = "write --gamma auto,3,5,8"
    try:
        found = {read_gamma(word.strip()) for word in text.split(",") if word.strip()}
    except ValueError as error:
        raise UsageError(f"--gamma: {error}", remedy) from None
    if not found:
        raise UsageError(f"--gamma {text!r} names none", remedy)
    return tuple(sorted(found, key=gamma_order))


def gamma_order(gamma: Gamma) -> float:
    """``auto`` stands behind all numbers."""
    return float("inf") if gamma == "auto" else float(gamma)


def variants_of(modes: Sequence[Variant], gammas: Sequence[Gamma]) -> tuple[Variant, ...]:
    """Every mode with every gamma, unless it has its own; a plain mode has none.

    ``hf-assisted`` is run with each number as well, and once as transformers itself would do it.
    """
    found: list[Variant] = []
    for mode in modes:
        own = mode.gamma is not None
        if own or mode.mode.is_plain or mode.mode is BenchMode.HF_ASSISTED:
            found.append(mode)
        if not own and not mode.mode.is_plain:
            peer = mode.mode is BenchMode.HF_ASSISTED
            found += [replace(mode, gamma=gamma) for gamma in gammas if not (peer and gamma == "auto")]
    return tuple(found)


def settings_of(
    variant: Variant, base: DecodeSettings, draft_keep: float, rules: Mapping[str, RuleSettings] | None = None
) -> DecodeSettings:
    """How one of our own variants decodes.

    Greedy, and without the guard against repetition, so that every mode and peer has the same budget of
    tokens: a loop shows in the fidelity, not as a short answer. Without falling back: what a mode costs is
    what is asked.

    :param draft_keep: share of the video's tokens that the draft sees in the pruned modes.
    :param rules: of variants with a label, by that.
    """
    if variant.mode.is_peer:
        raise ValueError(f"{variant.mode} is not one of our own modes")
    settings = replace(base, mode=_OWN[variant.mode], temperature=0.0, repetition_guard=False, fallback=False)
    if variant.gamma is not None:
        settings = replace(settings, gamma=variant.gamma)
    if variant.label is not None:
        settings = replace(settings, rule=(rules or {})[variant.label])
    if variant.relevance is not None:
        settings = replace(settings, rule=replace(settings.rule, relevance=variant.relevance))
    return replace(settings, draft_keep=draft_keep if variant.mode.is_pruned else 1.0)
