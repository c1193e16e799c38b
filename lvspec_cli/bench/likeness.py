"""How alike two texts are, and how much one repeats itself: what needs no label and no model."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A character of a script without spaces is a word.
_WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W_]+(?:['’][^\W_]+)*")
_ARTICLES = frozenset(("a", "an", "the"))


def words(text: str) -> tuple[str, ...]:
    """A text's words without case, punctuation and English articles, as SQuAD compares answers."""
    return tuple(word for word in _WORD.findall(text.casefold()) if word not in _ARTICLES)


def same_answer(text: str, other: str) -> bool:
    """Whether two short answers say the same in the same words."""
    return words(text) == words(other)


def chrf(text: str, reference: str) -> float:
    """chrF of one text, 0 to 100 (Popović 2015: characters up to 6-grams, beta 2). Empty texts are alike."""
    if text == reference:
        return 100.0
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().sentence_score(text, [reference]).score)


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L of one text, F1, 0 to 100 (Lin 2004, section 3.2): the longest common subsequence of words.

    Articles count here, case and punctuation do not. Texts without words are alike.
    """
    from rapidfuzz.distance import Indel

    # 2 LCS / (m + n) is the F1, and one less the normalised distance of insertions and deletions.
    return 100.0 * Indel.normalized_similarity(
        *(_WORD.findall(part.casefold()) for part in (text, reference))
    )


def repetition(tokens: Sequence[object], order: int = 4) -> float:
    """Share of a text's n-grams that it has said before, 0 to 1: seq-rep-4 of Welleck et al. 2020."""
    grams = [tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
