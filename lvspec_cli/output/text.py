"""Decodes text token by token, without incomplete characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lvspec_cli.types import Piece, TokenKind

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextStream:
    """Turns tokens into pieces of text as they arrive. All pieces and the tail together are ``text``.

    A token that ends in the middle of a character gives no piece. The token that completes the character
    gives the whole character.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._shown = 0

    def feed(self, tokens: Sequence[int], kinds: Sequence[TokenKind]) -> tuple[Piece, ...]:
        """The new text: one piece for each token that completes some."""
        pieces = []
        for token, kind in zip(tokens, kinds, strict=True):
            self._tokens.append(token)
            if text := self._stream.step(self._tokenizer, token):
                pieces.append(Piece(text, kind))
                self._shown += len(text)
        return tuple(pieces)

    @property
    def text(self) -> str:
        """The whole text, decoded at once."""
        return self._tokenizer.decode(self._tokens, skip_special_tokens=True)

    @property
    def tail(self) -> str:
        """Text that ``feed`` has not returned yet."""
        return self.text[self._shown :]
