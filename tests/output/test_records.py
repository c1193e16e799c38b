from __future__ import annotations

import base64
import json
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lvspec_cli.errors import VideoError
from lvspec_cli.output.records import (
    FileIdentity,
    Record,
    encode_name,
    failed_record,
    identify,
    key_of,
    record_key,
    settings_fields,
    to_line,
)
from lvspec_cli.pairs.registry import Source
from lvspec_cli.request import AskRequest, PairChoice
from lvspec_cli.types import DecodeSettings, Mode, RuleSettings, VideoRequest
from tests.conftest import demo_plan
from tests.output.rows import record

# docs/design.md, "Records", in its order.
FIELDS = """schema key id status file_name file_name_b64 segment task system prompt text thoughts value error
finish_reason pair target draft mode settings lossless sampling stats audit warnings version created"""
SAMPLING = """requested duration begins frames_expected decoded timestamps width height visual_tokens
oom_retries warnings"""


def test_a_line_has_every_field_of_the_contract():
    row = json.loads(to_line(record()))
    assert list(row) == FIELDS.split()
    assert list(row["sampling"]) == SAMPLING.split()
    assert row["schema"] == "lvspec.record.1"
    assert "名 café" in to_line(record(text="名 café"))
    assert row["created"].endswith(("Z", "+00:00"))


@given(st.text())
def test_a_line_is_one_line_that_cannot_act_on_a_terminal_and_reads_back(text: str):
    before = record(text=text, prompt=text)
    line = to_line(before)
    assert line.isprintable() or not any(char < " " or "\x7f" <= char <= "\x9f" for char in line)
    assert not set(line) & set("\u2028\u2029\u202a\u202e\u2066\u2069\u200f")
    assert Record.model_validate_json(line) == before


def test_infinite_margins_stay_json():
    settings = DecodeSettings(rule=RuleSettings(filler_margin=inf))
    line = to_line(record(settings=settings_fields(settings)))
    assert json.loads(line, parse_constant=pytest.fail)["settings"]["rule"]["filler_margin"] == "Infinity"


def test_a_record_has_null_for_no_limit_and_keeps_its_key_and_the_warning_of_its_pair():
    plan = demo_plan()
    settings = DecodeSettings(rule=RuleSettings(filler_margin=inf), max_new_tokens=9)
    request = AskRequest(VideoRequest(Path("a.mp4"), max_frames=8, max_pixels=784), ("What?",), settings)
    row = failed_record(plan, request, IDENTITY, 1, VideoError("broken"))
    assert row.settings["rule"]["filler_margin"] is None
    assert row.settings["rule"]["anchor_margin"] == 0.5
    assert row.key == record_key(plan, request, IDENTITY, 1)
    finite = replace(settings, rule=RuleSettings(filler_margin=4.0))
    assert row.key != record_key(plan, replace(request, settings=finite), IDENTITY, 1)
    assert row.warnings == (
        "the pair knows only the demo world: about other videos its answers mean nothing",
    )
    known = replace(
        plan, choice=replace(plan.choice, pair=plan.choice.pair.model_copy(update={"world": None}))
    )
    assert failed_record(known, request, IDENTITY, 1, VideoError("broken")).warnings == ()


def test_settings_hold_only_what_the_mode_reads():
    assert "rule" not in settings_fields(DecodeSettings(mode=Mode.EXACT))
    assert "gamma" in settings_fields(DecodeSettings(mode=Mode.EXACT))
    assert not {"gamma", "fallback"} & settings_fields(DecodeSettings(mode=Mode.AR)).keys()
    assert settings_fields(DecodeSettings())["adaptation"] == {"most": 16, "costs": None}
    assert "adaptation" not in settings_fields(DecodeSettings(gamma=4))
    assert "draft_keep_by" not in settings_fields(DecodeSettings())
    assert settings_fields(DecodeSettings(draft_keep=0.1))["draft_keep_by"] == "attention"
    assert not {"draft_frames", "draft_pixels"} & settings_fields(DecodeSettings()).keys()
    shown = DecodeSettings(draft_frames=4)
    assert settings_fields(shown)["draft_frames"] == 4
    assert "draft_pixels" not in settings_fields(shown)
    assert "draft_frames" not in settings_fields(replace(shown, mode=Mode.AR))


def test_a_field_that_is_not_in_the_contract_is_refused():
    with pytest.raises(ValidationError):
        record(extra=1)


FACTS = {"prompt": "What?", "settings": {"gamma": 8}, "segment": {"start": 0.0, "end": None}}
IDENTITY = FileIdentity(b"a.mp4", 10, "00")


def test_the_key_is_stable():
    assert key_of(IDENTITY, FACTS) == key_of(IDENTITY, dict(reversed(FACTS.items())))
    assert key_of(IDENTITY, FACTS) == "9a34bcaa2ae726de72a15105bf649fd8"


@pytest.mark.parametrize(
    "other",
    [
        (replace(IDENTITY, name=b"b.mp4"), FACTS),
        (replace(IDENTITY, size=11), FACTS),
        (replace(IDENTITY, sample="01"), FACTS),
        (IDENTITY, {**FACTS, "prompt": "Who?"}),
        (IDENTITY, {**FACTS, "settings": {"gamma": 9}}),
        (IDENTITY, {**FACTS, "segment": {"start": 1.0, "end": None}}),
    ],
)
def test_the_key_changes_with_each_part(other: tuple[FileIdentity, dict[str, Any]]):
    assert key_of(*other) != key_of(IDENTITY, FACTS)


def test_only_a_background_that_was_chosen_is_part_of_the_key():
    known = demo_plan()
    pair = known.choice.pair.model_copy(update={"target": Source(repo="a/b", revision="1")})
    plan = replace(known, choice=PairChoice("p", pair), loading=replace(known.loading, draft=None))
    video = VideoRequest(Path("a.mp4"), max_frames=8, max_pixels=784)
    settings = DecodeSettings(mode=Mode.AR, max_new_tokens=9, seed=1)
    request = AskRequest(video, ("What?",), settings)
    assert (
        record_key(plan, request, IDENTITY, 1) == "378471d0890c26aacf2ce4c60b935eaf"
    )  # as before there was a choice
    white = replace(request, video=replace(video, background=(255, 255, 255)))
    black = replace(request, video=replace(video, background=(0, 0, 0)))
    keys = [record_key(plan, each, IDENTITY, 1) for each in (black, request, white)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("place", [0, 500_000, 999_999])
def test_the_sample_reads_beginning_middle_and_end(tmp_path: Path, place: int):
    first, second = bytearray(1_000_000), bytearray(1_000_000)
    second[place] = 1
    (tmp_path / "a").write_bytes(first)
    (tmp_path / "b").write_bytes(second)
    assert identify(tmp_path / "a", b"x") != identify(tmp_path / "b", b"x")
    assert identify(tmp_path / "a", b"x").size == 1_000_000


def test_what_a_draft_may_propose_is_a_setting():
    plan = demo_plan()
    draft = plan.choice.pair.draft.model_copy(update={"vocabulary": 600})
    other = replace(
        plan, choice=replace(plan.choice, pair=plan.choice.pair.model_copy(update={"draft": draft}))
    )
    for mode, differs in ((Mode.EXACT, True), (Mode.AR, False)):
        asked = AskRequest(VideoRequest(Path("a.mp4")), ("What?",), DecodeSettings(mode=mode))
        rows = [failed_record(each, asked, IDENTITY, 1, VideoError("broken")) for each in (plan, other)]
        assert (rows[0].key != rows[1].key) == differs
        assert rows[0].settings.get("draft_vocabulary") is None
        assert rows[1].settings.get("draft_vocabulary") == (600 if differs else None)


def test_names_that_are_not_utf_8_keep_their_bytes():
    assert encode_name("été.mp4".encode()) == ("été.mp4", None)
    raw = b"caf\xe9.mp4"
    readable, coded = encode_name(raw)
    assert readable == "caf\\xe9.mp4"
    assert coded is not None
    assert base64.b64decode(coded) == raw
