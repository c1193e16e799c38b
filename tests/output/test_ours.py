"""Which files are written over unasked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lvspec_cli.bench.run import MARKS
from lvspec_cli.errors import OutputError
from lvspec_cli.output.files import check_all_ours, check_folder, check_ours, has_mark

MARK = b'{"question": 1, "round": '


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\n", b"\0\0", MARK, MARK + b"0}\n", b'{"que', b'{"que\0\0\n', b"# first\n" + MARK],
)
def test_nothing_empty_files_and_files_with_the_mark_pass(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "t").write_bytes(content)
    check_ours(tmp_path / "t", MARK, "name another")


@pytest.mark.parametrize("content", [b"\0\0\0\x20ftypisom", b"notes", b'{"question": 2}', b" " * 9999 + MARK])
def test_other_files_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(OutputError, match=r"/t was not written by lvspec, and is left alone$") as caught:
        check_ours(tmp_path / "t", MARK, "name another")
    assert caught.value.remedy == "name another"
    assert not has_mark(tmp_path / "t", MARK)


def test_what_is_no_regular_file_is_not_read(tmp_path: Path):
    os.mkfifo(tmp_path / "t")
    check_ours(tmp_path / "t", MARK, "name another")
    check_ours(tmp_path, MARK, "name another")


@pytest.mark.parametrize("name", sorted(MARKS))
def test_one_file_of_somebody_else_is_enough(tmp_path: Path, name: str):
    check_all_ours(tmp_path / "not there", MARKS)
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=name):
        check_all_ours(tmp_path, MARKS)


def test_a_folder_is_looked_at_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_folder(tmp_path / "not" / "yet")
    monkeypatch.setattr("lvspec_cli.output.files.LEAST_FREE", 2**80)
    with pytest.raises(OutputError, match="the disk is full"):
        check_folder(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(OutputError, match=f"{tmp_path}: no permission to write there"):
        check_folder(tmp_path / "not" / "yet")
