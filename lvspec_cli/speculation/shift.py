"""Position-shift tolerance: right words that come a place or two early or late."""

from __future__ import annotations

from collections.abc import Sequence

from lvspec_cli.models.words import TokenSets
from lvspec_cli.types import RuleSettings


def is_shifted(
    index: int,
    drafted: Sequence[int],
    target: Sequence[int],
    relevance: Sequence[float],
    rule: RuleSettings,
    words: TokenSets,
) -> bool:
    """True when the mismatch at ``index`` is one of order only.

    Write d for the draft's tokens, t for the target's own at the same positions (each given the
    draft's tokens before it), i for ``index`` and j for one of the ``shift_window`` positions
    behind it that the proposal has.

    **Late**: the target's word comes later in the proposal, ``d[j] == t[i]``, and once there the
    target says it too, ``t[j] == d[j]``. The draft put d[i..j-1] in front of it; all of them must be
    fillers. So ``quickly now`` may become ``now quickly``, and ``red`` may become ``very red``.

    **Early**: the target says the draft's word later, ``t[j] == d[i]``, where the draft goes on with
    another one, so that it is not said twice. The target would have put t[i..j-1] in front of it;
    all of them must be fillers, and the draft's word is no news at an anchor.

    A token is a filler at a position when it is a function word, or when the position's relevance is
    below ``anchor_threshold``; where no relevance is read, when it is no word with a contrary. Ends,
    numerals, negations and what ends a sentence are never fillers, and a sentence ends where the target
    ends it. What anchors say stays: an anchor's word is kept (late), and nothing but fillers is put in,
    left out or swapped. Reads nothing beyond ``index + shift_window``.
    """

    ends = words.stops if rule.never_loosely else frozenset()
    facts = words.meanings if rule.never_loosely else {}

    def is_filler(token: int, at: int) -> bool:
        if token in ends or (rule.never_loosely and words.any_protected(token)):
            return False
        if token in words.function:
            return True
        return relevance[at] < rule.anchor_threshold if relevance else token not in facts

    if drafted[index] in ends or target[index] in ends:
        return False
    last = min(index + rule.shift_window, len(drafted) - 1)
    for later in range(index + 1, last + 1):
        between = range(index, later)
        late = drafted[later] == target[index] == target[later]
        if late and all(is_filler(drafted[at], at) for at in between):
            return True
        early = target[later] == drafted[index] and drafted[index] not in drafted[index + 1 : later + 1]
        if early and all(is_filler(target[at], at) for at in between) and is_filler(drafted[index], index):
            return True
    return False
