"""Which pair is taken where none is named: the best that is on this machine and fits, or the bundled one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lvspec_cli.errors import PairError
from lvspec_cli.pairs.files import Stored, locate
from lvspec_cli.pairs.registry import AUTO, BUNDLED, Pair, Registry
from lvspec_cli.request import PairChoice

LAPTOP = "smolvlm2-2.2b-256m"  # what most machines can run


@dataclass(frozen=True)
class Here:
    """A pair whose two models are wholly on this machine."""

    name: str
    pair: Pair
    target: Stored
    draft: Stored


def choose_pair(registry: Registry, name: str | None, device: str = "auto") -> PairChoice:
    """The pair of that name; for ``auto``, or no name where that is the default, by what is here and fits.

    torch is imported only where there is more than the bundled pair to choose from.

    :raises PairError: there is no such pair.
    """
    if (name or registry.default) != AUTO:
        return PairChoice(*registry.pair(name), device=device)
    choice = best(registry.pairs, pairs_here(registry), lambda here: fits(here, device))
    return replace(choice, device=device)


def pairs_here(registry: Registry) -> list[Here]:
    """The pairs that are wholly on this machine, but for the bundled one."""
    found = []
    for name, pair in registry.pairs.items():
        if pair.target.bundled is None:
            target = locate(pair.target)
            draft = locate(pair.draft) if target.folder else target
            if draft.folder is not None:
                found.append(Here(name, pair, target, draft))
    return found


def best(pairs: Mapping[str, Pair], here: list[Here], is_fitting: Callable[[Here], bool]) -> PairChoice:
    """The pair with the largest target that fits, and of those the largest draft; else the bundled one."""
    ranked = sorted(here, key=lambda each: (-(each.target.parameters or 0), -(each.draft.parameters or 0)))
    for each in ranked:
        if is_fitting(each):
            note = f"pair {each.name} (auto): the largest that is on this machine and fits it"
            return PairChoice(each.name, each.pair, f"{note}; `lvspec models fit` shows what else would")
    if ranked:
        names = ", ".join(each.name for each in ranked)
        why = f"{names} {'is' if len(ranked) == 1 else 'are'} here, and too large"
        remedy = "`lvspec models fit` shows by how much"
    else:
        why = "no other is on this machine"
        pull = f"`lvspec models pull {LAPTOP}` for real videos, or a larger one: " if LAPTOP in pairs else ""
        remedy = f"{pull}`lvspec models fit` shows what this machine can run"
    world = pairs[BUNDLED].world
    named = f"pair {BUNDLED} (auto)" + (f", which knows only {world}" if world else "")
    return PairChoice(BUNDLED, pairs[BUNDLED], f"{named}: {why}; {remedy}")


def fits(here: Here, device: str) -> bool:
    """Whether a clip of the pair's defaults can be answered about on this machine, quantised if need be."""
    from lvspec_cli.memory.resolve import local_fit

    try:
        return local_fit(here.pair, _folder(here.target), _folder(here.draft), device).plan.fits
    except PairError:  # its files say nothing that can be used
        return False


def _folder(stored: Stored) -> Path:
    assert stored.folder is not None
    return stored.folder
