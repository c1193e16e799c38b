"""Streams that are closed, full, narrow or gone: rows are what counts, and JSON is UTF-8."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lvspec_cli.cli.reporting import LIBRARY_LOG
from tests.batch.processes import until
from tests.conftest import Printed, Shell, write_video
from tests.warm import entry_after

FEW = ("--max-new-tokens", 4)
ENCODINGS = ("ascii", "latin-1", "cp1252", "utf-8", "utf-16", "shift_jis")
NAME = "caf\u00e9 \u65e5\u672c \U0001f3ac.mp4"


@pytest.fixture
def clips(video_file: Path, tmp_path: Path) -> Path:
    """Three clips, of which one cannot be read."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(video_file.read_bytes())
    (folder / "c.mp4").write_bytes(b"no video")
    return folder


def rows(file: Path) -> list[str]:
    return [json.loads(line)["status"] for line in file.read_text(encoding="utf-8").splitlines()]


CLOSED = "os.close(2)\nimport sys\nsys.stderr = sys.__stderr__ = None"  # what Python itself makes of it
FULL = "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)"


@pytest.mark.parametrize(("first", "further"), [(CLOSED, ("--quiet", "--workers", 2)), (FULL, ())])
def test_messages_that_cannot_be_written_cost_no_row(
    tiny_shell: Shell, clips: Path, tmp_path: Path, first: str, further: tuple[object, ...]
) -> None:
    out = tmp_path / "out.jsonl"
    done = tiny_shell.run("caption", clips, "--out", out, *FEW, *further, first=first)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert sorted(rows(out)) == ["error", "ok", "ok"]


def test_a_reader_of_messages_that_leaves_costs_no_row(
    tiny_shell: Shell, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    command = [*tiny_shell.command, *map(str, ("caption", clips, "--out", out, *FEW))]
    running = subprocess.Popen(command, env=tiny_shell.environment, stderr=subprocess.PIPE)
    assert running.stderr
    assert running.stderr.readline() == b"0 done, 0 failed, 3 to do\n"
    running.stderr.close()
    assert running.wait() == 1
    assert sorted(rows(out)) == ["error", "ok", "ok"]


def test_a_terminal_that_is_gone_costs_no_row(tiny_shell: Shell, clips: Path, tmp_path: Path) -> None:
    out, (ours, theirs) = tmp_path / "out.jsonl", os.openpty()
    ignoring = entry_after("import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)")
    command = [*ignoring, *map(str, ("caption", clips, "--out", out, *FEW))]
    environment = {**tiny_shell.environment, "TERM": "xterm"}
    running = subprocess.Popen(
        command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    assert os.read(ours, 100)  # it has begun to talk
    os.close(ours)
    assert running.wait() == 1
    assert sorted(rows(out)) == ["error", "ok", "ok"]


def test_no_file_gets_the_number_of_a_closed_stream(
    endless_models: Path, video_file: Path, tmp_path: Path
) -> None:
    shell = Shell(tmp_path, {"LVSPEC_MODELS": str(endless_models)})
    command = [*shell.command, "ask", str(video_file), "What?", "--trace", str(tmp_path / "t.jsonl")]
    closing = ["sh", "-c", 'exec "$@" 0<&- 2>&-', "sh", *command]
    running = subprocess.Popen(closing, env=shell.environment, stdout=subprocess.PIPE)
    try:
        assert until(lambda: (tmp_path / "t.jsonl").exists())
        time.sleep(0.1)
        opened = Path(f"/proc/{running.pid}/fd")
        assert (opened / "0").readlink() == Path("/dev/null")
        assert (opened / "2").readlink().name == LIBRARY_LOG
    finally:
        running.send_signal(signal.SIGKILL)
        running.communicate()


def test_a_closed_stdout_is_one_error(tiny_shell: Shell) -> None:
    closing = ["sh", "-c", 'exec "$@" 1>&-', "sh", *tiny_shell.command, "models"]
    done = subprocess.run(closing, env=tiny_shell.environment, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr.startswith("error: standard output is closed\ntry: ")


@pytest.mark.sampled
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", ["ask", "caption"])
def test_records_are_utf_8_whatever_stdout_is(
    here: Callable[..., Printed],
    tiny_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    encoding: str,
) -> None:
    behind = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(behind, encoding=encoding))
    video = write_video(tmp_path / NAME)
    prompt = "Was? \u65e5"
    asked = {"ask": (prompt, "--json"), "caption": ("--prompt", prompt, "--out", "-")}
    done = here(command, video, *asked[command], *FEW, environment={"LVSPEC_MODELS": str(tiny_models)})
    assert done.returncode == 0, done.stderr
    (line,) = behind.getvalue().decode("utf-8").splitlines()
    record = json.loads(line)
    assert (record["file_name"], record["prompt"]) == (NAME, prompt)


@pytest.mark.thorough
def test_records_are_utf_8_in_a_process_of_another_encoding(tiny_shell: Shell, tmp_path: Path) -> None:
    video = write_video(tmp_path / NAME)
    shell = Shell(tiny_shell.home, {**tiny_shell.extra, "PYTHONIOENCODING": "ascii"})
    done = shell.run("caption", video, "--out", "-", *FEW, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["file_name"] == NAME
