"""How pairs fit a machine, as tables and lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from lvspec_cli.escape import visible
from lvspec_cli.models.fit import FitRow, PairFit, places
from lvspec_cli.models.memory import Machine
from lvspec_cli.types import Quantisation
from lvspec_cli.ui.tables import text_table

HEADINGS = ("pair", "here", "none", "int8", "nf4", "auto takes", "where")
DETAILS = ("kept in", "target", "draft", "cache", "activations", "in all", "where")


def plain_fits(fits: Sequence[PairFit]) -> str:
    """Tab-separated, one pair a line, headings first; GB."""
    return "".join("\t".join(line) + "\n" for line in (HEADINGS, *map(_cells, fits)))


def fit_table(fits: Sequence[PairFit]) -> str:
    """A table as wide as the terminal."""
    return text_table(HEADINGS, "where", [[Text(cell) for cell in _cells(each)] for each in fits])


def fit_details(fit: PairFit, machine: Machine) -> str:
    """One pair by how it is kept: tab-separated lines, and what ``auto`` takes and why."""
    load = fit.load
    element = "bfloat16" if machine.gpus else "float32"
    lines = [
        f"{fit.name}: {load.frames} frames of {load.max_pixels} pixels at most ({fit.visual_tokens} visual"
        f" tokens), an answer of {load.new_tokens} tokens, computed in {element}",
        *("\t".join(line) for line in (DETAILS, *map(_detail, fit.rows))),
        f"auto: {_taken(fit)}",
    ]
    return "".join(visible(line) + "\n" for line in lines)


def machine_line(machine: Machine) -> str:
    """What there is of memory."""
    devices = [*machine.gpus, machine.cpu]
    parts = [
        f"{device.name} {device.label + ', ' if device.label else ''}{_gigabytes(device.free)} free of"
        f" {_gigabytes(device.total)}"
        for device in devices
    ]
    return "this machine: " + "; ".join(parts)


def _cells(fit: PairFit) -> tuple[str, ...]:
    needs = [
        _gigabytes(row.plan.needed) + ("" if row.plan.fits else " -")
        for row in fit.rows
        if row.quantisation in HEADINGS
    ]
    decision = fit.decision
    if not decision.plan.fits:
        taken, where = "does not fit", f"{_gigabytes(decision.plan.missing)} short"
    else:
        taken = _kept(decision.target, decision.draft)
        where = places(decision.plan.target, decision.plan.draft)
    return (fit.name, "yes" if fit.here else "no", *needs, taken, where)


def _detail(row: FitRow) -> tuple[str, ...]:
    target, draft = row.plan.target_need, row.plan.draft_need
    needs = [need for need in (target, draft) if need is not None]
    where = (
        places(row.plan.target, row.plan.draft) if row.plan.fits else f"{_gigabytes(row.plan.missing)} short"
    )
    return (
        row.quantisation,
        _gigabytes(target.weights),
        _gigabytes(draft.weights) if draft else "",
        _gigabytes(sum(need.cache for need in needs)),
        _gigabytes(max(need.activations for need in needs)),
        _gigabytes(row.plan.needed),
        where,
    )


def _taken(fit: PairFit) -> str:
    decision = fit.decision
    if decision.plan.fits:
        where = places(decision.plan.target, decision.plan.draft)
        return f"{_kept(decision.target, decision.draft)} on {where}: {decision.why}"
    change = f"; it would with {fit.change}" if fit.change else ""
    kept = _kept(decision.target, decision.draft)
    return f"does not fit, {_gigabytes(decision.plan.missing)} short as {kept}{change}"


def _kept(target: Quantisation, draft: Quantisation | None) -> str:
    return str(target) if draft in (None, target) else f"{target}, draft {draft}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
