"""Text that grows token by token, without a character ever torn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lvspec_cli.types import Piece, TokenKind

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextStream:
    """Turns tokens into pieces of text as they come; the pieces and the tail make up ``text``.

    A token that ends in the middle of a character gives an empty piece; the token that completes
    the character gives all of it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._shown = 0

    def feed(self, tokens: Sequence[int], kinds: Sequence[TokenKind]) -> tuple[Piece, ...]:
        """The text that these tokens complete, one piece a token that completes any."""
        pieces = []
        for token, kind in zip(tokens, kinds, strict=True):
            self._tokens.append(token)
            if text := self._stream.step(self._tokenizer, token):
                pieces.append(Piece(text, kind))
                self._shown += len(text)
        return tuple(pieces)

    @property
    def text(self) -> str:
        """All of it, as the tokenizer decodes it at once."""
        return self._tokenizer.decode(self._tokens, skip_special_tokens=True)

    @property
    def tail(self) -> str:
        """What ``feed`` has held back."""
        return self.text[self._shown :]
