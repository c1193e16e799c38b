"""The default pair: the first of models.yaml that is on this machine and fits, or the bundled one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lvspec_cli.errors import PairError
from lvspec_cli.pairs.files import Stored, locate, locate_draft
from lvspec_cli.pairs.registry import AUTO, BUNDLED, Pair, Registry
from lvspec_cli.request import PairChoice


@dataclass(frozen=True)
class StoredPair:
    """A pair, and what is on this machine of its two models."""

    name: str
    pair: Pair
    target: Stored
    draft: Stored


def choose_pair(registry: Registry, name: str | None, device: str = "auto") -> PairChoice:
    """The pair of that name. For ``auto``: the first pair on this machine that fits.

    torch is imported only if there are more pairs to choose from than the bundled one.

    :raises PairError: there is no such pair.
    """
    if (name or registry.default) != AUTO:
        return PairChoice(*registry.pair(name), device=device)
    choice = best(registry.pairs, local_pairs(registry), lambda local: fits(local, device))
    return replace(choice, device=device)


def local_pairs(registry: Registry) -> list[StoredPair]:
    """The pairs with all files on this machine, in the order of preference, without the bundled one."""
    others = {name: pair for name, pair in registry.pairs.items() if pair.target.bundled is None}
    return [pair for pair in stored_pairs(others) if pair.target.folder and pair.draft.folder]


def stored_pairs(pairs: Mapping[str, Pair]) -> list[StoredPair]:
    """What is on this machine of each pair."""
    return [StoredPair(name, pair, locate(pair.target), locate_draft(pair)) for name, pair in pairs.items()]


def best(
    pairs: Mapping[str, Pair], local: list[StoredPair], is_fitting: Callable[[StoredPair], bool]
) -> PairChoice:
    """The first local pair that fits and gains, in the order of models.yaml; the bundled one if none does."""
    gaining = [pair for pair in local if pair.pair.no_gain is None]
    for pair in gaining:
        if is_fitting(pair):
            note = f"pair {pair.name} (auto); `lvspec models fit` shows what else would fit"
            return PairChoice(pair.name, pair.pair, note)
    if gaining:
        reason = f"{_counted(gaining)} too large: `lvspec models fit`"
    elif local:
        reason = f"{_counted(local)} no faster than its target: `--pair {local[0].name}`"
    else:
        reason = "for real videos: `lvspec models fit`"
    world = pairs[BUNDLED].world
    named = f"pair {BUNDLED} (auto)" + (f" knows only {world}" if world else "")
    return PairChoice(BUNDLED, pairs[BUNDLED], f"{named}; {reason}")


def _counted(pairs: list[StoredPair]) -> str:
    """``NAME is``, or how many there are: the note has to fit one line."""
    return f"{pairs[0].name} is" if len(pairs) == 1 else f"{len(pairs)} others are"


def fits(pair: StoredPair, device: str) -> bool:
    """Whether this machine can run the pair on a clip with the pair's defaults, quantised if necessary."""
    from lvspec_cli.memory.resolve import local_fit

    try:
        return local_fit(pair.pair, _folder(pair.target), _folder(pair.draft), device).plan.fits
    except PairError:  # its configs cannot be used
        return False


def _folder(stored: Stored) -> Path:
    assert stored.folder is not None
    return stored.folder
