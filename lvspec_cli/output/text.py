"""An answer's tokens as text: in pieces without incomplete characters, and as a trace of its rounds.

The trace has one JSON object a round, with the reason why each draft token was accepted or not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from lvspec_cli.types import Piece, Round, TokenKind

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token of one byte, as SentencePiece writes them
_INCOMPLETE = "\ufffd"  # what stands for bytes that are no character, or none yet


class TextStream:
    """Turns tokens into pieces of text as they arrive. All pieces and the tail together are ``text``.

    A token that ends in the middle of a character gives no piece. The token that completes the character
    gives the whole character. Bytes that never become a character are U+FFFD, as in the text decoded at once.
    Spaces at the very beginning are left out: they belong to the end of the chat template.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(index for index, token in added.items() if token.special)
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
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    @property
    def text(self) -> str:
        """The whole text, decoded at once."""
        return self._decode(self._tokens).lstrip(" ")

    @property
    def tail(self) -> str:
        """Text that ``feed`` has not returned yet."""
        return self.text[self._shown :]


MARK: Final = b'{"question": 1, "round": '  # first bytes of a trace


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


def _finite(value: float) -> float | str:
    return round(value, 6) if math.isfinite(value) else str(value)
