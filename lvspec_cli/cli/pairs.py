"""The pair that a command works with, and the line about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lvspec_cli.cli.reporting import say

if TYPE_CHECKING:
    from lvspec_cli.registry import Pair


def chosen_pair(given: Mapping[str, Any]) -> tuple[str, Pair, str]:
    """The pair that the flags mean, by its name, and why it is that one where nobody named it."""
    from lvspec_cli.choose import choose_pair
    from lvspec_cli.registry import load_registry

    chosen = choose_pair(load_registry(given["models"]), given["pair"], given["device"])
    return chosen.name, chosen.pair, chosen.note


def tell(note: str, given: Mapping[str, Any]) -> None:
    """Why the pair was taken. Last before the work: errors come first."""
    if note and not given["quiet"]:
        say(note)
