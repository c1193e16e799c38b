"""An answer that is written into a terminal as it comes, in lines that end between words."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter

from lvspec_cli.types import TokenKind

Paint = Callable[[str, TokenKind], str]


class WordLines:
    """Text that comes in pieces. A word is held back until it is whole, because it may have to begin a line.

    :param width: of the terminal; None passes everything on.
    :param paint: gives text the colour of its kind; without, there are no colours.
    """

    def __init__(self, width: int | None, paint: Paint | None = None) -> None:
        self._width, self._paint = width, paint
        self._column = 0
        self._space = ""
        self._word: list[tuple[str, TokenKind | None]] = []  # letters, each with its kind

    def feed(self, text: str, kind: TokenKind | None = None) -> str:
        """What can be written now. ``kind``: of the tokens; None for what is not an answer's."""
        if self._width is None:
            return text
        out = ""
        for letter in text:
            if letter.isspace():
                out += self._take()
                self._space += letter
                if letter == "\n":
                    out, self._space, self._column = out + self._space, "", 0
            else:
                if self._cells + _cells(letter) > self._width:
                    out += self._take()  # a word that is too long for a line
                self._word.append((letter, kind))
                if _cells(letter) == 2:
                    out += self._take()  # a script without spaces
        return out

    def end(self) -> str:
        """The rest, after which another text may begin."""
        out, self._column, self._space = self._take(), 0, ""
        return out

    @property
    def _cells(self) -> int:
        """Those of the word."""
        return sum(_cells(letter) for letter, _ in self._word)

    def _take(self) -> str:
        if not self._word:
            return ""
        assert self._width is not None
        cells = self._cells
        if self._column and self._column + len(self._space) + cells > self._width:
            self._space, self._column = "\n", 0
        out = self._space + self._painted()
        self._column += cells + (0 if self._space == "\n" else len(self._space))
        self._space, self._word = "", []
        return out

    def _painted(self) -> str:
        painted = ""
        for kind, run in groupby(self._word, itemgetter(1)):
            text = "".join(letter for letter, _ in run)
            painted += self._paint(text, kind) if self._paint and kind else text
        return painted


def _cells(letter: str) -> int:
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
