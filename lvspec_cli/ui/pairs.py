"""Text about pairs: their facts, and whether they fit the machine."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

from lvspec_cli.escape import visible, visible_line
from lvspec_cli.host import terminal_width
from lvspec_cli.memory.plan import Machine
from lvspec_cli.memory.resolve import FitRow, PairFit, placement_text
from lvspec_cli.pairs.calibration import PairCalibration
from lvspec_cli.pairs.files import Stored
from lvspec_cli.pairs.registry import BUNDLED, Pair, Rules, Source
from lvspec_cli.table import Table, counted, size, wrapped
from lvspec_cli.types import Quantisation, RuleSettings
from lvspec_cli.ui.tables import for_stdout, model_size


def pair_facts(
    name: str,
    pair: Pair,
    target: Stored,
    draft: Stored,
    mtp: Stored,
    calibration: PairCalibration | None = None,
) -> str:
    """One fact per line, with its name. ``mtp``: the prediction layer in the target's files."""
    rows = [("pair", name), ("about", pair.about), ("licence", pair.licence or "not said")]
    if pair.no_gain:
        rows.append(("gain", f"none: {pair.no_gain}; auto does not take it"))
    rows += [*_model("target", pair.target, target), *_model("draft", pair.draft, draft)]
    if mtp.folder is not None and not pair.draft.mtp:
        rows.append(("", f"{model_size(pair.target, mtp)}, for --draft mtp: in the target's files"))
    if pair.memory:
        least = ", ".join(f"{kind} {number:g}" for kind, number in pair.memory.items())
        rows.append(("memory", f"{least} GB on one device, with a clip of the defaults"))
    defaults = pair.defaults.model_dump(exclude_none=True, exclude={"adaptation"})
    rows.append(("defaults", _values(defaults)))
    plain = asdict(RuleSettings())
    for looseness in ("balanced", "loose"):
        rule = asdict(getattr(pair.rules, looseness))
        names = [field.name for field in fields(RuleSettings)]
        shown = {key: rule[key] for key in names if rule[key] != plain[key]}
        rows.append((f"rule {looseness}", _values(shown) or "as built in"))
    percentiles = any(pair.rules.percentiles.model_dump(exclude_none=True).values())
    if calibration is not None:
        rows.append(("calibrated", f"{calibration.created}, on {counted(calibration.captions, 'caption')}"))
    elif percentiles:
        rows.append(("calibrated", "not yet: lvspec tune CLIPS --calibrate"))
    return _lines(rows)


def calibration_text(rules: Rules, found: PairCalibration) -> str:
    """What was measured of a pair, and the rules that follow: one fact per line, with its name."""
    measured = (
        f"{counted(found.captions, 'caption')}, {found.tokens} tokens after the first ones;"
        f" the draft differs at {found.mismatches}"
    )
    gaps = ", ".join(f"{share} % within {found.margin(share):.2f} nats" for share in (25, 50, 75, 90))
    rows = [("measured", measured), ("gaps", gaps)]
    rows.append(("wording", f"{100 * found.relaxed:.0f} % of the tokens, by how frequent they are"))
    if found.layer is not None:
        attention = (
            f"layer {found.layer} tells rare tokens from frequent ones best, AUC {found.layer_auc:.2f}"
        )
        rows.append(("attention", attention))
    measured_rules = rules.calibrated(found)
    for looseness, margins in rules.percentiles.model_dump(exclude_none=True, exclude_defaults=True).items():
        rule = asdict(getattr(measured_rules, looseness))
        told = (
            f"{name}-margin {rule[f'{name}_margin']:g} nats ({share:g} % of the gaps)"
            for name, share in margins.items()
        )
        rows.append((f"rule {looseness}", ", ".join(told)))
    return _lines(rows)


def _lines(rows: Sequence[tuple[str, str]]) -> str:
    labels = max(len(label) for label, _ in rows)
    indent, width = " " * (labels + 2), terminal_width(sys.stdout)
    lines = (f"{label:{labels}}  {visible_line(fact)}" for label, fact in rows if fact)
    return "".join(wrapped(line, width, indent) + "\n" for line in lines)


def _model(role: str, source: Source, stored: Stored) -> Iterator[tuple[str, str]]:
    revision = f" at {source.revision or 'main, no commit is pinned'}" if source.repo else ""
    yield role, f"{source.name}{revision}"
    yield (
        "",
        f"{model_size(source, stored)}, {stored.place}" + (f": {stored.folder}" if stored.folder else ""),
    )


def _values(values: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', '-')} {_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return "unlimited" if math.isinf(value) else f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


HEADINGS = ("pair", "here", "none", "int8", "nf4", "auto takes", "where")
_LEGEND = {
    "none, int8, nf4": "weights as they are, in 8 bits, in 4 bits, with the memory needed",
    "-": "does not fit",
}
DETAILS = ("kept in", "target", "draft", "cache", "activations", "in all", "where")


def fit_table(fits: Sequence[PairFit]) -> Table:
    """A row for each pair, with its memory need in several storage formats."""
    return Table(
        HEADINGS,
        list(map(_cells, fits)),
        prose=("where",),
        optional=("int8", "none", "nf4", "here"),
        legend=_LEGEND,
    )


def fit_details(fit: PairFit, machine: Machine) -> str:
    """One pair in every storage format, and the choice of ``auto`` with its reason."""
    load = fit.load
    element = "bfloat16" if machine.gpus else "float32"
    lead = (
        f"{fit.name}: {counted(load.frames, 'frame')} of {load.max_pixels} pixels at most"
        f" ({fit.visual_tokens} visual tokens), an answer of {counted(load.new_tokens, 'token')},"
        f" computed in {element}"
    )
    below = [f"auto: {_auto_choice(fit)}"]
    if fit.decision.plan.fits:
        below.append(
            f"at once: memory for {counted(fit.at_once, 'clip')} in caption, each with a cache of its own"
        )
    if fit.no_gain:
        below.append(f"gain: none: {fit.no_gain}")
    width = terminal_width(sys.stdout)
    above, *others = (wrapped(visible(line), width, "  ") + "\n" for line in (lead, *below))
    return "".join((above, for_stdout(detail_table(fit)), *others))


def detail_table(fit: PairFit) -> Table:
    """A row for each storage format of one pair."""
    return Table(
        DETAILS,
        list(map(_detail, fit.rows)),
        prose=("where",),
        optional=("activations", "cache", "draft", "target"),
    )


def first_choice(fits: Sequence[PairFit]) -> str:
    """The pair that ``auto`` would take if all of them were on this machine, and in what."""
    for fit in fits:
        if fit.decision.plan.fits and fit.no_gain is None and fit.name != BUNDLED:
            storage = _storage(fit.decision.target, fit.decision.draft)
            return f"first choice for this machine: {fit.name}, weights kept in {storage}"
    return "nothing but the bundled pair fits this machine"


def context_note(fit: PairFit) -> str:
    """A note if the models' contexts have no room for all frames, whatever memory there is; else empty."""
    if fit.frames_in_context == fit.load.frames:
        return ""
    room = "for none" if fit.frames_in_context is None else f"for about {fit.frames_in_context}"
    return f"{fit.name}: the context has room {room} of the {fit.load.frames} frames"


def machine_line(machine: Machine) -> str:
    """The memory of each device."""
    devices = [*machine.gpus, machine.cpu]
    parts = [
        f"{device.name} {device.label + ', ' if device.label else ''}{size(device.free)} free of"
        f" {size(device.total)}"
        for device in devices
    ]
    return "this machine: " + "; ".join(parts)


def _cells(fit: PairFit) -> tuple[str, ...]:
    by_kind = {row.quantisation: size(row.plan.needed) + ("" if row.plan.fits else " -") for row in fit.rows}
    needs = [by_kind.get(kind, "") for kind in (Quantisation.NONE, Quantisation.INT8, Quantisation.NF4)]
    decision = fit.decision
    if not decision.plan.fits:
        choice, where = "does not fit", f"{size(decision.plan.missing)} short"
    else:
        choice = _storage(decision.target, decision.draft)
        where = placement_text(decision.plan.target, decision.plan.draft)
    where += "; gains nothing" if fit.no_gain else ""
    return (fit.name, "yes" if fit.here else "no", *needs, choice, where)


def _detail(row: FitRow) -> tuple[str, ...]:
    target, draft = row.plan.target_need, row.plan.draft_need
    needs = [need for need in (target, draft) if need is not None]
    where = (
        placement_text(row.plan.target, row.plan.draft)
        if row.plan.fits
        else f"{size(row.plan.missing)} short"
    )
    return (
        _storage(row.target, row.draft),
        size(target.weights),
        size(draft.weights) if draft else "",
        size(sum(need.cache for need in needs)),
        size(max(need.activations for need in needs)),
        size(row.plan.needed),
        where,
    )


def _auto_choice(fit: PairFit) -> str:
    decision = fit.decision
    if decision.plan.fits:
        where = placement_text(decision.plan.target, decision.plan.draft)
        return f"{_storage(decision.target, decision.draft)} on {where}: {decision.why}"
    change = f"; it would with {fit.change}" if fit.change else ""
    storage = _storage(decision.target, decision.draft)
    return f"does not fit, {size(decision.plan.missing)} short as {storage}{change}"


def _storage(target: Quantisation, draft: Quantisation | None) -> str:
    return str(target) if draft in (None, target) else f"{target}, draft {draft}"
