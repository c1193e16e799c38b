"""Numerals, negations and function words of a tokenizer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lvspec_cli.models.words import (
    CONTRARIES,
    FUNCTION_WORDS,
    NEGATIONS,
    NUMERALS,
    TokenSets,
    token_sets,
)
from tests.tiny_tokenizers import WORDS, build_tokenizer

KINDS = "left Left Right top upper lower centre middle down bottom after before red blue small big large"
TOKENIZER = build_tokenizer(f"{WORDS} {KINDS} {KINDS} 12 2nd isn't don't never Never grün grün")
SETS = token_sets(TOKENIZER, (5, 6))


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
    assert token_sets(tokenizer, ()).are_contrary(first, second) is contrary


def test_a_word_says_one_thing() -> None:
    said = [word for line in CONTRARIES for meaning in line for word in meaning]
    assert len(said) == len(set(said))
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


def test_an_answers_first_token_is_nobodys_to_judge() -> None:
    assert not TokenSets(stops=frozenset({1})).begins_sentence([])


def test_ends_and_fixed_tokens_are_protected() -> None:
    sets = TokenSets(ends=frozenset({1}), protected=frozenset({2}), function=frozenset({3}))
    assert [sets.any_protected(token) for token in range(4)] == [False, True, True, False]
    assert sets.any_protected(3, 2)
    assert not sets.any_protected(3, 0)
