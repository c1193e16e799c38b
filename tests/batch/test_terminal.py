"""A batch in a real pseudo-terminal."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tests.batch.conftest import Caption
from tests.cli.terminal import Terminal
from tests.conftest import Shell, write_video


def test_the_view_of_a_batch_and_what_stays(endless_models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    clip = write_video(tmp_path / "clip.mp4")
    for number in range(12):
        shutil.copy(clip, folder / f"{number:02}.mp4")
    (folder / "09\x1b[31m.mp4").write_bytes(b"no video")
    shell = Shell(tmp_path, {"LVSPEC_MODELS": str(endless_models)})
    command = ("caption", folder, "--out", tmp_path / "out.jsonl", "--max-new-tokens", 60)
    terminal = Terminal(shell, *command)
    assert terminal.read(lambda text: "of 13 done" in text and "tokens a step" in text)
    shown = terminal.text
    for part in ("left", "answering", ".mp4"):
        assert part in shown, part
    terminal.resize(60, 10)
    assert terminal.finish() == 1
    left = terminal.scrollback
    assert "failed 09\\x1b[31m.mp4: not a video" in left.replace("\n", " ")
    assert re.search(
        r"12 captioned, 1 failed in .*: \d+\.\d+ captions/s, \d+ tokens/s", " ".join(left.split())
    )
    assert f"lvspec show {tmp_path}/out.jsonl" in left.replace(" \\\n   ", "").replace("\n", "")
    assert "of 13 done" not in left, "the live view leaves nothing behind"
    assert "answering" not in left
    assert b"\x1b[31m.mp4" not in terminal.raw
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 13


def test_no_terminal_gets_lines_and_no_escapes(caption: Caption, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4")
    done = caption(clip, "--out", "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr
    assert re.search(r"^loading: \d+\.\d s$", done.stderr, re.MULTILINE)
    assert "1 captioned, 0 failed" in done.stderr
    quiet = caption(clip, "--out", "out.jsonl", "--redo", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    (tmp_path / "bad.mp4").write_text("no video")
    bad = ("bad.mp4", "--out", "bad.jsonl", "--to", "txt", "-q")
    first, again = caption(*bad).stderr.splitlines(), caption(*bad).stderr.splitlines()
    assert first[0].startswith("failed bad.mp4: not a video")
    assert (first[1:], again) == (
        ["left out: 1 that failed"],
        [
            "warning: 1 failed in an earlier run: `lvspec show bad.jsonl --failed`",
            "left out: 1 that failed",
        ],
    )
    assert sorted(os.listdir(tmp_path / "state" / "lvspec")) == ["libraries.log", "runs.jsonl"]  # noqa: PTH208
