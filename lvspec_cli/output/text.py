"""An answer's tokens as text: in pieces without incomplete characters, apart from thoughts before it, and as
a trace of its rounds.

The trace has one JSON object a round, with the reason why each draft token was accepted or not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from lvspec_cli.types import Piece, Round, Thinking, TokenKind

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token of one byte, as SentencePiece writes them
_INCOMPLETE = "\ufffd"  # what stands for bytes that are no character, or none yet


class TextStream:
    """Turns tokens into pieces of text as they arrive. All pieces and the tail together are ``text``.

    A token that ends in the middle of a character gives no piece. The token that completes the character
    gives the whole character. Bytes that never become a character are U+FFFD, as in the text decoded at once.
    Spaces at the very beginning are left out: they belong to the end of the chat template.

    :param kept: special tokens that are text all the same. Others are left out.
    """

    def __init__(self, tokenizer: Tokenizer, kept: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().items()
        self._special = frozenset(index for index, token in added if token.special and str(token) not in kept)
        self._tokens: list[int] = []
        # A token's text can depend on the ones before it: those from ``_start`` on are decoded with it.
        self._start = self._decoded = 0
        self._shown = 0  # characters

    def feed(self, tokens: Sequence[int], kinds: Sequence[TokenKind]) -> tuple[Piece, ...]:
        """The new text: one piece for each token that completes some."""
        pieces = []
        for token, kind in zip(tokens, kinds, strict=True):
            self._tokens.append(token)
            text = self._new_text(token)
            if not self._shown:
                text = text.lstrip(" ")
            if text:
                pieces.append(Piece(text, kind))
                self._shown += len(text)
        return tuple(pieces)

    def _new_text(self, token: int) -> str:
        """What the newest token completes; nothing while the character is incomplete.

        A byte that follows can make a whole run of bytes invalid: they are decoded when the run has ended.
        Special tokens, which are no text, do not end it.
        """
        if token in self._special or _BYTE.fullmatch(self._tokenizer.id_to_token(token) or ""):
            return ""
        before = self._decode(self._tokens[self._start : self._decoded])
        text = self._decode(self._tokens[self._start :])
        if text.endswith(_INCOMPLETE) or len(text) <= len(before):
            return ""
        self._start, self._decoded = self._decoded, len(self._tokens)
        return text[len(before) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        texts = [token for token in tokens if token not in self._special]
        return self._tokenizer.decode(texts, skip_special_tokens=False)

    @property
    def text(self) -> str:
        """The whole text, decoded at once."""
        return self._decode(self._tokens).lstrip(" ")

    @property
    def tail(self) -> str:
        """Text that ``feed`` has not returned yet."""
        return self.text[self._shown :]


@dataclass(frozen=True)
class Parts:
    """The parts of a text that may begin with thoughts."""

    thoughts: str | None  # without their tags; None if it does not begin with any
    answer: str  # without space before it, if there are thoughts
    is_answer: bool  # whether the answer has begun


def split_thoughts(text: str, thinking: Thinking, *, complete: bool) -> Parts:
    """Separates the thoughts at the beginning of a text from the answer.

    There are none if neither the prompt nor the text itself opens them. While a text grows, its answer only
    grows as well.

    :param complete: whether the text is over. If not, its end may be the first part of a tag.
    """
    inside = text.lstrip()
    if not thinking.opened and not inside.startswith(thinking.start):
        may_open = not complete and thinking.start.startswith(inside)
        return Parts(None, "" if may_open else text, is_answer=not may_open)
    thoughts, end, answer = inside.removeprefix(thinking.start).partition(thinking.end)
    return Parts(thoughts.strip(), answer.lstrip(), is_answer=bool(end))


class AnswerStream:
    """A TextStream of the answer alone, for a target that may think first. The thoughts are kept apart.

    :param thinking: None if the target is not to think.
    """

    def __init__(self, tokenizer: Tokenizer, thinking: Thinking | None = None) -> None:
        self._thinking = thinking
        self._stream = TextStream(tokenizer, (thinking.start, thinking.end) if thinking else ())
        self._seen = ""  # the text so far, until a part of the answer has been returned
        self._shown = 0  # characters of the answer
        self._before = 0  # tokens before the answer has begun
        self.is_answer = thinking is None  # whether the answer has begun

    def feed(self, tokens: Sequence[int], kinds: Sequence[TokenKind]) -> tuple[Piece, ...]:
        """The new text of the answer: one piece for each token that completes some."""
        pieces = []
        for token, kind in zip(tokens, kinds, strict=True):
            self._before += not self.is_answer
            for piece in self._stream.feed((token,), (kind,)):
                if text := self._answer_in(piece.text):
                    pieces.append(Piece(text, kind))
                    self._shown += len(text)
        return tuple(pieces)

    def _answer_in(self, new: str) -> str:
        """What the newest text adds to the answer."""
        if self._thinking is None or self._shown:
            return new
        self._seen += new
        parts = split_thoughts(self._seen, self._thinking, complete=False)
        self.is_answer = parts.is_answer
        return parts.answer

    @property
    def parts(self) -> Parts:
        """The whole text, decoded at once."""
        text = self._stream.text
        return (
            split_thoughts(text, self._thinking, complete=True)
            if self._thinking
            else Parts(None, text, is_answer=True)
        )

    @property
    def thought_tokens(self) -> int:
        """How many tokens the thoughts have, with the tag that ends them."""
        return 0 if self.parts.thoughts is None else self._before

    @property
    def tail(self) -> str:
        """Text of the answer that ``feed`` has not returned yet."""
        return self.parts.answer[self._shown :]


MARK: Final = b'{"question": 1, "round": '  # first bytes of a trace


class TraceToken(BaseModel):
    """A token, and its text alone."""

    model_config = ConfigDict(extra="forbid")

    id: int
    text: str


class OutputToken(TraceToken):
    kind: TokenKind


class TraceRow(BaseModel):
    """One line of a trace: one round of an answer (docs/records.md, "The trace")."""

    model_config = ConfigDict(extra="forbid")

    question: int  # from 1
    round: int  # from 0, the token from prefill
    prefill: bool
    accepted_length: int
    draft: tuple[TraceToken, ...]
    target: tuple[TraceToken, ...]  # one more than drafted
    relevance: tuple[float | None, ...]
    gap: tuple[float | None, ...]  # nats
    loss: float | None  # nats
    verdict: tuple[Literal["exact", "filler", "shift", "rejected", "unread"], ...]
    output: tuple[OutputToken, ...]


def trace_row(question: int, number: int, done: Round, word: Callable[[int], str]) -> dict[str, Any]:
    """The row of one round. ``question`` counts from 1, ``number`` from 0 (the token from prefill).

    :param word: the text of one token.
    """
    return {
        "question": question,
        "round": number,
        "prefill": done.prefill,
        "accepted_length": len(done.tokens),
        "draft": [_token(token, word) for token in done.drafted],
        "target": [_token(token, word) for token in done.target],
        "relevance": [_finite(value) for value in done.relevance],
        "gap": [_finite(value) for value in done.gap],
        "loss": _finite(done.loss),
        "verdict": verdicts(done),
        "output": [
            {**_token(token, word), "kind": kind.value}
            for token, kind in zip(done.tokens, done.kinds, strict=True)
        ],
    }


def verdicts(done: Round) -> list[str]:
    """One for each drafted token: its kind if it was accepted, ``rejected`` if the target replaced it, and
    ``unread`` for tokens after that."""
    accepted = [kind.value for kind in done.kinds if kind is not TokenKind.TARGET][: len(done.drafted)]
    after = len(done.drafted) - len(accepted)
    rejected = ["rejected"] if after and done.kinds[-1:] == (TokenKind.TARGET,) else []
    return accepted + rejected + ["unread"] * (after - len(rejected))


def trace_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _token(token: int, word: Callable[[int], str]) -> dict[str, Any]:
    return {"id": token, "text": word(token)}


def _finite(value: float) -> float | None:
    """JSON has no other numbers, and a text among numbers would be no number for a reader of columns."""
    return round(value, 6) if math.isfinite(value) else None
