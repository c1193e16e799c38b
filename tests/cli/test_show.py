"""``lvspec show``: records and reports, as people read them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lvspec_cli.bench.results import to_json
from lvspec_cli.output.records import Record, to_line
from lvspec_cli.ui.records import FIELDS, pages
from tests.bench.made import results
from tests.conftest import Printed
from tests.output.rows import caption, failure, part, record

Run = Callable[..., Printed]
ROWS = [
    caption(b"a.mp4", "A red dog runs.", segment=part(0, 10)),
    caption(b"a.mp4", "A cat\x1b[2J sleeps.", segment=part(10, None)),
    failure(b"b/\xff.mp4"),
    record(file_name="c.mp4", id="c.mp4", prompt="Who comes?", text="A man.\nThen a dog."),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(to_line(row) + "\n" for row in ROWS))
    return path


def test_who_said_what(here: Run, file: Path):
    done = here("show", file)
    assert done.returncode == 0
    assert done.stderr == "4 records, 1 failed\n"
    assert done.stdout.splitlines() == [
        "a.mp4",
        "  0 s to 10 s",
        "  A red dog runs.",
        "  from 10 s",
        "  A cat\\x1b[2J sleeps.",
        "b/\\xff.mp4",
        "  failed: no frame before the damage",
        "c.mp4",
        "  Who comes?",
        "  A man.",
        "  Then a dog.",
    ]


def test_a_terminal_gets_colours_unless_it_has_none(here: Run, file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for wanted, variables in ((True, {}), (False, {"NO_COLOR": "1"}), (False, {"TERM": "dumb"})):
        environment = {"TERM": "xterm", "NO_COLOR": "", **variables}
        assert ("\x1b[" in here("show", file, environment=environment).stdout) == wanted


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["a.mp4", "a.mp4", "b/\\xff.mp4", "c.mp4"]),
        (["--failed"], ["b/\\xff.mp4"]),
        (["--grep", "DOG"], ["a.mp4", "c.mp4"]),
        (["--grep", r"^b/"], ["b/\\xff.mp4"]),
        (["--grep", "damage|who"], ["b/\\xff.mp4", "c.mp4"]),
        (["--grep", "dog", "--failed"], []),
    ],
)
def test_records_are_chosen(here: Run, file: Path, arguments: list[str], names: list[str]):
    done = here("show", file, "--format", "{name}", *arguments)
    assert (done.returncode, done.stdout.splitlines()) == (0, names)
    ending = f"; {len(names)} shown" if arguments else ""
    assert done.stderr == f"4 records, 1 failed{ending}\n"


def test_a_format_makes_a_line_of_each(here: Run, file: Path):
    template = r"{name}\t{start:.0f}\t{text}{error} {{}}"
    lines = here("show", file, "-q", "--format", template).stdout.splitlines()
    assert lines[0] == "a.mp4\t0\tA red dog runs. {}"
    assert lines[1] == "a.mp4\t10\tA cat\\x1b[2J sleeps. {}"
    assert lines[3] == r"c.mp4" + "\t0\t" + r"A man.\nThen a dog. {}"
    every = here("show", file, "-q", "--format", " ".join(f"{{{name}}}" for name in FIELDS))
    assert len(every.stdout.splitlines()) == len(ROWS)


def test_a_file_that_is_being_written_is_shown_to_its_last_whole_row(here: Run, file: Path):
    whole = file.read_bytes()
    for end in (0, 1, 40, len(to_line(ROWS[0])) - 1):
        file.write_bytes(whole + to_line(ROWS[0]).encode()[:end])
        done = here("show", file, "--format", "{text}", "--grep", "man")
        assert (done.returncode, done.stdout) == (0, "A man.\\nThen a dog.\n")
        assert ("line 5: cut off in its middle" in done.stderr) == (end > 0)


WRONG = [
    (["--format", "{nam}"], "error: --format has no field {nam}", "try: fields are name, text"),
    (["--format", "{"], "error: --format '{': ", "try: write {{ and }} for braces"),
    (["--format", "{name.__class__}"], "error: --format has no field {name.__class__}", "try: fields"),
    (["--format", "{text:d}"], "error: --format '{text:d}': ", "try: leave out what follows the colon"),
    (["--grep", "("], "error: --grep '(': missing )", "try: put a backslash"),
    (["--open"], "captions.jsonl: no report", "try: name the folder that lvspec bench"),
]


@pytest.mark.parametrize(("arguments", "cause", "remedy"), WRONG)
def test_what_is_wrong_is_said_in_a_line(
    here: Run, file: Path, arguments: list[str], cause: str, remedy: str
):
    done = here("show", file, *arguments)
    assert done.returncode in (2, 4)
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert cause in first
    assert remedy in second


def test_a_line_that_is_no_record_ends_it_after_those_before(here: Run, file: Path):
    file.write_text(file.read_text() + "notes\n")
    done = here("show", file)
    assert done.returncode == 1
    assert done.stdout.endswith("Then a dog.\n")
    assert "line 5: not a record of lvspec (not JSON)" in done.stderr


def test_a_report_is_opened_in_a_browser(here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []

    def open_once(url: str) -> bool:
        opened.append(url)
        return len(opened) == 1

    monkeypatch.setattr("webbrowser.open", open_once)
    assert "no report" in here("show", tmp_path, "--open").stderr
    (tmp_path / "report.html").write_text("<p>")
    done = here("show", tmp_path, "--open")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/report.html\n")
    assert opened == [(tmp_path / "report.html").as_uri()]
    assert "no browser can be started" in here("show", tmp_path, "--open").stderr
    assert "are for records" in here("show", tmp_path, "--failed").stderr
    assert "no results of a bench in it\ntry: name a file of records" in here("show", tmp_path).stderr


def test_results_are_shown_as_the_bench_showed_them(here: Run, tmp_path: Path):
    (tmp_path / "results.json").write_text(to_json(results(())))
    said = here("show", tmp_path)
    assert said.stdout.startswith("mode\t")
    assert said.stderr.startswith("nothing was compared with ar\n1 prompt about 1 clip, measured")
    assert here("show", tmp_path, "-q").stderr == ""


def test_texts_are_wrapped_between_words_and_names_stand_once():
    rows: list[Record] = [caption(b"a.mp4", "one two three four five six-seven eight nine"), *ROWS[:1]]
    text = "".join(pages(rows, 20, lambda text, kind: f"<{kind} {text}>"))
    assert text == (
        "<name a.mp4>\n  one two three four\n  five six-seven\n  eight nine\n"
        "  0 s to 10 s\n  A red dog runs.\n"
    )
