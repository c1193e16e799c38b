"""Measurements on the disk: what an interrupted run leaves, and what another run may take up."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvspec_cli.bench.journal import FILE_NAME, Header, digest_of, open_journal
from lvspec_cli.errors import OutputError, UsageError
from lvspec_cli.types import TokenKind
from tests.bench.made import ENVIRONMENT, SETTINGS, block, drafted, item, plain

HEADER = Header(settings=SETTINGS, environment=ENVIRONMENT, inputs=digest_of(["a"]))
ONE, TWO = item("one.mp4"), item("two.mp4", frames=4, error="broken\n")
FIRST = block(
    ONE,
    plain(1.0),
    drafted(
        0.5, (2, 1), tokens=(5, 6, 7, 8), kinds=(TokenKind.TARGET,) * 4, pieces=(("a ", TokenKind.EXACT),)
    ),
)
SECOND = block(ONE, plain(2.0), repeat=1)


def written(folder: Path) -> bytes:
    with open_journal(folder, HEADER) as kept:
        kept.add_item(ONE)
        kept.add_item(TWO)
        kept.add_item(ONE)  # known already
        kept.add_block(FIRST)
        kept.add_block(SECOND)
    return (folder / FILE_NAME).read_bytes()


def test_what_was_kept_comes_back(tmp_path: Path):
    written(tmp_path / "new" / "folder")
    with open_journal(tmp_path / "new" / "folder", HEADER) as kept:
        assert kept.items == {ONE.id: ONE, TWO.id: TWO}
        assert kept.blocks == {(ONE.id, 0): FIRST, (ONE.id, 1): SECOND}


def test_a_line_is_written_once(tmp_path: Path):
    assert len(written(tmp_path).splitlines()) == 1 + 2 + 2


def test_a_torn_line_is_cut_wherever_it_tears(tmp_path: Path):
    whole = written(tmp_path)
    path = tmp_path / FILE_NAME
    last = whole[:-1].rindex(b"\n") + 1
    for end in (last + 1, (last + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with open_journal(tmp_path, HEADER) as kept:
            assert list(kept.blocks) == [(ONE.id, 0)]
            kept.add_block(SECOND)
        assert path.read_bytes() == whole
    for end in (0, 1, whole.index(b"\n")):  # not even the header
        path.write_bytes(whole[:end])
        with open_journal(tmp_path, HEADER) as kept:
            assert (kept.items, kept.blocks) == ({}, {})
        assert path.read_bytes() == whole[: whole.index(b"\n") + 1]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"inputs": "other"}, "its clips or questions differ"),
        ({"settings": SETTINGS.model_copy(update={"gammas": (4, 8)})}, r"gammas was \[4\], is \[4, 8\]"),
        ({"environment": ENVIRONMENT.model_copy(update={"threads": 1})}, "threads was 2, is 1"),
    ],
)
def test_measurements_of_another_run_are_not_mixed_in(tmp_path: Path, changed, said):
    before = written(tmp_path)
    other = HEADER.model_copy(update=changed)
    with pytest.raises(UsageError, match=said) as refused, open_journal(tmp_path, other):
        pass
    assert "--redo" in refused.value.remedy
    assert (tmp_path / FILE_NAME).read_bytes() == before
    with open_journal(tmp_path, other, redo=True) as kept:
        assert kept.blocks == {}
    with open_journal(tmp_path, other) as kept:
        assert kept.items == {}


@pytest.mark.parametrize("redo", [False, True])
@pytest.mark.parametrize("text", ["my notes\n", "my notes", '{"schema": 1}\n'])
def test_a_file_of_something_else_stays_as_it_is(tmp_path: Path, text: str, redo: bool):
    (tmp_path / FILE_NAME).write_text(text)
    with (
        pytest.raises(OutputError, match=rf"{FILE_NAME} was not written by lvspec"),
        open_journal(tmp_path, HEADER, redo=redo),
    ):
        pass
    assert (tmp_path / FILE_NAME).read_text() == text


def test_measurements_of_another_version_are_not_gone_on_with(tmp_path: Path):
    (tmp_path / FILE_NAME).write_text('{"schema":"lvspec.measurements.9"}\n')
    with pytest.raises(UsageError, match="not measurements"), open_journal(tmp_path, HEADER):
        pass


def test_two_runs_do_not_write_one_file(tmp_path: Path):
    with (
        open_journal(tmp_path, HEADER),
        pytest.raises(OutputError, match="being written"),
        open_journal(tmp_path, HEADER),
    ):
        pass


def test_measurements_that_are_removed_while_they_are_written_stop_the_run(tmp_path: Path):
    with open_journal(tmp_path, HEADER) as kept:
        kept.add_item(ONE)
        (tmp_path / FILE_NAME).unlink()
        with pytest.raises(OutputError, match="was deleted or replaced while it was written"):
            kept.add_item(TWO)


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError), open_journal(tmp_path / "file" / "folder", HEADER):
        pass
