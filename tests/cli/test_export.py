"""``lvspec export`` as it is typed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lvspec_cli.output.records import to_line
from tests.conftest import Printed
from tests.output.rows import caption, failure

Run = Callable[..., Printed]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / "clips" / name).touch()
    return write(tmp_path, caption(b"a.mp4", "One."), caption(b"b.mp4", "Two."))


def write(folder: Path, *rows: object, tail: str = "") -> Path:
    path = folder / "captions.jsonl"
    path.write_text("".join(to_line(row) + "\n" for row in rows) + tail)  # type: ignore[arg-type]
    return path


def test_text_files_beside_the_clips(here: Run, records: Path):
    clips = records.parent / "clips"
    done = here("export", records, "--to", "txt", "--videos", clips, "--prefix", "ohwx ")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "txt files: 2 written, 0 unchanged\n")
    assert (clips / "a.txt").read_text() == "ohwx One.\n"
    (clips / "b.txt").write_text("mine")
    done = here("export", records, "--to", "txt", "--videos", clips)
    assert done.returncode == 5
    assert done.stderr.splitlines() == [
        "txt files: 1 written, 0 unchanged",
        f"error: {clips}/b.txt was not written by lvspec, or was changed since, and is left alone",
        "try: look at them; --force replaces them",
    ]
    assert (clips / "b.txt").read_text() == "mine"
    assert here("export", records, "--to", "txt", "--videos", clips, "--force").returncode == 0
    assert (clips / "b.txt").read_text() == "Two.\n"


def test_a_table_lies_beside_the_records(here: Run, records: Path):
    done = here("export", records, "--to", "csv")
    assert (done.returncode, done.stderr) == (0, f"{records.parent}/captions.csv: 2 captions written\n")
    assert here("export", records, "--to", "csv").stderr.endswith(": unchanged, 2 captions\n")
    assert here("export", records, "--to", "csv", "--suffix", "!").returncode == 0, "its own is replaced"
    assert "Two.!" in (records.parent / "captions.csv").read_text()


def test_a_table_can_go_to_stdout(here: Run, records: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(records.parent)
    done = here("export", records, "--to", "csv", "--out", "-")
    assert (done.returncode, done.stderr) == (0, "stdout: 2 captions written\n")
    assert done.stdout.startswith("id,file_name,")
    assert done.stdout.count("\n") == 3
    folder = here("export", records, "--to", "videofolder", "--videos", "clips", "--out", "-")
    assert (folder.returncode, folder.stdout) == (2, "")
    assert not Path("-").exists()


@pytest.mark.parametrize("to", ["txt", "srt", "vtt", "csv", "parquet", "videofolder", "musubi"])
def test_a_row_that_lvspec_cannot_have_written_is_named(here: Run, records: Path, to: str):
    odd = to_line(caption(b"c.mp4")).replace('"start": 0.0', '"start": "NaN"')
    records.write_text(records.read_text() + odd + "\n")
    done = here("export", records, "--to", to, "--videos", records.parent / "clips")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: {records}, line 3: not a record of lvspec (segment.start is not a time)",
        "try: name a file of records, or fix that line",
    ]


def test_help_says_what_a_csv_does_to_formulas(here: Run):
    assert "apostrophe" in here("export", "--help").stdout


def test_records_that_an_editor_saved_are_exported(here: Run, records: Path):
    rated = records.read_text().replace('"task"', '"rating": 5, "task"')
    records.write_text(rated, encoding="utf-8-sig")
    done = here("export", records, "--to", "csv")
    assert (done.returncode, done.stderr) == (0, f"{records.parent}/captions.csv: 2 captions written\n")


def test_failures_and_a_torn_end_are_said_and_are_a_1(here: Run, tmp_path: Path, records: Path):
    row = to_line(caption(b"c.mp4"))
    records = write(tmp_path, caption(b"a.mp4"), failure(b"b.mp4"), tail=row[:40])
    done = here("export", records, "--to", "txt", "--out-dir", tmp_path / "new")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"warning: {records}, line 3: cut off in its middle, left out",
        "txt files: 1 written, 0 unchanged",
        "left out: 1 that failed",
    ]


def test_many_skipped_clips_are_counted(here: Run, tmp_path: Path, records: Path):
    records = write(tmp_path, *(caption(b"gone\x1b%d.mp4" % number) for number in range(13)))
    done = here("export", records, "--to", "musubi", "--videos", tmp_path / "clips")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == f"{tmp_path}/captions.musubi.jsonl: 0 captions written"
    assert lines[1] == f"left out: gone\\x1b0.mp4: there is no such file in {tmp_path}/clips"
    assert (len(lines), lines[-1]) == (12, "left out: 3 more")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "Missing option '--to'"),
        (("--to", "xls"), 2, "'xls' is not one of 'txt', 'srt'"),
        (("--to", "txt"), 2, "txt files need a folder\ntry: give --videos DIR"),
        (("--to", "csv", "--out", "captions.jsonl"), 2, "is what would be exported"),
        (("--to", "csv", "--out", "captions.jsonl", "--force"), 2, "is what would be exported"),
        (("--to", "txt", "--videos", "nowhere"), 4, "nowhere: no such folder"),
        (("--to", "csv", "--out", "no/such/t.csv"), 5, "no/such: Not a directory\ntry: "),
        (
            ("--to", "csv", "--out", "pipe", "--force"),
            5,
            "pipe: not a regular file\ntry: name a file",
        ),
    ],
)
def test_wrong_usage(
    here: Run,
    records: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
):
    monkeypatch.chdir(records.parent)
    (records.parent / "no").touch()
    os.mkfifo("pipe")
    before = records.read_bytes()
    done = here("export", "captions.jsonl", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert records.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 4, "captions.jsonl: no such file"),
        ("", 4, "captions.jsonl: no record in it"),
        ("hello\n", 1, "captions.jsonl, line 1: not a record of lvspec (not JSON)\ntry: name a file"),
        ('{"id": "a"}\n', 1, "captions.jsonl, line 1: not a record of lvspec (no key)\ntry: name a file"),
    ],
)
def test_files_that_hold_no_records(here: Run, tmp_path: Path, content: str | None, code: int, message: str):
    if content is not None:
        (tmp_path / "captions.jsonl").write_text(content)
    done = here("export", tmp_path / "captions.jsonl", "--to", "csv")
    assert done.returncode == code
    assert message in done.stderr
    assert not (tmp_path / "captions.csv").exists()
