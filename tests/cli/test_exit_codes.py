"""The table of exit codes in docs/reliability.md: one real command for each row."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Printed, Shell

ROOT = Path(__file__).parents[2]
PINNED = ROOT / "tests" / "data" / "pinned"

COMMANDS: dict[int, tuple[str, ...]] = {
    0: ("models",),
    1: ("ask", "notes.mp4", "What happens?", "--pair", "demo"),
    2: ("ask", "notes.mp4", "What happens?", "--mode", "fast"),
    3: ("ask", "notes.mp4", "What happens?", "--pair", "qwen2.5-vl-32b-7b"),
    4: ("ask", "gone.mp4", "What happens?", "--pair", "demo"),
    5: ("ask", "notes.mp4", "What happens?", "--pair", "demo", "--trace", "no/such/folder/rounds.jsonl"),
    6: ("bench-compare", f"{PINNED}/bench", "slower.json"),
}
SIGNALS = {130: signal.SIGINT, 143: signal.SIGTERM}


def test_the_page_names_these_codes_and_no_others() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = page.partition("## Errors and exit codes\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
    assert [int(code) for row in rows for code in row.split(",")] == [*COMMANDS, *SIGNALS]


@pytest.mark.parametrize(("code", "command"), COMMANDS.items(), ids=map(str, COMMANDS))
def test_a_command_ends_with_its_code(
    here: Callable[..., Printed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    command: tuple[str, ...],
) -> None:
    (tmp_path / "notes.mp4").write_text("no video\n")
    measured = (PINNED / "bench" / "results.json").read_text()
    slower = measured.replace('"mean_accepted_length":5.7,', '"mean_accepted_length":4.0,')
    (tmp_path / "slower.json").write_text(slower)
    monkeypatch.chdir(tmp_path)
    done = here(*command)
    assert done.returncode == code, done.stderr
    assert ("error: " in done.stderr) == (code != 0)


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize(("code", "number"), SIGNALS.items(), ids=map(str, SIGNALS))
def test_a_signal_has_its_code(shell: Shell, tmp_path: Path, code: int, number: signal.Signals) -> None:
    os.mkfifo(tmp_path / "questions")  # to open it waits until the command reads it
    command = [*shell.command, "ask", "clip.mp4", "--questions", str(tmp_path / "questions")]
    running = subprocess.Popen(command, env=shell.environment, stderr=subprocess.PIPE, text=True)
    with (tmp_path / "questions").open("w"):
        running.send_signal(number)
        _, said = running.communicate(timeout=PATIENCE)
    assert (running.returncode, said) == (code, "interrupted\n")
