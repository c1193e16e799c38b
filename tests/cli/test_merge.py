"""``lvspec merge`` as it is typed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lvspec_cli.output.jsonl import RecordFile, read_records
from lvspec_cli.output.records import Record, to_line
from tests.conftest import Printed, Shell
from tests.output.rows import caption, failure

Run = Callable[..., Printed]


def write(path: Path, *rows: Record, tail: str = "") -> Path:
    path.write_text("".join(to_line(row) + "\n" for row in rows) + tail)
    return path


def test_doubles_are_dropped_and_counted(here: Run, tmp_path: Path):
    early, late = caption(b"a.mp4", "Early."), caption(b"a.mp4", "Late.")
    first = write(tmp_path / "1.jsonl", early, failure(b"b.mp4"), caption(b"c.mp4", "Good."))
    second = write(tmp_path / "2.jsonl", late, caption(b"b.mp4", "Done."), failure(b"c.mp4"))
    third = write(tmp_path / "3.jsonl", failure(b"d.mp4"), failure(b"d.mp4"), tail=to_line(early)[:99])
    out = tmp_path / "out.jsonl"
    done = here("merge", out, first, second, third)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"warning: {third}, line 3: cut off in its middle, left out",
        f"{first}: 3 rows, 2 duplicates dropped, 0 failed",
        f"{second}: 3 rows, 1 duplicate dropped, 0 failed",
        f"{third}: 2 rows, 1 duplicate dropped, 1 failed",
        f"{out}: 4 rows, 1 failed",
    ]
    assert [row.text for row in read_records(out)] == ["Good.", "Late.", "Done.", None]
    assert out.read_text().splitlines()[1] == to_line(late), "rows are copied as they are"


def test_a_last_row_without_its_line_feed_is_whole(here: Run, tmp_path: Path):
    first = write(tmp_path / "1.jsonl", tail=to_line(caption(b"a.mp4")))
    second = write(tmp_path / "2.jsonl", caption(b"b.mp4"))
    assert here("merge", tmp_path / "out.jsonl", first, second).returncode == 0
    assert [row.file_name for row in read_records(tmp_path / "out.jsonl")] == ["a.mp4", "b.mp4"]


def test_what_has_no_record_is_listed(here: Run, tmp_path: Path):
    clips = tmp_path / "clips"
    (clips / "deep").mkdir(parents=True)
    for name in ("a.mp4", "deep/b.mp4", "deep/c\n.mp4", "deep/caf\udce9.mp4", "notes.md"):
        (clips / name).touch()
    shard = write(tmp_path / "1.jsonl", caption(b"a.mp4"), caption(b"deep/caf\xe9.mp4"))
    done = here("merge", tmp_path / "out.jsonl", shard, "--inputs", clips)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [f"{clips}/deep/b.mp4", f"{clips}/deep/c\\n.mp4"]
    assert done.stderr.endswith("2 inputs without a record:\n")
    done = here("merge", tmp_path / "out.jsonl", shard, "--inputs", clips, "--no-recursive", "--force")
    assert (done.returncode, done.stdout) == (0, "")


def test_what_may_have_a_record_under_another_folder_is_said(here: Run, tmp_path: Path):
    for name in ("d1/a.mp4", "d2/b.mp4", "d2/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    shard = write(tmp_path / "1.jsonl", caption(b"a.mp4"), caption(b"d2/b.mp4"))
    inputs = ("--inputs", tmp_path / "d1", "--inputs", tmp_path / "d2")
    done = here("merge", tmp_path / "out.jsonl", shard, *inputs)
    assert (done.returncode, done.stdout) == (1, f"{tmp_path}/d1/a.mp4\n{tmp_path}/d2/c.mp4\n")
    assert done.stderr.splitlines()[-2:] == [
        "2 inputs without a record:",
        "1 of them may have one under another folder: only `lvspec caption` compares contents",
    ]


def test_byte_order_marks_go_and_further_fields_stay(here: Run, tmp_path: Path):
    first, second = caption(b"a.mp4"), caption(b"b.mp4")
    rated = to_line(second).replace('"task"', '"rating": {"by": "me"}, "task"')
    for name, line in (("1.jsonl", to_line(first)), ("2.jsonl", rated)):
        (tmp_path / name).write_text(line + "\n", encoding="utf-8-sig")
    out = tmp_path / "out.jsonl"
    done = here("merge", out, tmp_path / "1.jsonl", tmp_path / "2.jsonl")
    assert done.returncode == 0, done.stderr
    assert out.read_text() == f"{to_line(first)}\n{rated}\n"


def test_a_pipe_is_never_replaced(here: Run, tmp_path: Path):
    shard = write(tmp_path / "1.jsonl", caption(b"a.mp4"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        done = here("merge", tmp_path / name, shard, "--force")
        said = f"error: {tmp_path}/{name}: not a regular file\ntry: name a file\n"
        assert (done.returncode, done.stderr) == (5, said)
    assert (tmp_path / "pipe").is_fifo()


def test_an_output_that_is_there_or_in_use_is_not_touched(here: Run, tmp_path: Path):
    shard = write(tmp_path / "1.jsonl", caption(b"a.mp4"))
    out = write(tmp_path / "out.jsonl", caption(b"b.mp4"))
    before = out.read_bytes()
    done = here("merge", out, shard)
    assert (done.returncode, out.read_bytes()) == (5, before)
    assert f"{out} is there already\ntry: " in done.stderr
    with RecordFile.open(out):
        done = here("merge", out, shard, "--force")
    assert (done.returncode, out.read_bytes()) == (5, before)
    assert "is being written by process" in done.stderr
    assert here("merge", out, out, shard, "--force").returncode == 0, "a shard may be the output"
    assert [row.file_name for row in read_records(out)] == ["b.mp4", "a.mp4"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["1.jsonl", "out.jsonl"]


HOLDER = """
import sys
from pathlib import Path
from lvspec_cli.output.jsonl import RecordFile
with RecordFile.open(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_file_that_is_being_written_is_not_replaced_without_its_lock_file(shell: Shell, tmp_path: Path):
    shard = write(tmp_path / "1.jsonl", caption(b"a.mp4"))
    out = write(tmp_path / "out.jsonl", caption(b"b.mp4"))
    before = out.read_bytes()
    writer = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)],
        env=shell.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout
    assert writer.stdout.readline() == b"held\n"
    out.with_name("out.jsonl.lock").unlink()
    done = shell.run("merge", out, shard, "--force")
    assert (done.returncode, out.read_bytes()) == (5, before)
    assert done.stderr.startswith(f"error: {out} is being written by another process")
    writer.communicate()
    out.chmod(0o444)
    assert shell.run("merge", out, shard, "--force").returncode == 0
    assert [row.file_name for row in read_records(out)] == ["a.mp4"]


@pytest.mark.parametrize(
    ("shard", "code", "message"),
    [
        ("none.jsonl", 4, "none.jsonl: no such file"),
        ("wrong.jsonl", 1, "wrong.jsonl, line 1: not a record"),
        (".", 1, ".: not a regular file"),
    ],
)
def test_a_shard_that_cannot_be_read_leaves_nothing_behind(
    here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: str, code: int, message: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.jsonl").write_text("hello\n")
    write(tmp_path / "good.jsonl", caption(b"a.mp4"))
    done = here("merge", "out.jsonl", "good.jsonl", shard)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["good.jsonl", "wrong.jsonl"]
