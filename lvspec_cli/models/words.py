"""Which tokens of a tokenizer are numerals, negations and function words.

English word lists; digits of every script that the vocabulary shows as characters. Computed once
per pair, from the vocabulary alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NUMERALS = _words("""
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred
    thousand million billion dozen half once twice thrice first second third fourth fifth sixth
    seventh eighth ninth tenth both single double triple
""")
NEGATIONS = _words("""
    no not none nobody nothing neither nor never without cannot nowhere n't 't don't doesn't didn't
    isn't aren't wasn't weren't can't couldn't won't wouldn't hasn't haven't hadn't
""")
# No word of place, direction or order in time: those are facts.
FUNCTION_WORDS = _words("""
    a an the this that these those it its he she they him his her them their there here which who
    whom whose what is are was were be been being am do does did has have had having will would can
    could may might shall should must of to in on at by for with from as and or but so also too while
    when where if than very quite rather just simply really actually clearly mainly mostly still only
    even now again another each some any appears seems we see shows shown visible 's 're 've 'll 'd
""")
_PUNCTUATION = frozenset(".,;:!?-–—()[]\"'…")
_SPACE_MARKS = "Ġ▁ Ċ"


@dataclass(frozen=True)
class TokenSets:
    """Sets of token ids that the rule treats in their own way."""

    ends: frozenset[int] = frozenset()  # end an answer
    fixed: frozenset[int] = frozenset()  # numerals and negations: never accepted loosely
    function: frozenset[int] = frozenset()  # function words and punctuation: fillers by nature


def token_sets(tokenizer: Any, end_ids: Iterable[int]) -> TokenSets:
    """Sort a tokenizer's vocabulary, with and without a leading space, in any case.

    A number or negation that the tokenizer cuts in pieces is known by its first piece, unless that
    is a single letter or a function word.
    """
    fixed_words = NUMERALS | NEGATIONS
    fixed, function = set(), set()
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    for token, index in vocabulary.items():
        word = token.strip(_SPACE_MARKS).lower()
        if word in fixed_words or any(letter.isnumeric() for letter in word):
            fixed.add(index)
        elif word in FUNCTION_WORDS or (word and _PUNCTUATION.issuperset(word)):
            function.add(index)
    for word in fixed_words:
        for form in (word, f" {word}", word.capitalize(), f" {word.capitalize()}"):
            pieces = tokenizer.encode(form, add_special_tokens=False)
            letters = tokenizer.decode(pieces[:1]).strip()
            if len(pieces) > 1 and len(letters) > 1 and pieces[0] not in function:
                fixed.add(pieces[0])
    return TokenSets(frozenset(end_ids), frozenset(fixed), frozenset(function))
