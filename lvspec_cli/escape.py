"""Text from outside (a model, a file name, a message) made safe to print in a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from shlex import quote

# C0 but for tab and line feed, DEL, C1, line and paragraph separators, marks that turn the direction of
# text, the byte order mark, tag characters, and lone surrogates (bytes of a file name that are not UTF-8).
_ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The same text with escapes for all characters that could control a terminal.

    Tabs and line feeds stay. A byte of a file name that is not UTF-8 becomes ``\\xff``, for example.
    """
    return _ACTIVE.sub(_escape, text)


def visible_line(text: str) -> str:
    """As ``visible``, with tabs and line feeds escaped as well."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def shell_words(words: Sequence[str]) -> str:
    """A command line to print and paste. Words that ``visible_line`` would change become ``$'...'``."""
    return " ".join(quote(word) if visible_line(word) == word else _dollar_quoted(word) for word in words)


def _dollar_quoted(word: str) -> str:
    safe = (
        f"\\{letter}"
        if letter in "'\\"
        else letter
        if visible_line(letter) == letter
        else "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))
        for letter in word
    )
    return f"$'{''.join(safe)}'"


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
