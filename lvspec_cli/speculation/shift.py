"""Position-shift tolerance: the right words, one or two positions early or late."""

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
    """Whether draft and target differ at ``index`` in the order of words only.

    Let d be the draft's tokens, t the target's own token at each position (given the draft's tokens before
    it), i ``index``, and j one of the next ``shift_window`` positions of the proposal.

    **Late**: the draft has the target's word later, ``d[j] == t[i]``, and the target agrees there,
    ``t[j] == d[j]``. The draft has put d[i..j-1] before this word; all of these must be fillers. So
    ``quickly now`` may become ``now quickly``, and ``red`` may become ``very red``.

    **Early**: the target has the draft's word later, ``t[j] == d[i]``, and the draft does not repeat it up to
    j. The target would have put t[i..j-1] before this word; all of these must be fillers, and so must the
    draft's word.

    A token is a filler at a position if it is a function word, or if the relevance of the position is below
    ``anchor_threshold``. If the rule reads no relevance, it is a filler unless it is a word that has a
    contrary. Ends of answers and of sentences, numerals and negations are never fillers, and neither the
    draft's nor the target's token at ``index`` may end a sentence. So what anchors say stays: an anchor may
    come later, but only fillers are inserted, left out or exchanged. Reads nothing after
    ``index + shift_window``.
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
