"""What is read as the text of a file."""

from __future__ import annotations

import os
import threading
from codecs import BOM_UTF16_BE, BOM_UTF32_LE
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.errors import UsageError
from lvspec_cli.text_file import MIB, lines_of, read_file, text_of, text_with_names

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(
    lambda text: not text.startswith("\ufeff")
)


@given(TEXTS)
def test_every_encoding_gives_the_same_text(text: str):
    for raw in (
        text.encode(),
        text.encode("utf-8-sig"),
        text.encode("utf-16"),
        BOM_UTF16_BE + text.encode("utf-16-be"),
    ):
        assert text_of(raw, "a.txt") == text
        assert text_with_names(raw, "a.txt") == text


@given(
    st.binary().filter(
        lambda raw: b"\0" not in raw and raw[:2] not in (b"\xff\xfe", b"\xfe\xff", b"\xef\xbb")
    )
)
def test_names_keep_bytes_that_are_not_utf_8(raw: bytes):
    assert text_with_names(raw, "a.txt").encode("utf-8", "surrogateescape") == raw


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (b"one\ntwo caf\xe9\n", "line 2: not UTF-8 text"),
        (b"\x00\x00\x00\x20ftypisom", "line 1: a NUL: UTF-16 without a byte order mark, or no text at all"),
        ("one\ntwo".encode("utf-16-le"), "line 1: a NUL"),
        (BOM_UTF32_LE + "one".encode("utf-32-le"), "line 1: a NUL"),
        ("one\ntwo".encode("utf-16") + b"x", "line 2: begins as UTF-16 and is not"),
        ("one\ntwo".encode("utf-16") + b"\x00\xd8o\0", "line 2: begins as UTF-16 and is not"),
    ],
)
def test_what_is_no_text_is_said_with_its_line(raw: bytes, cause: str):
    with pytest.raises(UsageError) as caught:
        text_of(raw, "a.txt")
    assert caught.value.cause.startswith(f"a.txt, {cause}")
    assert caught.value.remedy == "save it as UTF-8 text"


def test_lines_may_end_in_three_ways():
    assert list(lines_of("a\nb\r\nc\r\rd")) == [(1, "a\n"), (2, "b\n"), (3, "c\n"), (4, "\n"), (5, "d")]


def test_a_file_may_hold_as_much_as_is_allowed_and_no_more(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"x" * MIB)
    assert read_file(file, MIB) == b"x" * MIB
    file.write_bytes(b"x" * (MIB + 1))
    with pytest.raises(UsageError, match=r"a\.txt: larger than 1 MiB"):
        read_file(file, MIB)


def test_a_fifo_is_read_as_a_shell_gives_one(tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(b"a.mp4\n",))
    writer.start()
    assert read_file(fifo, MIB) == b"a.mp4\n"
    writer.join()


def test_a_device_is_no_file():
    with pytest.raises(UsageError, match="/dev/zero is a device or a socket, not a file"):
        read_file(Path("/dev/zero"), MIB)
