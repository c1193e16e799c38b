"""Keys of records as lvspec 0.1.0 makes them: another key, and what users have captioned is captioned again.

A key is a hash of names and values. Whoever renames a field of the settings, changes a default, or adds a
fact makes other keys. All are taken from what the commands print for files that cannot be read, so that no
model is loaded; every key is also computed anew from the record's own fields, which is its definition.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lvspec_cli import __version__
from lvspec_cli.errors import VideoError
from lvspec_cli.events import Answered, Event
from lvspec_cli.output.records import to_line
from lvspec_cli.pairs.registry import PACKAGE, load_registry
from lvspec_cli.pipeline import ask
from lvspec_cli.request import AskRequest, PairChoice
from lvspec_cli.types import DecodeSettings, Mode, VideoRequest
from tests.conftest import Printed

Run = Callable[..., Printed]
Row = dict[str, Any]

CONTENT = b"no video\n"
COMMITS = {"target": "a" * 40, "draft": "b" * 40}
# A pair that says nothing of how it is used: what holds are the defaults of lvspec.
MODELS = f"""
default: pinned
pairs:
  pinned:
    target: {{repo: pins/target, revision: {COMMITS["target"]}}}
    draft: {{repo: pins/draft, revision: {COMMITS["draft"]}}}
"""

# All that a key is made of, beside the file's name, size and content.
FACTS = "segment task system prompt pair target draft mode settings revisions sampling"
SAMPLING = "frames fps max_pixels decoder"
LOADING = "target draft dtype device"
SETTINGS = {
    "lvspec": "gamma adaptation rule max_new_tokens temperature seed repetition_guard draft_keep fallback",
    "exact": "gamma adaptation max_new_tokens temperature seed repetition_guard draft_keep fallback",
    "ar": "max_new_tokens temperature seed repetition_guard",
}
RULE = """relevance anchor_threshold anchor_margin filler_margin sentence_margin shift_window max_loose_run
max_loose_in_window loose_window never_loosely random_rate layers"""

RULE_FLAGS = """--relevance lens --anchor-threshold 0.25 --anchor-margin 0.75 --filler-margin inf
--sentence-margin 0.5 --shift-window 3 --max-loose-run 4 --max-loose-in-window 7 --loose-window 14
--layer 2 --layer -1"""
VIDEO_FLAGS = "--start 1 --end 0:02.5 --fps 2 --frames 8 --max-pixels 50176 --background white"

ASKED = {
    "": "c8370745f91d78a7c8289ddb74b95838",
    "--mode exact": "8f9a4250144a619fcd140b0a29bc195b",
    "--mode ar": "2171f94fabd9577efe12f61d9519751c",
    "--mode exact --temperature 0.5 --seed 7": "7686518637c99f432ea942df713b7043",
    "--mode ar --temperature 0.5 --seed 7": "0e39f6c1a21f6020c1d2918c8a56f587",
    "--gamma 4": "a5df6617646dbe7336fcaada8f6edd8b",
    "--mode exact --gamma 4": "5212f6b7f6aa4fb38eb3a514c1525a59",
    "--no-fallback": "45bf66c27ee2e93793502b2eb080d118",
    "--draft-keep 0.5": "4c3a9021c6f98e33e8f5e06d6224f9f3",
    "--draft-keep 0.5 --draft-keep-by even": "5ac4a02c72afe25311637a0c4d18f4d4",
    "--max-new-tokens 8": "9ba1ea7f054947d268c4e6026a4e016f",
    "--looseness strict": "3f31599423083dff8c8cdedd2c556b20",
    "--looseness loose": "9ab72d6969b6a7ad9a73caa6db783dbc",
    "--defer 2 --no-defer-sure --max-loss 0.07": "b1cae2ca1214a4ae93a6eea2e9053e3a",
    RULE_FLAGS: "1540778068aaa925f0d4f52bdbe004f7",
    VIDEO_FLAGS: "d05ed8937dfd4dc7fee527775aaa2282",
    "--decoder decord": "c6c5582e20a3b65a98b48f4e5c5397a6",
    "--dtype bfloat16": "4ff85243089834c458e59b538a1e0083",
    "--system Briefly.": "1d801b9596aa46ad96e676b729e41ba8",
}
CAPTIONED = {
    "": "97a7d457806890082de13eb3e57e38b0",
    "--mode exact": "f2f54e12e930890e6f57604dfe4421b9",
    "--mode ar": "ff3b8417c77658c15613a1ba2baa57d6",
    "--fallback": "b9eb56982c63d9c9eb69a46eb2a9e90c",
    "--gamma 4": "eadcad40e8d310c20017e917a9475d76",
}
BUNDLED = {
    "ask": "c2cef4f32c2e09af6eadfc8457d3c47b",
    "caption": "b83b51fa5552043c67406c6a76519329",
}
LIBRARY = {
    Mode.LVSPEC: "2fcadf630404c5b0b9c0a91ab65a06b1",
    Mode.EXACT: "dc0853fbe8983a56a106b7e8871e6dd3",
    Mode.AR: "56be6bd9632b3badddafae9f03213cf8",
}


@pytest.fixture
def lvspec(here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in a folder of files that are no videos, and a cache that holds the pair."""
    for role, commit in COMMITS.items():
        snapshots = tmp_path / f"models--pins--{role}" / "snapshots"
        snapshots.mkdir(parents=True)
        (snapshots / commit).symlink_to(PACKAGE / "demo" / "pair" / role)
    (tmp_path / "models.yaml").write_text(MODELS)
    (tmp_path / "clip.mp4").write_bytes(CONTENT)
    os.mkfifo(tmp_path / "pipe.mp4")
    monkeypatch.chdir(tmp_path)
    return partial(here, environment={"LVSPEC_MODELS": "models.yaml"})


def asked(lvspec: Run, *flags: str) -> Row:
    printed = lvspec("ask", "clip.mp4", "What happens?", "--json", "--quiet", "--device", "cpu", *flags)
    assert printed.returncode == 1, printed.stderr
    return json.loads(printed.stdout)


def captioned(lvspec: Run, *flags: str) -> Row:
    """Of what is no file, and therefore has no content: for one that is, a worker would load the pair."""
    printed = lvspec("caption", "pipe.mp4", "--out", "-", "--quiet", "--device", "cpu", *flags)
    assert printed.returncode == 1, printed.stderr
    return json.loads(printed.stdout)


def key(row: Row, revisions: Sequence[str], content: bytes) -> str:
    """The key by its definition, from the fields of the record."""
    sampling = row["sampling"]["requested"]
    if sampling["background"] is None:
        sampling = {name: value for name, value in sampling.items() if name != "background"}
    facts = {name: row[name] for name in FACTS.split() if name in row}
    if rule := row["settings"].get("rule"):  # null is no limit, and a key has a text in its place
        unlimited = {name: "Infinity" for name, value in rule.items() if value is None}
        facts["settings"] = {**row["settings"], "rule": {**rule, **unlimited}}
    facts |= {"revisions": [*revisions, None][:2], "sampling": sampling}
    whole = {
        "name": row["file_name"].encode().hex(),
        "size": len(content),
        "sample": hashlib.sha256(content + content[len(content) // 2 :]).hexdigest() if content else "",
        "facts": facts,
    }
    text = json.dumps(whole, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def revisions(row: Row) -> list[str]:
    return [COMMITS["target"]] if row["mode"] == "ar" else [COMMITS["target"], COMMITS["draft"]]


@pytest.mark.parametrize(("flags", "pinned"), ASKED.items(), ids=ASKED)
def test_keys_of_answers(lvspec: Run, flags: str, pinned: str) -> None:
    row = asked(lvspec, *flags.split())
    assert row["key"] == key(row, revisions(row), CONTENT)
    assert row["key"] == pinned


@pytest.mark.parametrize(("flags", "pinned"), CAPTIONED.items(), ids=CAPTIONED)
def test_keys_of_captions(lvspec: Run, flags: str, pinned: str) -> None:
    row = captioned(lvspec, *flags.split())
    assert row["key"] == key(row, revisions(row), b"")
    assert row["key"] == pinned


@pytest.mark.parametrize("command", BUNDLED)
def test_keys_with_the_bundled_pair(lvspec: Run, command: str) -> None:
    """Its defaults come from models.yaml; its weights are known by the version of lvspec."""
    row = {"ask": asked, "caption": captioned}[command](lvspec, "--pair", "demo")
    content = CONTENT if command == "ask" else b""
    assert row["key"] == key(row, [__version__] * 2, content)
    assert key(row, ["0.1.0"] * 2, content) == BUNDLED[command]


@pytest.mark.parametrize("mode", LIBRARY)
def test_keys_of_the_library(tmp_path: Path, mode: Mode) -> None:
    """With the defaults of the library: settings and a video of which nothing else is said."""
    (tmp_path / "clip.mp4").write_bytes(CONTENT)
    choice = PairChoice(*load_registry(environment={}).pair("demo"), device="cpu")
    video, settings = VideoRequest(tmp_path / "clip.mp4"), DecodeSettings(mode=mode)
    events: list[Event] = []
    with pytest.raises(VideoError):
        ask(choice, AskRequest(video, ("What?",), settings), events.append)
    (row,) = [json.loads(to_line(event.record)) for event in events if isinstance(event, Answered)]
    models = 1 if mode is Mode.AR else 2
    assert row["key"] == key(row, [__version__] * models, CONTENT)
    assert key(row, ["0.1.0"] * models, CONTENT) == LIBRARY[mode]


@pytest.mark.parametrize("mode", SETTINGS)
def test_names_of_what_a_key_is_made_of(lvspec: Run, mode: str) -> None:
    row = asked(lvspec, "--mode", mode)
    settings = row["settings"]
    assert list(settings) == [*SETTINGS[mode].split(), "loading"]
    assert list(settings["loading"]) == LOADING.split()
    assert list(row["sampling"]["requested"]) == [*SAMPLING.split(), "background"]
    if mode == "lvspec":
        assert list(settings["rule"]) == RULE.split()
    if mode != "ar":
        assert settings["adaptation"] == {"most": 16, "costs": None}


def test_parts_of_the_rule_that_are_off_are_in_no_key(lvspec: Run) -> None:
    off = asked(lvspec, "--defer", "0", "--max-loss", "inf")
    assert off["key"] == ASKED[""]
    rule = asked(lvspec, "--defer", "2", "--max-loss", "0.07")["settings"]["rule"]
    assert (rule["defer"], rule["defer_sure"], rule["max_loss"]) == (2, True, 0.07)


def test_what_does_not_decide_an_answer_is_in_no_key(lvspec: Run) -> None:
    others = ("--threads", "1", "--decode-timeout", "9", "--no-cuda-graphs")
    assert asked(lvspec, *others)["key"] == asked(lvspec)["key"]


def test_each_question_has_its_key(lvspec: Run) -> None:
    printed = lvspec("ask", "clip.mp4", "Who?", "--question", "What happens?", "--json", "--device", "cpu")
    rows = [json.loads(line) for line in printed.stdout.splitlines()]
    assert rows[0]["key"] == key(rows[0], revisions(rows[0]), CONTENT)
    assert rows[1]["key"] == ASKED[""]
