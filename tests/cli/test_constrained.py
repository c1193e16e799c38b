"""``--choices`` and ``--schema`` of ask and caption: what the record holds, and wrong use."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lvspec_cli.errors import UsageError
from lvspec_cli.library import load
from tests.conftest import Printed
from tests.schemas import check

Run = Callable[..., Printed]
SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}, "colour": {"enum": ["red", "green"]}},
    "required": ["sure", "colour"],
    "additionalProperties": False,
}


@pytest.fixture
def lvspec(here: Run, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    Path("schema.json").write_text(json.dumps(SCHEMA))

    def run(*arguments: object) -> Printed:
        return here(*arguments, "-q", environment={"LVSPEC_MODELS": str(tiny_models)})

    return run


def test_a_choice_is_the_text_and_the_value_of_the_record(lvspec: Run, video_file: Path) -> None:
    asked = ("ask", video_file, "Is it red?", "--choices", "yes, no, not sure")
    row = json.loads(lvspec(*asked, "--json").stdout)
    assert row["value"] == row["text"]
    assert row["value"] in ("yes", "no", "not sure")
    assert row["settings"]["constraint"] == {"choices": ["yes", "no", "not sure"]}
    assert (row["mode"], row["lossless"]) == ("lvspec", True)  # no choice is accepted loosely
    assert lvspec(*asked).stdout == row["text"] + "\n"
    free = json.loads(lvspec(*asked[:3], "--json").stdout)
    assert (free["value"], "constraint" in free["settings"]) == (None, False)
    assert free["key"] != row["key"]


def test_json_is_parsed_and_what_is_cut_off_has_failed(lvspec: Run, video_file: Path) -> None:
    captioned = ("caption", video_file, "--prompt", "Which?", "--schema", "schema.json", "-o")
    assert lvspec(*captioned, "whole.jsonl").returncode == 0
    row = json.loads(Path("whole.jsonl").read_text())
    assert json.loads(row["text"]) == row["value"]
    assert row["value"].keys() == {"sure", "colour"}
    assert lvspec(*captioned, "cut.jsonl", "--max-new-tokens", 4).returncode == 1
    cut = json.loads(Path("cut.jsonl").read_text())
    check("record", row)
    check("record", cut)
    assert (cut["status"], cut["error"]["kind"], cut["value"]) == ("error", "unfinished", None)
    assert cut["text"].startswith('{"')
    asked = lvspec("ask", video_file, "Which?", "--schema", "schema.json", "--max-new-tokens", 4)
    assert asked.returncode == 1
    assert asked.stderr == f"error: {cut['error']['message']}\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--choices", "yes,no", "--schema", "schema.json"], "exclude each other"),
        (["--choices", "yes,no", "--think"], "--think goes with free answers only"),
        (["--choices", "yes"], "names no two different answers"),
        (["--choices", "yes,no,yes"], "names no two different answers"),
        (["--choices", "yes,,no"], "names no two different answers"),
        (["--schema", "broken.json"], "broken.json, line 2: not JSON"),
        (["--schema", "list.json"], "list.json: not a JSON schema"),
        (["--schema", "unknown.json"], "the schema cannot be used: Invalid type: colour"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_constrain_is_refused_before_anything_is_loaded(
    lvspec: Run, flags: list[str], message: str
) -> None:
    Path("broken.json").write_text('{\n"type" "object"}')
    Path("list.json").write_text("[]")
    Path("unknown.json").write_text('{"type": "colour"}')
    for command in (["ask", "no.mp4", "What?"], ["caption", "no.mp4"]):
        failed = lvspec(*command, *flags)
        assert failed.returncode == 2
        assert message in failed.stderr


def test_the_library_constrains_as_the_commands_do(lvspec: Run, tiny_models: Path, video_file: Path) -> None:
    row = json.loads(lvspec("ask", video_file, "Is it red?", "--choices", "yes,no", "--json").stdout)
    model = load("tiny", models=tiny_models)
    record = model.ask(video_file, "Is it red?", choices=["yes", "no"])
    assert (record.key, record.value) == (row["key"], row["value"])
    (captioned,) = model.caption([video_file], "Which?", schema=SCHEMA)
    assert captioned.value is not None and json.loads(captioned.text or "") == captioned.value
    assert [
        one.value in ("a", "b") for one in model.ask_all(video_file, ["A?", "B?"], choices=["a", "b"])
    ] == [
        True,
        True,
    ]
    wrong: list[tuple[Any, Any, bool, str]] = [
        (["yes"], None, False, "no two different answers"),
        ("yes", None, False, "no two different answers"),
        (["a", "b"], SCHEMA, False, "exclude each other"),
        ((), {"type": "colour"}, False, "the schema cannot be used"),
        (["a", "b"], None, True, "free answers only"),
    ]
    for choices, schema, think, message in wrong:
        with pytest.raises(UsageError, match=message):
            model.ask(video_file, "Which?", choices=choices, schema=schema, think=think)


def test_a_missing_library_is_named(lvspec: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    failed = lvspec("ask", "no.mp4", "What?", "--choices", "yes,no")
    assert failed.returncode == 2
    assert "lvspec[constrained]" in failed.stderr
    assert lvspec("caption", "no.mp4", "--schema", "gone.json").returncode == 4
