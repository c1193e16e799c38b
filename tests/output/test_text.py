from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from lvspec_cli.output.text import TextStream
from lvspec_cli.types import TokenKind
from tests.tiny_tokenizers import build_piece_tokenizer, build_tokenizer

TOKENIZER = build_tokenizer()
CORE: Tokenizer = TOKENIZER.backend_tokenizer


def bytes_tokenizer() -> Tokenizer:
    """SentencePiece's ways, as of Llama: spaces are part of words, and what is in no word is bytes."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "\u2581red",
        "ball",
        "\u4e2d",
    ]
    core = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [], byte_fallback=True))
    core.add_special_tokens(words[:3])
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return core


CORES = [CORE, build_piece_tokenizer().backend_tokenizer, bytes_tokenizer()]


def stream(tokens: list[int], core: Tokenizer = CORE) -> tuple[TextStream, list[str]]:
    text = TextStream(core)
    pieces = [piece.text for token in tokens for piece in text.feed([token], [TokenKind.EXACT])]
    return text, pieces


@pytest.mark.parametrize("core", CORES, ids=["bytes of BPE", "pieces", "bytes of SentencePiece"])
@given(data=st.data())
def test_pieces_and_tail_are_what_the_tokenizer_decodes_at_once(core: Tokenizer, data: st.DataObject):
    tokens = data.draw(st.lists(st.integers(0, core.get_vocab_size() - 1), max_size=40))
    text, pieces = stream(tokens, core)
    whole = core.decode(tokens, skip_special_tokens=True).lstrip(" ")
    assert text.text == whole
    assert "".join(pieces) + text.tail == whole


@pytest.mark.parametrize(
    ("tokens", "pieces", "tail"),
    [
        (["\u2581red", "<0xE4>", "<0xB8>", "<0xAD>", "ball"], ["red", "\u4e2dball"], ""),
        (["<0xE4>", "<0xB8>", "<0xAD>", "<0xFF>", "ball"], ["\ufffd\ufffd\ufffd\ufffdball"], ""),
        (["\u2581red", "<0xE4>"], ["red"], "\ufffd"),
        (["\u2581", "\u2581red", "\u2581red"], ["red", " red"], ""),
    ],
)
def test_bytes_that_are_torn_are_no_error(tokens: list[str], pieces: list[str], tail: str):
    core = bytes_tokenizer()
    vocabulary = core.get_vocab()
    text, found = stream([vocabulary[token] for token in tokens], core)
    assert (found, text.tail) == (pieces, tail)


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
