"""Sorts the tokens of a vocabulary: numerals, negations, function words, contraries, tokens without text.

Numerals of any script count if the vocabulary has them as characters. Numerals and negations are listed in
the languages in which captions are asked for most, function words in English. Contraries are a pair's own
(models.yaml). A tokenizer may cut a number or an English word in pieces, which are sorted as the whole is.
The sets are computed once for each pair, from the vocabulary alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode


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
# Numerals and negations of other languages, where a tokenizer has them as a whole: cut in pieces, they would
# protect pieces of many other words.
OTHER_LANGUAGES = _words("""
    zwei drei vier fünf sechs sieben acht neun zehn deux trois quatre cinq sept huit neuf dix
    dos tres cuatro cinco seis siete ocho nueve diez due tre quattro cinque sette otto nove dieci
    dois duas três quatro sete oito dez два две три четыре пять шесть семь восемь девять десять
    nicht kein keine keinen keinem keiner keines nie niemals niemand nichts ohne weder
    ne pas jamais rien aucun aucune sans nunca jamás nadie ningún ninguno ninguna sin
    não ninguém nenhum nenhuma sem non nessuno nessuna niente senza niet geen nooit niemand zonder
    не нет ни никто никогда ничего без nie nigdy bez değil yok không tidak bukan tanpa
    不 没 無 无 未 非 ない 않 없 لا ليس لم لن नहीं
""")
# Without words for place, direction or order in time, because these are facts.
FUNCTION_WORDS = _words("""
    a an the this that these those it its he she they him his her them their there here which who
    whom whose what is are was were be been being am do does did has have had having will would can
    could may might shall should must of to in on at by for with from as and or but so also too while
    when where if than very quite rather just simply really actually clearly mainly mostly still only
    even now again another each some any seems we see shows shown visible 's 're 've 'll 'd
""")
_FIXED = NUMERALS | NEGATIONS | OTHER_LANGUAGES
Meaning = tuple[int, int]  # line and place in a list of contraries
_BYTES = {letter: code for code, letter in bytes_to_unicode().items()}
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_SIGNS = frozenset("$€£¥₹+±−~≈#№")  # begin numbers
_PUNCTUATION = frozenset(".,;:!?-–—()[]\"'…")
_STOPS = tuple(".!?…。！？")
_CLOSING = " \t)]}\"'”’»*_"  # characters that may follow a full stop in its token


@dataclass(frozen=True)
class TokenSets:
    """Sets of token ids with a special role in the acceptance rule."""

    ends: frozenset[int] = frozenset()  # end tokens of an answer
    protected: frozenset[int] = frozenset()  # numerals, negations, tokens without text: no loose acceptance
    function: frozenset[int] = frozenset()  # function words and punctuation: always fillers
    meanings: Mapping[int, frozenset[Meaning]] = field(default_factory=dict)  # of words that have contraries
    stops: frozenset[int] = frozenset()  # end a sentence: a full stop, for example, or a new line

    def any_protected(self, *tokens: int) -> bool:
        """Whether one of the tokens must be neither accepted loosely nor replaced: an end, a numeral, ..."""
        # Building the union of the two sets would take longer than the rest of a verification.
        return any(token in self.ends or token in self.protected for token in tokens)

    def are_contrary(self, first: int, second: int) -> bool:
        """Whether two tokens contradict each other: different places, orders in time, colours, events, ...

        Synonyms do not, and neither do words of different lines.
        """
        others = self.meanings.get(second, ())
        return any(
            line == other_line and meaning != other
            for line, meaning in self.meanings.get(first, ())
            for other_line, other in others
        )

    def begins_sentence(self, before: Sequence[int]) -> bool:
        """Whether the token after these tokens of an answer is the first of another sentence."""
        return bool(before) and before[-1] in self.stops


def token_sets(tokenizer: Any, end_ids: Iterable[int], contraries: Sequence[str] = ()) -> TokenSets:
    """Sort a tokenizer's vocabulary. A leading space and upper case make no difference.

    :param contraries: lines of words. Words between two commas are synonyms, and contradict the other words
        of the line: ``small little, big large``.

    If the tokenizer cuts a number, a numeral or a negation, all of its pieces are protected: of `` 12`` the
    space, too. Only a first piece that is a function word is not, because it seldom begins one (``can`` of
    ``can't``). The pieces of a word that has a contrary have its meaning. Special tokens and parts of a
    character's bytes are protected because replacing one of them breaks the text.
    """
    protected = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    function: set[int] = set()
    stops: set[int] = set()
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    said = meanings_of(contraries)
    meanings = _meanings_of_pieces(tokenizer, said)
    in_bytes = "Ġ" in vocabulary
    for token, index in vocabulary.items():
        text = _text(token, in_bytes)
        word = (text or "").strip().lower()
        if text and ("\n" in text or text.rstrip(_CLOSING).endswith(_STOPS)):
            stops.add(index)
        of_number = any(letter.isnumeric() for letter in word) or (word and _SIGNS.issuperset(word))
        if text is None or word in _FIXED or of_number:
            protected.add(index)
        elif word in FUNCTION_WORDS or (word and _PUNCTUATION.issuperset(word)):
            function.add(index)
        if word in said:
            meanings[index].add(said[word])
    for form in (*_forms(NUMERALS | NEGATIONS), *(f" {digit}" for digit in range(10))):
        pieces = _pieces(tokenizer, form)
        if len(pieces) > 1:
            protected.update(pieces[1:] if pieces[0] in function else pieces)
    return TokenSets(
        frozenset(end_ids),
        frozenset(protected),
        frozenset(function - protected),
        {index: frozenset(found) for index, found in meanings.items()},
        frozenset(stops),
    )


def meanings_of(contraries: Sequence[str]) -> dict[str, Meaning]:
    """What each word of a list of contraries means."""
    return {
        word: (number, place)
        for number, line in enumerate(contraries)
        for place, synonyms in enumerate(line.split(","))
        for word in synonyms.split()
    }


def _meanings_of_pieces(tokenizer: Any, said: Mapping[str, Meaning]) -> defaultdict[int, set[Meaning]]:
    """The meanings of words that have contraries by the piece that tells a word from its contraries.

    This is its first piece, and any later one up to which it is cut like one of them: ``gr|ey``, ``gr|een``.
    """
    cut = {_pieces(tokenizer, form): said[form.strip().lower()] for form in _forms(said)}
    begun = defaultdict(set)
    for pieces, meaning in cut.items():
        for length in range(len(pieces)):
            begun[pieces[:length]].add(meaning)
    meanings = defaultdict(set)
    for pieces, meaning in cut.items():
        for length, piece in enumerate(pieces):
            line = {place for number, place in begun[pieces[:length]] if number == meaning[0]}
            if length == 0 or len(line) > 1:
                meanings[piece].add(meaning)
    return meanings


def _forms(words: Iterable[str]) -> Iterator[str]:
    """Each word as it stands in a text: after another word or at the start of a line, capitalised or not."""
    for word in words:
        yield from (f" {word}", f" {word.capitalize()}", word, word.capitalize())


def _pieces(tokenizer: Any, form: str) -> tuple[int, ...]:
    """The tokens of a word or a number inside a text, where some tokenizers cut it in another way than alone.

    It stands after a letter if it begins with a space, else at the start of a line.
    """
    before = "a" if form.startswith(" ") else "\n"
    start, whole = (tokenizer.encode(text, add_special_tokens=False) for text in (before, before + form))
    if whole[: len(start)] != start:
        return tuple(tokenizer.encode(form, add_special_tokens=False))
    return tuple(whole[len(start) :])


def _text(token: str, in_bytes: bool) -> str | None:
    """The text of a token in the vocabulary; None for a part of a character's bytes.

    ``in_bytes``: the tokenizer writes every byte as a letter, as GPT-2's does. Other tokenizers write text,
    with ``▁`` for a space, and single bytes as ``<0xE4>``.
    """
    if not in_bytes and _BYTE.fullmatch(token):
        code = int(token[3:5], 16)
        return chr(code) if code < 0x80 else None
    if not in_bytes:
        return token.replace("▁", " ")
    codes = [_BYTES.get(letter) for letter in token]
    if None in codes:  # an added token is written as plain text
        return token
    try:
        return bytes(code for code in codes if code is not None).decode()
    except UnicodeDecodeError:
        return None
