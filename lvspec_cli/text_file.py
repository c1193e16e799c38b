"""Reads text files that people write: UTF-8, or UTF-16 as Windows writes it (Excel's "Unicode text").

Every reader has a limit on the size of a file.
"""

from __future__ import annotations

import io
import os
import stat
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from lvspec_cli.errors import UsageError

MIB: Final = 2**20
RECORDS, LISTS, PROMPTS, SETTINGS = 512 * MIB, 256 * MIB, 4 * MIB, 1 * MIB  # the most that is read, in bytes


def read_file(path: Path, most: int) -> bytes:
    """All of a regular file, or of a FIFO: ``<(command)`` of a shell is one.

    :raises UsageError: it is neither, or holds more than ``most`` bytes.
    :raises OSError: it cannot be opened or read.
    """
    mode = path.stat().st_mode  # before it is opened, because opening a device may wait or have side effects
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISDIR(mode)):
        raise UsageError(f"{path} is a device or a socket, not a file", "name a file")
    with path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size > most:  # before any memory is allocated
            raise _too_large(str(path), most)
        return read_stream(stream, str(path), most)


def read_own(path: Path, most: int) -> bytes:
    """The content of a file that lvspec itself writes. It is not read if it is not a regular file any more.

    Raises as ``read_file`` does.
    """
    if not (path.is_file() or path.is_dir()) and path.exists():
        raise UsageError(f"{path} is not a regular file", "move it away")
    return read_file(path, most)


def read_stream(stream: BinaryIO, name: str, most: int) -> bytes:
    """All of a stream.

    :param name: its name in messages.
    :raises UsageError: it holds more than ``most`` bytes.
    """
    raw = stream.read(most + 1)
    if len(raw) > most:
        raise _too_large(name, most)
    return raw


def _too_large(name: str, most: int) -> UsageError:
    return UsageError(f"{name}: larger than {most // MIB} MiB", "name another file, or make it smaller")


def text_of(raw: bytes, name: str) -> str:
    """The text of a file's bytes, without its byte order mark.

    :param name: the file's name in messages.
    :raises UsageError: it is not text in either encoding; the cause names the line.
    """
    text = text_with_names(raw, name)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _no_text(name, text, error.start, "not UTF-8 text") from None
    return text


def text_with_names(raw: bytes, name: str) -> str:
    """As ``text_of``, but bytes that are not UTF-8 become surrogates, because file names may contain them."""
    if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        try:
            text = raw.decode("utf-16")
        except UnicodeDecodeError as error:
            before = raw[: error.start].decode("utf-16", "ignore")
            raise _no_text(name, before, len(before), "begins as UTF-16 and is not") from None
    else:
        text = raw.removeprefix(BOM_UTF8).decode("utf-8", "surrogateescape")
    if "\0" in text:
        what = "a NUL: UTF-16 without a byte order mark, or no text at all"
        raise _no_text(name, text, text.index("\0"), what)
    return text


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Lines and their numbers from 1, whether LF, CRLF or CR ends them."""
    return enumerate(io.StringIO(text, newline=None), 1)


def _no_text(name: str, text: str, offset: int, what: str) -> UsageError:
    line = text.count("\n", 0, offset) + 1
    return UsageError(f"{name}, line {line}: {what}", "save it as UTF-8 text")
