"""Numerals, negations and function words of a tokenizer."""

from __future__ import annotations

import string
from collections.abc import Iterable
from itertools import combinations, product
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lvspec_cli.models.words import FUNCTION_WORDS, NEGATIONS, NUMERALS, TokenSets, meanings_of, token_sets
from lvspec_cli.pairs.registry import BUNDLED, load_registry
from tests.tiny_tokenizers import WORDS, build_piece_tokenizer, build_tokenizer, qwen_vocabulary

KINDS = "left Left Right top upper lower centre middle down bottom after before red blue small big large"
TOKENIZER = build_tokenizer(f"{WORDS} {KINDS} {KINDS} 12 2nd isn't don't never Never grün grün")
CONTRARIES = load_registry(environment={}).pair(BUNDLED)[1].contraries
SETS = token_sets(TOKENIZER, (5, 6), CONTRARIES)


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("word", [" two", "Two", " Two", " not", " never", "7", " 12"])
def test_numerals_and_negations_are_fixed(word: str) -> None:
    assert ids(word)[0] in SETS.protected


@pytest.mark.parametrize("word", [" the", "The", " and", " is", ".", ","])
def test_function_words(word: str) -> None:
    (token,) = ids(word)
    assert token in SETS.function
    assert token not in SETS.protected


@pytest.mark.parametrize("word", [" red", " ball", " left", " moves", " up", " grün"])
def test_content_and_place_are_neither(word: str) -> None:
    assert len(ids(word)) == 1, "the tokenizer of this test knows the word"
    assert ids(word)[0] not in SETS.protected | SETS.function


def test_ends_are_handed_through_and_sets_are_apart() -> None:
    assert SETS.ends == {5, 6}
    assert not SETS.protected & SETS.function
    assert TokenSets().ends == frozenset()


def test_what_is_no_text_of_its_own_is_fixed() -> None:
    pieces = ids("\N{GRINNING FACE}\N{CJK UNIFIED IDEOGRAPH-732B}")
    assert len(pieces) > 2, "the tokenizer of this test knows these characters by their bytes only"
    assert set(pieces) <= SETS.protected
    assert set(TOKENIZER.convert_tokens_to_ids(["<|im_start|>", "<|video_pad|>"])) <= SETS.protected
    assert not SETS.protected & set(ids(" red ball"))


@pytest.mark.parametrize(
    ("one", "other", "contrary"),
    [
        (" left", "Right", True),
        (" left", " Left", False),
        (" top", " upper", False),  # another word for it
        (" upper", " lower", True),
        (" centre", " lower", True),
        (" middle", " centre", True),  # of three rows and of three columns
        (" down", " bottom", False),
        (" after", " before", True),
        (" red", " blue", True),
        (" small", " big", True),
        (" large", " big", False),
        (" red", " small", False),  # of another kind
        (" left", " red", False),
        (" left", " the", False),  # says nothing of the kind
        (" the", " a", True),
    ],
)
def test_contraries(one: str, other: str, contrary: bool) -> None:
    (first,), (second,) = ids(one), ids(other)
    assert SETS.are_contrary(first, second) is contrary
    assert SETS.are_contrary(second, first) is contrary


@pytest.mark.parametrize(
    ("one", "other", "contrary"),
    [
        (" star", " disc", True),
        (" disc", " circle", False),
        (" vanishes", " appears", True),
        (" comes", " goes", True),
        (" turns", " vanishes", True),
        (" turns", " becomes", False),
        (" man", " woman", True),
        (" shows", " appears", False),
        (" shows", " vanishes", True),
        (" drifts", " stays", True),
        (" drifts", " moves", False),
    ],
)
def test_contraries_of_what_happens(one: str, other: str, contrary: bool) -> None:
    tokenizer = build_tokenizer(
        "star disc circle vanishes appears comes goes turns becomes man woman shows drifts stays moves " * 3
    )
    (first,), (second,) = (tokenizer.encode(each, add_special_tokens=False) for each in (one, other))
    assert token_sets(tokenizer, (), CONTRARIES).are_contrary(first, second) is contrary
    assert not token_sets(tokenizer, ()).are_contrary(first, second)


def test_a_word_says_one_thing() -> None:
    said = [word for line in CONTRARIES for word in line.replace(",", " ").split()]
    assert len(said) == len(set(said))
    assert meanings_of(CONTRARIES).keys() == set(said)
    assert not set(said) & (NUMERALS | NEGATIONS), "never loose anyway"
    # What a sentence may go without, though not with another in its place.
    assert set(said) & FUNCTION_WORDS == {"a", "an", "the", "shows"}
    assert not TokenSets().are_contrary(1, 2)


@pytest.mark.parametrize(
    ("before", "begins"),
    [(" ball.", True), (" ball?", True), (" ball", False), (" ball,", False), (".", True), (". ball", False)],
)
def test_a_sentence_begins_behind_a_stop(before: str, begins: bool) -> None:
    assert SETS.begins_sentence(ids(before)) is begins


def test_stops_of_a_large_vocabulary() -> None:
    """Qwen's and Llama's write a stop together with what stands around it."""
    known = [".", "!", "?", ".Ċ", "ĊĊ", '."', ".)", "Ġ...", "ãĢĤ", ",", ":", "Ġa", ".com", "Ġ("]
    vocabulary = {token: index for index, token in enumerate(["Ġ", *known])}
    tokenizer = SimpleNamespace(
        all_special_ids=[],
        added_tokens_decoder={},
        get_vocab=lambda: vocabulary,
        encode=lambda text, **_: [0],
        decode=lambda pieces: "",
    )
    stops = token_sets(tokenizer, ()).stops
    assert [token for token in known if vocabulary[token] in stops] == known[:9]


def test_bytes_of_sentencepiece() -> None:
    tokenizer = build_piece_tokenizer(" ".join(WORDS.split()))
    sets = token_sets(tokenizer, ())
    line, letter, torn, digit = tokenizer.convert_tokens_to_ids(["<0x0A>", "<0x3B>", "<0xC3>", "<0x31>"])
    assert line in sets.stops
    assert letter in sets.function
    assert [sets.any_protected(token) for token in (line, letter, torn, digit)] == [False, False, True, True]


def test_an_answers_first_token_is_nobodys_to_judge() -> None:
    assert not TokenSets(stops=frozenset({1})).begins_sentence([])


def test_ends_and_fixed_tokens_are_protected() -> None:
    sets = TokenSets(ends=frozenset({1}), protected=frozenset({2}), function=frozenset({3}))
    assert [sets.any_protected(token) for token in range(4)] == [False, True, True, False]
    assert sets.any_protected(3, 2)
    assert not sets.any_protected(3, 0)


def cutting(*pieces: str) -> SimpleNamespace:
    """A tokenizer with these pieces and single letters, which takes the longest piece each time."""
    letters = [chr(code) for code in range(33, 127)] + list("ĠĊ€−")
    vocabulary = {piece: index for index, piece in enumerate([*letters, *pieces])}

    def encode(text: str, **_: object) -> list[int]:
        rest, tokens = text.replace(" ", "Ġ").replace("\n", "Ċ"), []
        while rest:
            piece = max(filter(rest.startswith, vocabulary), key=len)
            tokens.append(vocabulary[piece])
            rest = rest.removeprefix(piece)
        return tokens

    return SimpleNamespace(
        all_special_ids=[], added_tokens_decoder={}, get_vocab=lambda: vocabulary, encode=encode
    )


def protected(tokenizer: SimpleNamespace, text: str) -> dict[str, bool]:
    """The pieces of a text, and whether each is protected."""
    sets, pieces = token_sets(tokenizer, ()), {index: piece for piece, index in tokenizer.get_vocab().items()}
    return {pieces[token]: sets.any_protected(token) for token in tokenizer.encode(text)}


def test_a_space_that_is_cut_from_digits_begins_a_number() -> None:
    words = [f"Ġ{letter}" for letter in f"{string.ascii_letters}'"]
    assert protected(cutting(*words), "( 12 a") == {"(": False, "Ġ": True, "1": True, "2": True, "Ġa": False}
    together = cutting(*words, *(f"Ġ{digit}" for digit in string.digits))
    assert protected(together, "( 12  a") == {"(": False, "Ġ1": True, "2": True, "Ġ": False, "Ġa": False}


@pytest.mark.parametrize("sign", ["$", "Ġ$", "€", "Ġ+", "−", "~", "#"])
def test_signs_begin_numbers(sign: str) -> None:
    assert protected(cutting("Ġ$", "Ġ+"), f"{sign}5".replace("Ġ", " ")) == {sign: True, "5": True}


def test_pieces_of_numerals_and_negations() -> None:
    tokenizer = cutting("Ġtw", "enty", "elve", "Ġcan", "'t", "Ġred", "Ġfour", "teen")
    assert protected(tokenizer, " twenty twelve fourteen red") == {
        "Ġtw": True, "enty": True, "elve": True, "Ġfour": True, "teen": True, "Ġred": False,
    }  # fmt: skip
    # A function word seldom begins a negation, and may be exchanged for another.
    assert protected(tokenizer, " can't") == {"Ġcan": False, "'t": True}


@pytest.mark.parametrize(
    ("one", "other", "contrary"),
    [
        ("Ġcheck", "Ġplain", True),  # checkered
        ("Ġcheck", "Ġred", False),
        ("Ġcheck", "ered", False),  # the same word
        ("Ġvan", "Ġappears", True),
        ("Ġvan", "Ġdisappears", False),  # vanishes
        ("Ġgr", "Ġred", True),  # green or grey
        ("een", "ey", True),
        ("ishes", "ished", False),  # vanishes, vanished
        ("ishes", "ishing", False),
    ],
)
def test_pieces_of_words_that_have_contraries(one: str, other: str, contrary: bool) -> None:
    tokenizer = cutting(
        *("Ġcheck", "ered", "Ġplain", "Ġred", "Ġvan", "ishes", "ished", "ishing", "Ġappears", "Ġdisappears"),
        *("Ġgr", "een", "ey"),
    )
    sets, vocabulary = token_sets(tokenizer, (), CONTRARIES), tokenizer.get_vocab()
    assert sets.are_contrary(vocabulary[one], vocabulary[other]) is contrary
    assert sets.are_contrary(vocabulary[other], vocabulary[one]) is contrary


def test_other_languages_are_protected_as_a_whole() -> None:
    tokenizer = cutting("Ġnicht", "Ġnie", "mals", "ä¸ī", "ä¸į", "Ġrot")
    sets, vocabulary = token_sets(tokenizer, ()), tokenizer.get_vocab()
    said = {piece: sets.any_protected(vocabulary[piece]) for piece in list(vocabulary)[-6:]}
    # nie, 三 and 不 are words; of niemals, which is cut here, the rest is none.
    assert said == {
        "Ġnicht": True, "Ġnie": True, "mals": False, "ä¸ī": True, "ä¸į": True, "Ġrot": False
    }  # fmt: skip


VOCABULARIES = {
    "tiny": lambda: TOKENIZER.backend_tokenizer,
    "tiny pieces": lambda: build_piece_tokenizer(" ".join(WORDS.split())).backend_tokenizer,
    "demo": lambda: Tokenizer.from_file("lvspec_cli/demo/pair/target/tokenizer.json"),
    "Qwen": lambda: qwen_vocabulary("qwen"),
    "Qwen3.6, its first": lambda: qwen_vocabulary("qwen3_6", 30_000),
}


@pytest.fixture(scope="module", params=VOCABULARIES)
def core(request: pytest.FixtureRequest) -> Tokenizer:
    return VOCABULARIES[request.param]()


@pytest.fixture(scope="module")
def sets(core: Tokenizer) -> TokenSets:
    return token_sets(PreTrainedTokenizerFast(tokenizer_object=core), (), CONTRARIES)


class TestLaws:
    """Where a word is cut, the piece from which on an answer would say something else is never loose."""

    @staticmethod
    def said(core: Tokenizer, before: str, words: Iterable[str]) -> list[list[int]]:
        texts = [before + word for word in words]
        return [text.ids for text in core.encode_batch(texts, add_special_tokens=False)]

    @staticmethod
    def difference(one: list[int], other: list[int]) -> int:
        return next(at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)

    @pytest.mark.parametrize("before", ["There are ", "So:\n"])
    def test_numbers(self, core: Tokenizer, sets: TokenSets, before: str) -> None:
        (words,) = self.said(core, before, ["several balls"])
        for number in self.said(core, before, (f"{number} balls" for number in range(10_000))):
            place = self.difference(number, words)
            assert sets.any_protected(number[place]), core.decode(number)

    @pytest.mark.parametrize("before", ["There are ", "So:\n"])
    @pytest.mark.parametrize("form", [str, str.capitalize])
    def test_numerals_and_negations(self, core: Tokenizer, sets: TokenSets, before: str, form: Any) -> None:
        words = sorted(map(form, NUMERALS | NEGATIONS))
        (start,) = self.said(core, before.rstrip(" "), [""])
        for word, whole in zip(words, self.said(core, before, words), strict=True):
            first, *others = whole[len(start) :]
            begins = first in sets.function and others
            assert begins or sets.any_protected(first), word
            assert all(map(sets.any_protected, others)), word

    @pytest.mark.parametrize("before", ["It ", "So:\n"])
    @pytest.mark.parametrize("form", [str, str.capitalize])
    def test_contraries(self, core: Tokenizer, sets: TokenSets, before: str, form: Any) -> None:
        for line in CONTRARIES:
            meanings = [self.said(core, before, map(form, words.split())) for words in line.split(",")]
            for ours, theirs in combinations(meanings, 2):
                for one, other in product(ours, theirs):
                    place = self.difference(one, other)
                    assert sets.are_contrary(one[place], other[place]), (core.decode(one), core.decode(other))
