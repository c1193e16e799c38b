"""An answer of a chat in a terminal: as it comes, in the colours of its tokens, broken between words."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from lvspec_cli.escape import visible
from lvspec_cli.types import Piece
from lvspec_cli.ui.render import STYLES


class WrappedAnswer:
    """Text for a terminal of ``width`` columns, piece by piece.

    A word is held back until it is whole, because it may have to begin a line.
    """

    def __init__(self, width: int, *, colours: bool) -> None:
        self._width, self._column = width, 0
        self._word = Text()
        self._gap = ""  # spaces before the word
        self._console = Console(
            file=io.StringIO(),
            width=10**6,
            force_terminal=colours,
            color_system="auto" if colours else None,
            highlight=False,
            markup=False,
            emoji=False,
        )

    def feed(self, pieces: Iterable[Piece]) -> str:
        """What can be written now."""
        ready = Text()
        for piece in pieces:
            for part in re.split(r"(\s+)", visible(piece.text)):
                if part and not part.isspace():
                    self._word.append(part, STYLES[piece.kind])
                elif part:
                    ready.append_text(self._whole_word())
                    self._space(ready, part)
        return self._drawn(ready)

    def end(self, tail: str = "") -> str:
        """What is left of the answer, with the end of its line."""
        self._word.append(visible(tail))
        return self._drawn(self._whole_word()) + "\n"

    def _space(self, ready: Text, spaces: str) -> None:
        if "\n" in spaces:
            ready.append("\n" * spaces.count("\n"))
            self._column = 0
        self._gap = spaces.rpartition("\n")[2]

    def _whole_word(self) -> Text:
        word, gap = self._word, self._gap
        self._word, self._gap = Text(), ""
        if not word:
            return word
        if self._column and self._column + len(gap) + cell_len(word.plain) > self._width:
            gap, self._column = "\n", 0
        else:
            self._column += len(gap)
        self._column += cell_len(word.plain)
        return Text(gap).append_text(word)

    def _drawn(self, text: Text) -> str:
        with self._console.capture() as captured:
            self._console.print(text, end="", soft_wrap=True)
        return captured.get()
