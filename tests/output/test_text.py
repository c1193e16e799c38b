from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from lvspec_cli.output.text import AnswerStream, Parts, TextStream, split_thoughts
from lvspec_cli.types import Thinking, TokenKind
from tests.tiny_tokenizers import QWEN, build_piece_tokenizer, build_tokenizer

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


OPENED, UNOPENED = Thinking("</think>", opened=True), Thinking("</think>", opened=False)


@pytest.mark.parametrize(
    ("thinking", "text", "parts"),
    [
        (OPENED, "It is red.\n</think>\n\nRed.", Parts("It is red.", "Red.", is_answer=True)),
        (OPENED, "<think>\nIt is red.</think>Red.", Parts("It is red.", "Red.", is_answer=True)),
        (OPENED, "</think> Red.", Parts("", "Red.", is_answer=True)),
        (OPENED, "a</think>b</think> c", Parts("a", "b</think> c", is_answer=True)),
        (OPENED, "It is</thi", Parts("It is</thi", "", is_answer=False)),
        (OPENED, "It is </think>\n", Parts("It is", "", is_answer=True)),
        (OPENED, "", Parts("", "", is_answer=False)),
        (UNOPENED, "<think>\nIt is.\n</think>\nRed.", Parts("It is.", "Red.", is_answer=True)),
        (UNOPENED, "\n<think>It is", Parts("It is", "", is_answer=False)),
        (
            UNOPENED,
            "\nRed <think>or</think>",
            Parts(None, "\nRed <think>or</think>", is_answer=True),
        ),
        (UNOPENED, "<thin", Parts(None, "<thin", is_answer=True)),
        (UNOPENED, "", Parts(None, "", is_answer=True)),
        (Thinking("</seed:think>", opened=True), "a</seed:think>b", Parts("a", "b", is_answer=True)),
    ],
)
def test_thoughts_of_a_whole_text(thinking: Thinking, text: str, parts: Parts):
    assert split_thoughts(text, thinking, complete=True) == parts


def test_what_may_become_a_tag_is_no_answer_yet():
    for text in ("", "\n", "<thin"):
        assert split_thoughts(text, UNOPENED, complete=False) == Parts(None, "", is_answer=False)
    assert split_thoughts("<thing", UNOPENED, complete=False) == Parts(None, "<thing", is_answer=True)


WRITTEN = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "think", ">", "/", "\n", " ", "red ball", "\U0001f3ac"]),
    max_size=12,
).map("".join)


@given(text=WRITTEN, thinking=st.sampled_from([OPENED, UNOPENED]), data=st.data())
def test_an_answer_only_grows(text: str, thinking: Thinking, data: st.DataObject):
    whole = split_thoughts(text, thinking, complete=True)
    so_far = split_thoughts(
        text[: data.draw(st.integers(0, len(text)))], thinking, complete=data.draw(st.just(False))
    )
    assert whole.answer.startswith(so_far.answer)
    if so_far.is_answer:
        assert (whole.thoughts, whole.is_answer) == (so_far.thoughts, True)


def tags_as_text() -> Tokenizer:
    """Qwen's way: one token each, and no special ones."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer.backend_tokenizer


# The tags are several tokens, or one that is text, or one that is special and otherwise left out.
TAGGED = {
    "in pieces": CORE,
    "of SentencePiece": CORES[1],
    "tokens": tags_as_text(),
    "special tokens": build_tokenizer(special=(*QWEN, "<think>", "</think>")).backend_tokenizer,
}


@pytest.mark.parametrize("tags", TAGGED)
@given(text=WRITTEN, thinking=st.sampled_from([OPENED, UNOPENED]), data=st.data())
def test_a_stream_of_an_answer_is_the_answer_of_the_whole(
    tags: str, text: str, thinking: Thinking, data: st.DataObject
):
    """Wherever a round ends; the tags may come in pieces."""
    core = TAGGED[tags]
    tokens = [*core.encode(text, add_special_tokens=False).ids, core.token_to_id("<video>")]
    stream, streamed, rest = AnswerStream(core, thinking), "", tokens
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        pieces = stream.feed(rest[:count], [TokenKind.EXACT] * count)
        streamed, rest = streamed + "".join(piece.text for piece in pieces), rest[count:]
    read = TextStream(core, ("<think>", "</think>"))
    read.feed(tokens, [TokenKind.EXACT] * len(tokens))
    assert stream.parts == split_thoughts(read.text, thinking, complete=True)
    assert streamed + stream.tail == stream.parts.answer
    assert stream.thought_tokens <= len(tokens)
    if tags == "tokens":
        assert read.text == text.lstrip(" "), "no tag is lost"


@pytest.mark.parametrize("tags", TAGGED)
def test_tokens_of_thoughts_are_counted_to_the_end_of_the_tag(tags: str):
    core = TAGGED[tags]
    texts = ("red</think>", "\n\nball")
    thoughts, answer = (core.encode(text, add_special_tokens=False).ids for text in texts)
    stream = AnswerStream(core, OPENED)
    pieces = stream.feed([*thoughts, *answer], [TokenKind.FILLER] * len([*thoughts, *answer]))
    assert "".join(piece.text for piece in pieces) + stream.tail == "ball"
    assert (stream.thought_tokens, stream.parts.thoughts) == (len(thoughts), "red")
    without = AnswerStream(core, UNOPENED)
    without.feed(answer, [TokenKind.FILLER] * len(answer))
    assert (without.thought_tokens, without.parts.thoughts) == (0, None)


def test_a_stream_without_thinking_leaves_tags_alone():
    core = TAGGED["tokens"]
    stream = AnswerStream(core)
    tokens = core.encode("<think>red</think> ball").ids
    pieces = stream.feed(tokens, [TokenKind.EXACT] * len(tokens))
    assert "".join(piece.text for piece in pieces) == stream.parts.answer == "<think>red</think> ball"
    assert stream.is_answer
