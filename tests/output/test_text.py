from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lvspec_cli.output.text import TextStream
from lvspec_cli.types import TokenKind
from tests.tiny_tokenizers import build_tokenizer

TOKENIZER = build_tokenizer()
CORE: Tokenizer = TOKENIZER.backend_tokenizer


def stream(tokens: list[int]) -> tuple[TextStream, list[str]]:
    text = TextStream(CORE)
    pieces = [piece.text for token in tokens for piece in text.feed([token], [TokenKind.EXACT])]
    return text, pieces


@given(st.lists(st.integers(0, CORE.get_vocab_size() - 1), max_size=40))
def test_pieces_and_tail_are_what_the_tokenizer_decodes_at_once(tokens: list[int]):
    text, pieces = stream(tokens)
    whole = TOKENIZER.decode(tokens, skip_special_tokens=True)
    assert text.text == whole
    assert "".join(pieces) + text.tail == whole


@given(st.text(max_size=30))
def test_no_piece_tears_a_character(written: str):
    text, pieces = stream(CORE.encode(written).ids)
    assert "".join(pieces) + text.tail == text.text
    if "\ufffd" not in written and not any(token in written for token in ("<|", "<image>", "<video>")):
        assert "\ufffd" not in "".join(pieces)


def test_a_piece_has_the_kind_of_the_token_that_completes_it():
    tokens = CORE.encode("é").ids
    assert len(tokens) > 1, "the character has to take several tokens"
    kinds = [TokenKind.FILLER] * (len(tokens) - 1) + [TokenKind.SHIFT]
    pieces = TextStream(CORE).feed(tokens, kinds)
    assert [(piece.text, piece.kind) for piece in pieces] == [("é", TokenKind.SHIFT)]


def test_special_tokens_are_no_text():
    ends = TOKENIZER.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    text, pieces = stream([*CORE.encode("red").ids, *ends])
    assert ("".join(pieces), text.tail) == ("red", "")


def test_as_many_kinds_as_tokens():
    with pytest.raises(ValueError, match="zip"):
        TextStream(CORE).feed([1, 2], [TokenKind.EXACT])
