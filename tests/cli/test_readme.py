"""The README's commands run as they stand, and those of all pages are commands that lvspec takes."""

from __future__ import annotations

import csv
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import takewhile
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from lvspec_cli.cli.groups import RESEARCH
from lvspec_cli.cli.main import app
from lvspec_cli.pairs.registry import BUNDLED, PACKAGE, load_registry
from tests.conftest import Printed, write_video

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GENERATED = ("cli.md",)  # the help itself
PAGES = [README, *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in GENERATED)]
PAGES += [PACKAGE / "demo" / "README.md"]
SOURCES = ("lvspec_cli", "tests", "tools", "docs")
MOST_LINES = 120
READERS = "holiday"  # the names of the reader's own videos
SLOW = {command.name for command in app.registered_commands if command.rich_help_panel == RESEARCH}
LARGE = load_registry(environment={}).pairs.keys() - {BUNDLED}


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each ``lvspec`` command in an indented block, without what the shell reads itself."""
    for line in re.findall("^    (.*lvspec .*)$", text, re.MULTILINE):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        while words:
            part = list(takewhile(lambda word: word not in ("|", "&&"), words))
            words = words[len(part) + 1 :]
            if part and part[0] == "lvspec":
                yield list(takewhile(lambda word: word != ">", part[1:]))


def is_cheap(words: list[str]) -> bool:
    """Whether a command needs neither a model hub nor a large pair, and does not measure for minutes."""
    return words[0] not in SLOW and not LARGE & set(words)


@pytest.fixture(scope="module")
def parse() -> Callable[[list[str]], object]:
    """Raises typer.TyperException if the program does not take these arguments, and does nothing else."""

    def without_effect(command: object) -> None:
        assert isinstance(command, TyperCommand | TyperGroup)
        command.callback = lambda **values: None
        for below in getattr(command, "commands", {}).values():
            without_effect(below)

    root = typer.main.get_command(app)
    without_effect(root)
    return partial(root.main, prog_name="lvspec", standalone_mode=False)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('    lvspec ask a.mp4 "Why?" > answer.txt  # in a file', [["ask", "a.mp4", "Why?"]]),
        ('    echo "Why?" | lvspec ask a.mp4 - | cat', [["ask", "a.mp4", "-"]]),
        ("    lvspec config && lvspec doctor", [["config"], ["doctor"]]),
        ("    pip install 'lvspec[bench]'", []),
        ("or `lvspec config` alone", []),
    ],
)
def test_commands_are_found(line: str, expected: list[list[str]]) -> None:
    assert list(commands(line)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ask a.mp4 Why?", True),
        ("ask a.mp4 Why? --pair demo", True),
        ("ask a.mp4 Why? --pair qwen2.5-vl-32b-7b", False),
        ("models pull qwen3.5-9b-0.8b", False),
        ("models fit", True),
        ("bench --quick", False),
    ],
)
def test_what_is_cheap(line: str, expected: bool) -> None:
    assert is_cheap(line.split()) == expected


def test_the_readmes_commands_run_as_they_stand(
    here: Callable[..., Printed], tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, in one folder. About the reader's own videos a tiny pair answers, not a large one."""
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / f"{READERS}.mp4", seconds=125, rate=1)
    (tmp_path / READERS).mkdir()
    write_video(tmp_path / READERS / "beach.mp4")
    printed = {}
    for words in filter(is_cheap, commands(README.read_text(encoding="utf-8"))):
        is_own = any(READERS in word for word in words)
        done = here(*words, environment={"LVSPEC_MODELS": str(tiny_models)} if is_own else None)
        assert done.returncode == 0, (words, done.stderr)
        printed[" ".join(words)] = done.stdout
    assert next(iter(printed)) == "demo --dir clips"
    names = [f"clip_{number:04}.mp4" for number in range(1, 5)]
    assert re.findall("^clip_.*", printed["show captions.jsonl"], re.MULTILINE) == names
    assert printed["ask clips/clip_0001.mp4 What happens?"].strip().endswith(".")
    assert "  0 s to 2 s\n" in printed["show holiday.jsonl --grep beach"]  # one of the segments
    assert (tmp_path / READERS / "beach.srt").exists()
    with (tmp_path / f"{READERS}.csv").open(encoding="utf-8", newline="") as table:
        assert [row["file_name"] for row in csv.DictReader(table)] == ["beach.mp4", "beach.mp4"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_extras_links_and_files_of_a_page_are_right(
    page: Path, parse: Callable[[list[str]], object]
) -> None:
    text = page.read_text(encoding="utf-8")
    for words in commands(text):
        parse(words)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(re.findall(r"'lvspec\[(\w+)\]'", text)) <= set(project["optional-dependencies"])
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        if "://" in path:
            continue
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not heading or heading in anchors(file), target
    sources = [path.as_posix() for folder in SOURCES for path in (ROOT / folder).rglob("*.py")]
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert any(path.endswith(f"/{name}") for path in sources), name


def test_a_flag_that_is_none_is_found(parse: Callable[[list[str]], object]) -> None:
    with pytest.raises(typer.TyperException, match="No such option: --nope"):
        parse(["caption", "clips", "--nope"])


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are linked to."""
    headings = re.findall("^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short_and_its_targets_are_made() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    made = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"^    make (\w+)$", text, re.MULTILINE)) <= set(made)
