"""``lvspec caption --audit``: a share of the captions in mode ar as well."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.errors import UsageError
from lvspec_cli.figures.audit import is_audited, parse_share, summarise_audits
from lvspec_cli.figures.labels import chrf, rouge_l
from lvspec_cli.output.records import Audit, Failure, Record, Stats
from lvspec_cli.speculation.answer import Answer
from lvspec_cli.speculation.draft import Proposal
from lvspec_cli.speculation.engine import Session
from lvspec_cli.speculation.fallback import Pace
from lvspec_cli.types import FinishReason, Mode
from lvspec_cli.ui.summary import audit_lines
from tests.batch.conftest import Caption, rows
from tests.bench.made import known
from tests.output.rows import caption as row
from tests.output.rows import part

KEYS = st.text("0123456789abcdef", min_size=32, max_size=32)
DEMO = Path(__file__).parents[2] / "lvspec_cli" / "demo" / "clips"


# --- which ones ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "share"),
    [("5%", 0.05), ("0.05", 0.05), (".5", 0.5), ("100%", 1.0), (" 2.5 % ", 0.025), ("1%", 0.01)],
)
def test_a_share_is_a_percentage_or_a_part_of_one(text: str, share: float):
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize(
    "text", ["", "0", "0%", "1", "20", "101%", "-5%", "5 per cent", "nan", "inf", "1e-2"]
)
def test_what_is_no_share_is_refused(text: str):
    with pytest.raises(UsageError, match="--audit"):
        parse_share(text)


@given(KEYS, st.floats(0.001, 1.0), st.floats(0.001, 1.0))
def test_a_larger_share_holds_all_of_a_smaller_one(key: str, one: float, other: float):
    small, large = sorted((one, other))
    assert is_audited(key, large) or not is_audited(key, small)
    assert is_audited(key, 1.0)
    assert not is_audited(key, 0.0)


def test_a_share_of_keys_is_about_that_many():
    import hashlib

    keys = [hashlib.sha256(bytes([number % 256, number // 256])).hexdigest()[:32] for number in range(4000)]
    taken = sum(is_audited(key, 0.05) for key in keys)
    assert 150 <= taken <= 250  # 200, and 3.6 standard deviations to each side


# --- what they say together ------------------------------------------------------------------------

STATS: dict[str, Any] = {
    "rounds": 2, "drafted": 8, "accepted_exact": 8, "accepted_filler": 0, "accepted_shift": 0, "gamma": 4,
    "fallback": False, "mean_accepted_length": 5.0, "acceptance_rate": 1.0, "decode_video_s": 0.1,
    "prefill_s": 0.1, "tokens_per_s": 10.0,
}  # fmt: skip


def audited_row(
    name: str, text: str, ar_text: str, seconds: float, ar_seconds: float, **fields: Any
) -> Record:
    audit = Audit(
        text=ar_text, finish_reason=FinishReason.STOP, output_tokens=11, prefill_s=0.1, decode_s=ar_seconds,
        speedup=None, identical=text == ar_text, chrf=0.0, rouge_l=0.0, log_probability=-0.3,
        ar_log_probability=-0.2, repetition=0.0, ar_repetition=0.0,
    )  # fmt: skip
    stats = Stats(**STATS, output_tokens=11, decode_s=seconds)
    return row(name.encode(), text, **{"stats": stats, "audit": audit, **fields})


def test_the_summary_is_over_clips_and_names_speed_and_what_is_kept():
    found = summarise_audits(
        [
            audited_row("a.mp4", "a red ball", "a red ball", 1.0, 2.0),
            audited_row("b.mp4", "a blue ball", "a red ball", 1.0, 3.0),
            audited_row("c.mp4", "a", "a", 1.0, 4.0, segment=part(0.0, 2.0)),
            audited_row("c.mp4", "a", "a", 1.0, 4.0, segment=part(2.0, 4.0)),
            row(b"d.mp4", "not audited"),
            row(b"e.mp4", "no memory", audit=Failure(kind="out_of_memory", message="not enough memory")),
        ],
        {},
    )
    assert (found.captions, found.audited, found.failures) == (6, 4, ("not enough memory",))
    assert known(found.speedup).median == pytest.approx(3.5)
    kept = known(found.fidelity)
    assert (kept.answers, kept.clips) == (4, 4)
    assert known(kept.identical).value == pytest.approx(0.75)
    assert known(kept.log_probability_change).value == pytest.approx(-0.1)
    assert known(kept.likelihood).value == pytest.approx(0.9048374)
    assert known(kept.chrf).value == pytest.approx((300 + chrf("a blue ball", "a red ball")) / 4)
    assert known(kept.rouge_l).value == pytest.approx((300 + rouge_l("a blue ball", "a red ball")) / 4)
    assert kept.facts is None
    said = "\n".join(audit_lines(found, 0.5))
    assert "4 of 6 captions answered in mode ar as well" in said
    assert "1 more could not be: not enough memory" in said
    assert "decoding is 3.50 times as fast as ar" in said  # of four clips no interval can be trusted
    assert "no intervals: over 4 clips they would be too narrow" in said
    assert "identical 75.0 %" in said


def test_of_two_rows_with_a_key_the_later_counts():
    first = audited_row("a.mp4", "a", "a", 1.0, 2.0)
    found = summarise_audits([first, audited_row("a.mp4", "b", "a", 1.0, 2.0)], {})
    assert (found.captions, found.audited) == (1, 1)
    assert known(known(found.fidelity).identical).value == 0.0


def test_facts_beside_a_whole_video_are_held_against_both_texts(tmp_path: Path):
    video = tmp_path / "a.mp4"
    shutil.copy(DEMO / "clip_0001.json", tmp_path / "a.json")
    told = json.loads((tmp_path / "a.json").read_text())["caption"]
    less = told[: len(told) // 2]
    known_row = audited_row("a.mp4", less, told, 1.0, 2.0, prompt="Describe the video.")
    found = summarise_audits([known_row], {known_row.key: video})
    facts = known(known(found.fidelity).facts)
    assert facts.ar == 1.0
    assert facts.mode < 0.9
    assert "facts F1" in "\n".join(audit_lines(found, 1.0))
    asked = audited_row("a.mp4", less, told, 1.0, 2.0, prompt="What colour is it?")
    assert known(summarise_audits([asked], {asked.key: video}).fidelity).facts is None
    (tmp_path / "a.json").write_text('{"scene": {}, "questions": []}')
    assert known(summarise_audits([known_row], {known_row.key: video}).fidelity).facts is None


def test_a_share_that_fell_on_nothing_is_said():
    (line,) = audit_lines(summarise_audits([row(b"a.mp4", "a")], {}), 0.05)
    assert "none of 1 caption is" in line


# --- the command -----------------------------------------------------------------------------------


def audits(path: Path) -> dict[str, Any]:
    return {line["id"]: line["audit"] for line in rows(path)}


def test_all_rows_hold_what_mode_ar_says(caption: Caption, clips: Path, tmp_path: Path):
    done = caption(clips, "--out", "out.jsonl", "--audit", "100%", "--mode", "exact")
    assert done.returncode == 0, done.stderr
    caption(clips, "--out", "ar.jsonl", "--mode", "ar")
    plain, timed = {line["id"]: line for line in rows(tmp_path / "ar.jsonl")}, 0
    for line in rows(tmp_path / "out.jsonl"):
        audit, ar = line["audit"], plain[line["id"]]
        assert audit["text"] == ar["text"] == line["text"]
        assert audit["output_tokens"] == ar["stats"]["output_tokens"]
        assert (audit["identical"], audit["chrf"], audit["rouge_l"]) == (True, 100.0, 100.0)
        assert audit["log_probability"] == pytest.approx(audit["ar_log_probability"])
        assert audit["log_probability"] < 0
        seconds, ar_seconds = line["stats"]["decode_s"], audit["decode_s"]
        if audit["output_tokens"] > 1:  # else the prefill gave all there is
            assert audit["speedup"] == pytest.approx(ar_seconds / seconds)
            timed += 1
    assert timed
    assert "audit: 5 of 5 captions answered in mode ar as well" in done.stderr
    assert "times as fast as ar" in done.stderr
    assert "identical 100.0 %" in done.stderr


def test_the_video_is_encoded_once_and_an_audit_changes_no_answer(
    caption: Caption, clips: Path, cheap_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prompts = ("--prompt", "Describe it.", "--prompt", "What is there?", "--prompt", "Who?")
    # Without a look at the clock, on which a loose text may depend.
    loose = ("--filler-margin", "inf", "--relevance", "plausible", "--no-fallback", "--models", cheap_models)
    caption(clips / "a.mp4", "--out", "plain.jsonl", *prompts, *loose)
    encoded: list[Session] = []
    original = Session._encode_target

    def counted(self: Session, *rest: Any, **named: Any) -> None:
        encoded.append(self)
        original(self, *rest, **named)

    monkeypatch.setattr(Session, "_encode_target", counted)
    caption(clips / "a.mp4", "--out", "out.jsonl", "--audit", "100%", "--at-once", 4, *prompts, *loose)
    assert len(encoded) == 1
    ours, plain = rows(tmp_path / "out.jsonl"), rows(tmp_path / "plain.jsonl")
    assert {line["key"]: line["text"] for line in ours} == {line["key"]: line["text"] for line in plain}
    assert all(line["audit"] for line in ours)
    assert not any(line["audit"] for line in plain)
    for line in ours:
        assert line["audit"]["identical"] == (line["text"] == line["audit"]["text"])


def test_the_share_is_the_same_in_every_run_shard_and_with_workers(
    caption: Caption, clips: Path, tmp_path: Path
):
    keys = ("--audit", "0.5", "--segment", "0.6")
    whole = caption(clips, "--out", "whole.jsonl", *keys)
    taken = {line["key"]: line["audit"] is not None for line in rows(tmp_path / "whole.jsonl")}
    assert 0 < sum(taken.values()) < len(taken)
    assert all(is_audited(key, 0.5) == audit for key, audit in taken.items())
    assert f"audit: {sum(taken.values())} of {len(taken)} captions" in whole.stderr
    for share, workers in ((1, 2), (2, 1)):
        some = ("--shard", f"{share}/2", "--workers", workers)
        assert caption(clips, "--out", "parts.jsonl", *some, *keys).returncode == 0
    assert {line["key"]: line["audit"] is not None for line in rows(tmp_path / "parts.jsonl")} == taken


def test_what_is_done_is_not_audited_later_and_the_summary_covers_the_file(
    caption: Caption, clips: Path, tmp_path: Path
):
    assert caption(clips / "a.mp4", "--out", "out.jsonl").returncode == 0
    assert caption(clips / "b.mp4", "--out", "out.jsonl", "--audit", "100%").returncode == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    done = caption(clips, "--out", "out.jsonl", "--audit", "100%")
    assert "2 done, 0 failed, 3 to do" in done.stderr
    assert (tmp_path / "out.jsonl").read_bytes().startswith(before)
    found = audits(tmp_path / "out.jsonl")
    assert found.pop("a.mp4") is None
    assert all(found.values())
    assert "audit: 4 of 5 captions" in done.stderr
    again = caption(clips, "--out", "out.jsonl", "--audit", "100%")
    assert "audit: 4 of 5 captions" in again.stderr
    redone = caption(clips, "--out", "out.jsonl", "--audit", "100%", "--redo", "--quiet")
    assert (redone.returncode, redone.stderr) == (0, "")
    assert all(audits(tmp_path / "out.jsonl").values())


def test_an_audit_leaves_what_the_clip_has_decided_about_its_draft(
    caption: Caption, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[Pace] = []

    def never_pays(pace: Pace) -> bool:
        asked.append(pace)
        return True

    monkeypatch.setattr("lvspec_cli.speculation.fallback.does_not_pay", never_pays)
    prompts = ("--prompt", "Describe it.", "--prompt", "What is there?", "--prompt", "Who?")
    done = caption(clips / "a.mp4", "--out", "out.jsonl", "--audit", "100%", "--fallback", *prompts)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "out.jsonl")
    assert all(line["audit"] for line in found)
    assert sum(line["stats"]["fallback"] for line in found) > 1
    assert len(asked) == 1


def test_failed_rows_and_stdout(caption: Caption, clips: Path):
    (clips / "b.mp4").write_text("no video")
    flags = ("--audit", "100%", "--fail-on", "length", "--max-new-tokens", 3)
    done = caption(clips, "--out", "-", *flags)
    assert done.returncode == 1
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file_name"] for line in found if line["audit"] is None] == ["b.mp4"]
    assert any((line["error"] or {}).get("kind") == "length" for line in found if line["audit"])
    assert "audit: 4 of 4 captions" in done.stderr


def test_an_audit_that_memory_does_not_suffice_for_costs_no_caption(
    caption: Caption, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    original = Answer.verification
    prompts = ("--prompt", "Describe it.", "--prompt", "What is there?")
    caption(clips / "a.mp4", "--out", "plain.jsonl", *prompts)

    def short(self: Answer, proposal: Proposal) -> Any:
        if self._settings.mode is Mode.AR and len(self.tokens) == 2:
            raise torch.OutOfMemoryError("too little")
        return original(self, proposal)

    monkeypatch.setattr(Answer, "verification", short)
    done = caption(clips / "a.mp4", "--out", "out.jsonl", "--audit", "100%", *prompts)
    assert done.returncode == 0, done.stderr
    ours, plain = rows(tmp_path / "out.jsonl"), rows(tmp_path / "plain.jsonl")
    assert [line["text"] for line in ours] == [line["text"] for line in plain]
    assert {line["audit"]["kind"] for line in ours} == {"out_of_memory"}
    assert {line["sampling"]["oom_retries"] for line in ours} == {0}
    assert "audit: 0 of 2 captions" in done.stderr
    assert "2 more could not be: not enough memory" in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--audit", "20"), "is not a share"),
        (("--audit", "5%", "--mode", "ar"), "--audit compares with mode ar"),
        (("--audit", "5%", "--mode", "exact", "--temperature", "0.7"), "compares greedy answers"),
    ],
)
def test_wrong_flags(caption: Caption, clips: Path, flags: tuple[str, ...], said: str):
    done = caption(clips, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 2
