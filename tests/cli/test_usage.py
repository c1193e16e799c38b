"""Wrong usage and bad input: the exit code, one line of cause, one of remedy, nothing on stdout."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest

from tests.conftest import Printed, Shell, write_video

Run = Callable[..., Printed]
WRONG = [
    (["ask"], 2, "Missing argument 'VIDEO'"),
    (["ask", "x.mp4"], 2, "there is no question; write one after the video"),
    (["ask", "x.mp4", " "], 2, "a question is empty"),
    (["ask", "x.mp4", "-", "--question", "-"], 2, "stdin can be read only once"),
    (["ask", "x.mp4", "-"], 2, "a question is empty"),
    (["ask", "x.mp4", "q\udce9"], 2, "a question is not UTF-8 text"),
    (["ask", "x.mp4", "q", "--system", "\udce9"], 2, "--system is not UTF-8 text"),
    (["ask", "x.mp4", "q", "more"], 2, "unexpected extra argument"),
    (["ask", "x.mp4", "q", "--nope"], 2, "No such option: --nope"),
    (["ask", "x.mp4", "q", "--mode", "fast"], 2, "'fast' is not one of 'lvspec', 'exact', 'ar'"),
    (["ask", "x.mp4", "q", "--gamma", "0"], 2, "Invalid value for '--gamma'"),
    (["ask", "x.mp4", "q", "--max-new-tokens", "0"], 2, "'--max-new-tokens'"),
    (["ask", "x.mp4", "q", "--temperature", "0.5"], 2, "--temperature has no rule in mode lvspec yet"),
    (["ask", "x.mp4", "q", "--mode", "ar", "--temperature", "inf"], 2, "--temperature inf is out of range"),
    (["ask", "x.mp4", "q", "--relevance", "gut"], 2, "'gut' is not one of 'attention'"),
    (["ask", "x.mp4", "q", "--looseness", "very"], 2, "'very' is not one of 'strict'"),
    (["ask", "x.mp4", "q", "--filler-margin", "nan"], 2, "--filler-margin: Input should be greater"),
    (["ask", "x.mp4", "q", "--shift-window", "99"], 2, "--shift-window: Input should be less"),
    (["ask", "x.mp4", "q", "--frames", "0"], 2, "'--frames'"),
    (["ask", "x.mp4", "q", "--fps", "0"], 2, "--fps 0 is out of range; give a number above 0"),
    (["ask", "x.mp4", "q", "--start", "1:99"], 2, "'1:99' is not a time"),
    (["ask", "x.mp4", "q", "--start", "5", "--end", "0:05"], 2, "--end is not after --start"),
    (["ask", "x.mp4", "q", "--max-pixels", "3"], 2, "'--max-pixels'"),
    (["ask", "x.mp4", "q", "--decoder", "vlc"], 2, "'vlc' is not one of 'pyav', 'decord'"),
    (["ask", "x.mp4", "q", "--decode-timeout", "0"], 2, "--decode-timeout 0 is out of range"),
    (["ask", "x.mp4", "q", "--dtype", "int3"], 2, "'int3' is not one of 'auto'"),
    (["ask", "x.mp4", "q", "--models", "none.yaml"], 2, "none.yaml: No such file or directory"),
    (["ask", "x.mp4", "q", "--pair", "nope"], 3, "there is no pair named 'nope'"),
    (["ask", "x.mp4", "q", "--pair", "qwen2.5-vl-32b-7b"], 3, "is not wholly in the local cache"),
    (["ask", "x.mp4", "--questions", "none.txt"], 4, "none.txt: No such file or directory"),
    (["ask", "x.mp4", "q", "--trace", "no/such/folder/t"], 5, "no/such/folder/t: No such file or directory"),
    (["demo", "--count", "0"], 2, "'--count'"),
    (["nope"], 2, "No such command 'nope'"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG)
def test_wrong_usage(here: Run, arguments: list[str], code: int, message: str):
    printed = here(*arguments)
    assert printed.returncode == code
    assert message in printed.stderr
    assert printed.stdout == ""
    lines = printed.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) == 1 if code == 2 else len(lines) == 2
    assert all(line.startswith("try: ") for line in lines[1:])


def make_bad_files(folder: Path) -> dict[str, Path]:
    """One file of each kind that cannot be answered about."""
    whole = write_video(folder / "whole.mp4")
    files = {name: folder / f"{name}.mp4" for name in ("empty", "text", "truncated", "playlist")}
    files["empty"].touch()
    files["text"].write_text("just some notes\n" * 100)
    files["truncated"].write_bytes(whole.read_bytes()[:400])
    files["playlist"].write_text(f"#EXTM3U\n#EXTINF:2,\nfile://{whole}\n#EXT-X-ENDLIST\n")
    return files


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "playlist"])
def test_a_file_that_cannot_be_read_is_a_1(tiny_shell: Shell, tmp_path: Path, kind: str):
    file = make_bad_files(tmp_path)[kind]
    done = tiny_shell.run("ask", file, "What?")
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    *_, cause, remedy = done.stderr.splitlines()
    assert cause.startswith("error: ")
    assert file.name in cause
    assert remedy.startswith("try: ")
    assert "Traceback" not in done.stderr


def test_its_record_says_why(tiny_shell: Shell, tmp_path: Path):
    from lvspec_cli.output.records import Record

    done = tiny_shell.run(
        "ask", make_bad_files(tmp_path)["text"], "What?", "--question", "Why?", "--json", "--quiet"
    )
    assert done.returncode == 1
    records = [Record.model_validate_json(line) for line in done.stdout.splitlines()]
    assert [record.prompt for record in records] == ["What?", "Why?"]
    assert {record.error.kind for record in records if record.error} == {"not_a_video"}


@pytest.mark.parametrize("name", ["none.mp4", "-none.mp4", "http:none.mp4", "."])
def test_no_such_file_is_a_4(tiny_shell: Shell, tmp_path: Path, name: str):
    done = tiny_shell.run("ask", "--", name, "What?", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert done.stderr.splitlines()[-2].startswith("error: ")


def test_debug_shows_where_an_error_came_from(tiny_shell: Shell):
    assert "Traceback" not in tiny_shell.run("ask", "none.mp4", "What?").stderr
    done = tiny_shell.run("ask", "none.mp4", "What?", "--debug")
    assert (done.returncode, "Traceback" in done.stderr) == (4, True)


def test_names_cannot_act_on_the_terminal(tiny_shell: Shell, tmp_path: Path):
    bad = tmp_path / "evil\x1b[2J\u202e.mp4"
    bad.write_text("not a video")
    done = tiny_shell.run("ask", bad, "What?")
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    assert "\u202e" not in done.stderr
    assert "evil\\x1b[2J\\u202e.mp4" in done.stderr


def test_python_errors_read_as_one_line_too(capsys: pytest.CaptureFixture[str]):
    import typer

    from lvspec_cli.cli.reporting import reporting

    with pytest.raises(typer.Exit) as ended, reporting(debug=False):
        raise ZeroDivisionError("division by zero")
    assert ended.value.exit_code == 1
    cause, remedy = capsys.readouterr().err.splitlines()
    assert cause == "error: ZeroDivisionError: division by zero"
    assert "--debug" in remedy


def list_pairs(shell: Shell, stdout: int | TextIO) -> subprocess.CompletedProcess[str]:
    command = [*shell.command, "models"]
    return subprocess.run(
        command, env=shell.environment, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
    )


def test_closed_stdout_is_said(shell: Shell):
    command = ["sh", "-c", '"$@" >&-', "sh", *shell.command, "models"]
    done = subprocess.run(command, env=shell.environment, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 5
    assert "standard output is closed" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_said(shell: Shell):
    with Path("/dev/full").open("w") as full:
        done = list_pairs(shell, full)
    assert done.returncode == 5
    assert "cannot write to standard output: No space left" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_a_reader_that_leaves_is_no_error(shell: Shell):
    reading, writing = os.pipe()
    os.close(reading)
    done = list_pairs(shell, writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + 13, "")
