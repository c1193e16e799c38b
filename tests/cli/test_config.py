"""config.toml and ``lvspec config``: defaults of flags, where they hold, and what is wrong with them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from lvspec_cli.cli.config import Settings, read_settings
from lvspec_cli.cli.groups import App
from lvspec_cli.cli.main import app
from lvspec_cli.errors import UsageError
from tests.conftest import Printed

Run = Callable[..., Printed]
Prompts = Annotated[list[str] | None, typer.Option("--prompt")]
ROOT = typer.main.get_command(app)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lvspec" / "config.toml"
    path.parent.mkdir()
    return path


def test_keys_hold_for_all_commands_or_for_one():
    values = {
        ("", "frames"): 16, ("", "pair"): "demo", ("", "quiet"): True, ("", "prompt"): "Who?",
        ("ask", "frames"): 8, ("bench", "frames"): 4, ("caption", "prompt"): ["A", "B"],
    }  # fmt: skip
    defaults = Settings(Path("c"), values).default_map(ROOT)
    assert defaults["ask"] == {"frames": "8", "pair": "demo", "quiet": True}
    assert defaults["caption"] == {"frames": "16", "pair": "demo", "quiet": True, "prompt": ["A", "B"]}
    assert defaults["bench"] == {"frames": "4"}, "what is measured depends on no file that nobody sees"
    assert defaults["tune"] == {}
    assert defaults["models"]["fit"] == {"frames": "16"}


def test_a_flag_goes_first_then_the_environment_then_the_file(here: Run, file: Path):
    file.write_text('pair = "from-file"\n')
    assert "named 'from-file'" in here("ask", "x.mp4", "q").stderr
    assert "note: --pair came from config.toml" in here("ask", "x.mp4", "q").stderr
    variable = {"LVSPEC_PAIR": "from-variable"}
    assert "named 'from-variable'" in here("ask", "x.mp4", "q", environment=variable).stderr
    done = here("ask", "x.mp4", "q", "--pair", "from-flag", environment=variable)
    assert "named 'from-flag'" in done.stderr
    assert "note:" not in done.stderr
    shown = here("config", environment=variable).stdout.splitlines()
    assert shown[1].split() == ["pair", "from-variable", "environment,", "LVSPEC_PAIR"]
    assert here("config").stdout.splitlines()[1].split() == ["pair", "from-file", str(file)]
    assert "from-file, from config.toml" in here("ask", "-h", environment={"COLUMNS": "200"}).stdout


def test_what_is_set_is_shown(here: Run, file: Path):
    file.write_text("# mine\nthreads = 2 # few\n")
    for words in (["ask.frames", "3"], ["caption.prompt", "A b", "c"], ["quiet", "on"], ["threads", "4"]):
        assert here("config", "set", *words).returncode == 0
    assert file.read_text() == (
        '# mine\nthreads = 4 # few\nquiet = true\n\n[ask]\nframes = 3\n\n[caption]\nprompt = ["A b", "c"]\n'
    )
    shown = {line.split()[0]: line for line in here("config").stdout.splitlines()}
    assert shown["caption.prompt"].split() == ["caption.prompt", "'A", "b'", "c", str(file)]
    assert shown["device"].split() == ["device", "auto", "default"]
    assert here("config", "unset", "ask.frames").returncode == 0
    assert "[ask]" not in file.read_text()
    assert "frames is not set there" in here("config", "unset", "ask.frames").stderr
    explained = here("config", "explain", "threads").stdout
    assert f"value: 4 ({file})\n" in explained
    assert "taken by: ask, chat, caption" in explained


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_nothing_is_broken_inside_a_word_in_a_terminal(
    here: Run, file: Path, monkeypatch: pytest.MonkeyPatch, columns: int
):
    prompt = "Say what happens, who is there, and how it ends, in one sentence of plain words."
    file.write_text(f"[caption]\nprompt = '{prompt}'\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    width = {"COLUMNS": str(columns)}
    for command in (["config"], ["config", "explain", "caption.prompt"], ["config", "explain", "device"]):
        lines = re.sub(r"\x1b\[[\d;]*m", "", here(*command, environment=width).stdout).splitlines()
        assert all(len(line) <= columns or str(file) in line for line in lines), lines
        words = " ".join(lines).split()
        assert command[-1] == "device" or all(word in words for word in prompt.strip(".").split()[:-1])


def test_a_flag_takes_the_place_of_its_rival_in_the_file():
    other = App()

    @other.command()
    def caption(prompt: Prompts = None, prompt_file: str | None = None, frames: int | None = None) -> None:
        print(prompt, prompt_file, frames)

    def run(*words: str) -> str:
        defaults = {"prompt": ["A", "B"], "frames": "3"}
        return CliRunner().invoke(other, words, default_map=defaults).stdout.strip()

    assert run() == "['A', 'B'] None 3"
    assert run("--prompt-file", "p") == "None p 3"
    assert run("--prompt", "C", "--prompt-file", "p") == "['C'] p 3", "both were typed: the command says so"


WRONG = [
    ("frames = 'many'", "config.toml: Invalid value for '--frames'", "try: lvspec config"),
    ("frame = 3", "there is no key 'frame'", "did you mean frames?"),
    ("[asks]\nframes = 3", "there is no command 'asks'", "did you mean ask?"),
    ("force = true", "that flag is for one run", "give it in the command line"),
    ("frames = 3\nframes = 4", "Cannot overwrite a value", "fix that line"),
    ("frames = 1979-05-27", "frames is neither text", "fix it"),
    ("[ask.frames]\na = 1", "frames is neither text", "fix it"),
    ("modes = 'ar'", "no command takes it from all", "write bench.modes"),
    ("\x00", "config.toml", "try: "),
]


@pytest.mark.parametrize(("text", "cause", "remedy"), WRONG)
def test_what_is_wrong_in_the_file_is_said(here: Run, file: Path, text: str, cause: str, remedy: str):
    file.write_text(text)
    done = here("ask", "x.mp4", "q")
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert cause in first
    assert remedy in second


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["frames", "x"], "Invalid value for '--frames'"),
        (["frames", "1", "2"], "frames takes one value, not 2"),
        (["quiet", "maybe"], "quiet is not true or false"),
        (["pair", "nope"], "there is no pair named 'nope'"),
        (["gamma", "0"], "0 is neither auto nor a number"),
        (["yes", "true"], "that flag is for one run"),
    ],
)
def test_what_would_be_refused_is_not_written(here: Run, file: Path, words: list[str], cause: str):
    done = here("config", "set", *words)
    assert done.returncode in (2, 3)
    assert cause in done.stderr
    assert not file.exists()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match="Is a directory"):
        read_settings(tmp_path, ROOT)
    assert read_settings(tmp_path / "none", ROOT).values == {}
