"""The lines of a report, from ``--modes``, ``--gamma``, ``--ablate`` and ``--variants``."""

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
from lvspec_cli.memory.resolve import MOST_SLOTS
from lvspec_cli.pairs.registry import Name, read_yaml
from lvspec_cli.types import (
    GREATEST_GAMMA,
    MOST_PIXELS,
    WHOLE,
    DecodeSettings,
    DraftView,
    Gamma,
    Mode,
    RelevanceName,
    RuleSettings,
    read_gamma,
)

NO_LIMIT = 1_000_000  # loose tokens
VARY = 1.0  # nats between the choices of the control


@dataclass(frozen=True)
class NamedRule:
    """A rule with a name: an additional line of the report. ``gamma``: if it has its own.

    ``view``: what the draft is shown of a clip, where that is not as for the other lines.
    """

    name: str
    rule: RuleSettings
    gamma: Gamma | None = None
    mode: BenchMode = BenchMode.LVSPEC
    view: DraftView = WHOLE

    @property
    def variant(self) -> Variant:
        return Variant(self.mode, self.gamma, label=self.name)


def ablations(rule: RuleSettings) -> tuple[NamedRule, ...]:
    """The rule without one of its parts (docs/design.md, "The rule"), or with an additional one.

    ``no-anchors``: every token has the margin of fillers. ``no-ties``: anchors have no margin.
    ``no-fillers``: every token has the margin of anchors. ``no-sentences``: the first token of a sentence is
    like any other. ``no-shift``: tokens must be at their positions. ``no-window``: a loose token stays,
    whatever follows it. ``no-budget``: the loss is not limited. ``no-limits``: any number of loose tokens in
    a row. ``no-contraries``: the pair's list of them is not used. ``no-list``: no limits, and ends, numerals,
    negations, contraries and loops are like any other token. ``with-anchors``: tokens relevant to the video
    must match. ``with-sentences``: the first token of a sentence must match. ``with-shift``: a token may be
    up to two positions early or late. ``with-window``: a loose token stays only if two matching ones follow.
    ``with-budget``: at most .07 nats a token are given up.
    """
    unlimited = replace(rule, max_loose_run=NO_LIMIT, max_loose_in_window=NO_LIMIT)
    rules = {
        "no-anchors": replace(rule, relevance=RelevanceName.PLAUSIBLE),
        "no-ties": replace(rule, anchor_margin=0.0),
        "no-fillers": replace(rule, filler_margin=rule.anchor_margin),
        "no-sentences": replace(rule, sentence_margin=inf),
        "no-shift": replace(rule, shift_window=0),
        "no-window": replace(rule, defer=0),
        "no-budget": replace(rule, max_loss=inf),
        "no-contraries": replace(rule, contraries=False),
        "no-limits": unlimited,
        "no-list": replace(unlimited, never_loosely=False),
    }
    if rule.relevance is RelevanceName.PLAUSIBLE:
        rules["with-anchors"] = replace(rule, relevance=RelevanceName.ATTENTION, anchor_margin=0.0)
    if rule.sentence_margin > 0:
        rules["with-sentences"] = replace(rule, sentence_margin=0.0)
    if rule.shift_window == 0:
        rules["with-shift"] = replace(rule, shift_window=2)
    if rule.defer == 0:
        rules["with-window"] = replace(rule, defer=2)
    if rule.max_loss == inf:
        rules["with-budget"] = replace(rule, max_loss=0.07)
    return tuple(NamedRule(name, changed) for name, changed in rules.items() if changed != rule)


def controls(rule: RuleSettings) -> tuple[Variant, ...]:
    """Every other relevance, with the rule's own thresholds. Thresholds tuned for each would be fairer."""
    others = (
        relevance for relevance in RelevanceName if relevance not in (rule.relevance, RelevanceName.NONE)
    )
    return tuple(Variant(BenchMode.LVSPEC, relevance=relevance) for relevance in others)


def needs_draft_model(variant: Variant) -> bool:
    """Whether a variant's draft has to be a model, and cannot be the target's prediction layer."""
    return variant.mode.is_pruned or variant.mode is BenchMode.HF_ASSISTED


def read_rules(path: Path, rule: RuleSettings) -> tuple[NamedRule, ...]:
    """Reads a YAML file of named rules: each lists what differs from ``rule``, optionally gamma and mode, and
    draft_frames and draft_pixels.

    :raises UsageError: the file is invalid; the cause names the line and the key.
    """
    remedy = f"under each name stand settings of the rule: {', '.join(_ROW.model_fields)}"
    rows = read_yaml(path, _File, "a YAML file of rules", remedy).root
    if not rows:
        raise UsageError(f"{path}: there is no rule in it", "write no-shift: {shift_window: 0}")
    named = tuple(_named(name, row, rule) for name, row in rows.items())
    for line in named:
        if line.mode.is_pruned and not line.view.is_whole:
            raise UsageError(
                f"{path}: {line.name}: in mode {line.mode} the draft sees the target's frames",
                "leave out mode, or draft_frames and draft_pixels",
            )
        if line.mode is BenchMode.EXACT and line.rule != rule:
            raise UsageError(
                f"{path}: {line.name}: mode exact has no rule", "leave out its settings, or mode"
            )
    return named


def _named(name: str, row: BaseModel, rule: RuleSettings) -> NamedRule:
    changes = {key: value for key, value in row.model_dump(exclude_unset=True).items() if value is not None}
    mode, gamma = BenchMode(changes.pop("mode", BenchMode.LVSPEC)), changes.pop("gamma", None)
    view = DraftView(changes.pop("draft_frames", None), changes.pop("draft_pixels", None))
    return NamedRule(name, replace(rule, **changes), gamma, mode, view)


_HINTS = get_type_hints(RuleSettings, include_extras=True)
_KEYS: dict[str, Any] = {
    **{field.name: (Optional[_HINTS[field.name]], None) for field in fields(RuleSettings)},  # noqa: UP045
    "gamma": (Annotated[int, Ge(1), Le(GREATEST_GAMMA)] | Literal["auto"] | None, None),
    "mode": (Literal["exact", "lvspec", "lvspec-pruned"], "lvspec"),
    "draft_frames": (Annotated[int, Ge(1), Le(2048)] | None, None),
    "draft_pixels": (Annotated[int, Ge(784), Le(MOST_PIXELS)] | None, None),
}
_ROW: Any = create_model("_ROW", __config__=ConfigDict(extra="forbid", frozen=True), **_KEYS)


class _File(RootModel[dict[Name, _ROW]]):
    model_config = ConfigDict(frozen=True)


def rule_fields(rule: RuleSettings) -> dict[str, Any]:
    """A rule as JSON values."""
    return {name: "Infinity" if value == float("inf") else value for name, value in as_yaml(rule).items()}


_RULE = TypeAdapter(RuleSettings)


def as_yaml(rule: RuleSettings) -> dict[str, Any]:
    """A rule as YAML values."""
    return _RULE.dump_python(rule, mode="json", exclude=rule.unused)


def rules_by_name(named: Sequence[NamedRule]) -> Mapping[str, RuleSettings]:
    """The rules by name.

    :raises UsageError: two have the same name.
    """
    rules: dict[str, RuleSettings] = {}
    for named_rule in named:
        if named_rule.name in rules:
            raise UsageError(f"two rules have the name {named_rule.name!r}", "give one of them another")
        rules[named_rule.name] = named_rule.rule
    return rules


# ar first: it is the baseline, and shows whether a clip can be measured at all.
ALL_MODES = tuple(str(mode) for mode in BenchMode if mode is not BenchMode.HF_BATCHED)
# Where all right answers are known, the control has nothing to say.
LABELLED_MODES = tuple(mode for mode in ALL_MODES if mode != BenchMode.CONTROL)
THROUGHPUT_MODES = (BenchMode.AR, BenchMode.EXACT, BenchMode.LVSPEC, BenchMode.HF_BATCHED)
THROUGHPUT_SLOTS = (1, 2, 4, 8, 16)


_DECODE_MODES = {
    BenchMode.AR: Mode.AR,
    BenchMode.CONTROL: Mode.AR,
    BenchMode.EXACT: Mode.EXACT,
    BenchMode.EXACT_PRUNED: Mode.EXACT,
    BenchMode.LVSPEC: Mode.LVSPEC,
    BenchMode.LVSPEC_PRUNED: Mode.LVSPEC,
}


def parse_modes(text: str) -> tuple[Variant, ...]:
    """Parses modes separated by commas, without duplicates; ``lvspec:random`` names another relevance.

    :raises UsageError: a mode is unknown, or there is no plain mode.
    """
    modes = tuple(dict.fromkeys(_parse_mode(word.strip()) for word in text.split(",") if word.strip()))
    if not any(variant.mode.is_plain for variant in modes):
        raise UsageError("--modes has nothing to compare with", "add ar or hf-ar")
    return modes


def parse_throughput_modes(text: str) -> tuple[BenchMode, ...]:
    """Parses modes of ``--throughput``, without duplicates.

    :raises UsageError: one of them is not measured so, or there is none.
    """
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    known = f"choose among {', '.join(THROUGHPUT_MODES)}"
    for word in words:
        if word not in THROUGHPUT_MODES:
            raise UsageError(f"--throughput does not measure {word!r}", known)
    if not words:
        raise UsageError(f"--modes {text!r} names none", known)
    return tuple(map(BenchMode, words))


def parse_slots(text: str) -> tuple[int, ...]:
    """Parses numbers of captions at once, separated by commas; ascending, without duplicates.

    :raises UsageError: one of them is no such number, or there is none.
    """
    words = {word.strip() for word in text.split(",") if word.strip()}
    for word in words:
        if not (word.isascii() and word.isdecimal() and 1 <= int(word) <= MOST_SLOTS):
            raise UsageError(f"--at-once {word!r} is not a number from 1 to {MOST_SLOTS}", _SLOTS_REMEDY)
    if not words:
        raise UsageError(f"--at-once {text!r} names none", _SLOTS_REMEDY)
    return tuple(sorted({int(word) for word in words}))


_SLOTS_REMEDY = "write --at-once 1,8"


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
    """Parses numbers and ``auto`` separated by commas; ascending, without duplicates.

    :raises UsageError: one is neither, or there is none.
    """
    remedy = "write --gamma auto,3,5,8"
    try:
        gammas = {read_gamma(word.strip()) for word in text.split(",") if word.strip()}
    except ValueError as error:
        raise UsageError(f"--gamma: {error}", remedy) from None
    if not gammas:
        raise UsageError(f"--gamma {text!r} names none", remedy)
    return tuple(sorted(gammas, key=gamma_order))


def gamma_order(gamma: Gamma) -> float:
    """A sort key: ``auto`` comes after all numbers."""
    return float("inf") if gamma == "auto" else float(gamma)


def variants_of(modes: Sequence[Variant], gammas: Sequence[Gamma]) -> tuple[Variant, ...]:
    """Every mode with every gamma; plain modes without, modes with their own gamma once.

    ``hf-assisted`` is run with every number, and once with the default of transformers.
    """
    variants: list[Variant] = []
    for mode in modes:
        is_fixed = mode.gamma is not None or not mode.mode.drafts
        is_assisted = mode.mode is BenchMode.HF_ASSISTED
        if is_fixed or is_assisted:
            variants.append(mode)
        if not is_fixed:
            variants += [replace(mode, gamma=g) for g in gammas if not (is_assisted and g == "auto")]
    return tuple(variants)


def views_by_name(named: Sequence[NamedRule]) -> Mapping[str, DraftView]:
    """What the draft is shown, of the lines that say so."""
    return {line.name: line.view for line in named if not line.view.is_whole}


def settings_of(
    variant: Variant,
    base: DecodeSettings,
    draft_keep: float,
    rules: Mapping[str, RuleSettings] | None = None,
    views: Mapping[str, DraftView] | None = None,
) -> DecodeSettings:
    """The decoding settings of one of our own variants.

    Greedy and without the repetition guard, so that every mode and peer has the same token budget: a loop
    shows in the fidelity, not as a short answer. Without fallback, because the mode's own cost is measured.

    :param draft_keep: share of the video's tokens that the draft sees in the pruned modes.
    :param rules: by label, for variants that have one.
    :param views: by label, what the draft is shown of a clip. In the pruned modes it is shown all.
    """
    if variant.mode.is_peer:
        raise ValueError(f"{variant.mode} is not one of our own modes")
    settings = replace(
        base, mode=_DECODE_MODES[variant.mode], temperature=0.0, repetition_guard=False, fallback=False
    )
    if variant.mode is BenchMode.CONTROL:
        settings = replace(settings, vary=VARY)
    if variant.gamma is not None:
        settings = replace(settings, gamma=variant.gamma)
    if variant.label is not None:
        settings = replace(settings, rule=(rules or {})[variant.label])
    if variant.relevance is not None:
        settings = replace(settings, rule=replace(settings.rule, relevance=variant.relevance))
    if variant.mode.is_pruned:
        return replace(settings, draft_keep=draft_keep, draft_frames=None, draft_pixels=None)
    view = (views or {}).get(variant.label or "", base.draft_view)
    return replace(settings, draft_keep=1.0, draft_frames=view.frames, draft_pixels=view.pixels)
