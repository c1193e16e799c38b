"""The stages wired together: a real file, a tiny pair, real decoding."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvspec_cli import pipeline
from lvspec_cli.errors import NotAVideoError, PairError
from lvspec_cli.events import Answered, ClipReady, Event, RoundDone, Stage, StageFinished, StageStarted
from lvspec_cli.output.records import Record, to_line
from lvspec_cli.pairs.registry import Pair, Source, load_registry
from lvspec_cli.request import AskRequest, PairChoice
from lvspec_cli.types import DecodeSettings, FinishReason, Mode, RelevanceName, RuleSettings, VideoRequest

QUESTIONS = ("What moves?", "Which colour?")


@pytest.fixture(scope="module")
def choice(tiny_models: Path) -> PairChoice:
    return PairChoice(*load_registry(tiny_models, {}).pair(None))


@pytest.fixture(scope="module")
def request_(video_file: Path) -> AskRequest:
    settings = DecodeSettings(gamma=4, max_new_tokens=24)
    return AskRequest(VideoRequest(video_file, max_frames=4), QUESTIONS, settings)


@pytest.fixture(scope="module")
def run(choice: PairChoice, request_: AskRequest) -> tuple[list[Record], list[Event], list[dict[str, Any]]]:
    events: list[Event] = []
    rows: list[dict[str, Any]] = []
    records = pipeline.ask(choice, request_, events.append, trace=rows.append)
    return records, events, rows


def test_stages_come_in_order_and_the_video_is_decoded_once(run):
    _, events, _ = run
    started = [event.stage for event in events if isinstance(event, StageStarted)]
    assert started == [Stage.DECODING, Stage.LOADING, *[Stage.ENCODING, Stage.ANSWERING] * 2]
    finished = [event.stage for event in events if isinstance(event, StageFinished)]
    assert finished == started
    assert sum(isinstance(event, ClipReady) for event in events) == 1


def test_records_say_what_was_asked_and_what_was_taken(run, video_file: Path):
    records, _, _ = run
    assert [record.prompt for record in records] == list(QUESTIONS)
    assert [record.id for record in records] == ["clip.mp4#1", "clip.mp4#2"]
    for record in records:
        assert record.status == "ok"
        assert record.file_name == video_file.name
        assert record.sampling.requested.frames == 4
        assert record.sampling.decoded == record.sampling.frames_expected == 4
        assert record.sampling.timestamps is not None
        assert len(record.sampling.timestamps) == 4
        assert record.sampling.visual_tokens
        assert (record.mode, record.lossless) == (Mode.LVSPEC, False)
        assert Record.model_validate_json(to_line(record)) == record
    assert records[0].key != records[1].key


def test_rounds_pieces_and_stats_tell_the_same(run):
    records, events, rows = run
    for number, record in enumerate(records, 1):
        ends = [index for index, event in enumerate(events) if isinstance(event, Answered)]
        first = ends[number - 2] if number > 1 else 0
        mine = [event for event in events[first : ends[number - 1]] if isinstance(event, RoundDone)]
        answered = events[ends[number - 1]]
        assert isinstance(answered, Answered)
        text = "".join(piece.text for event in mine for piece in event.pieces) + answered.tail
        assert text == record.text
        assert mine[0].round.prefill
        assert mine[0].seconds == 0.0
        assert record.stats is not None
        assert len(mine) - 1 == record.stats.rounds
        assert sum(len(event.round.tokens) for event in mine) == record.stats.output_tokens
        traced = [row for row in rows if row["question"] == number]
        assert [row["round"] for row in traced] == list(range(len(mine)))
        verdicts = [verdict for row in traced for verdict in row["verdict"]]
        assert verdicts.count("exact") == record.stats.accepted_exact
        assert len(verdicts) == record.stats.drafted
    json.dumps(rows, allow_nan=False)


def test_frames_are_processed_and_encoded_once_for_all_questions(
    choice: PairChoice, request_: AskRequest, monkeypatch: pytest.MonkeyPatch
):
    from lvspec_cli.models import processing
    from lvspec_cli.models.families import FAMILIES

    calls: list[str] = []

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append(name)
            return original(*arguments)

        return call

    monkeypatch.setattr("lvspec_cli.models.prompt.process", counted("process", processing.process))
    family = FAMILIES["qwen2_5_vl"]
    monkeypatch.setattr(family, "video_features", counted("encode", family.video_features))
    # Similarity reads more of the video than the others do: that has to be kept at once.
    rule = RuleSettings(relevance=RelevanceName.SIMILARITY)
    pipeline.ask(choice, replace(request_, settings=replace(request_.settings, max_new_tokens=6, rule=rule)))
    assert sorted(calls) == ["encode"] * 2 + ["process"]  # the frames once for target and draft


def test_threads_are_left_alone_unless_asked_for(choice: PairChoice, request_: AskRequest):
    import torch

    before = torch.get_num_threads()
    short = replace(request_, questions=QUESTIONS[:1], settings=replace(request_.settings, max_new_tokens=2))
    try:
        pipeline.ask(choice, short)
        assert torch.get_num_threads() == before
        pipeline.ask(replace(choice, threads=before + 1), short)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_the_same_request_gives_the_same_answers_and_keys(choice: PairChoice, run, request_: AskRequest):
    again = pipeline.ask(choice, request_)
    assert [(record.text, record.key) for record in again] == [(record.text, record.key) for record in run[0]]


def test_the_target_alone_needs_no_draft_and_is_lossless(choice: PairChoice, request_: AskRequest):
    source = Source(folder=Path("no/such/draft"))
    alone = replace(
        request_,
        questions=QUESTIONS[:1],
        settings=replace(request_.settings, mode=Mode.AR),
    )
    (record,) = pipeline.ask(replace(choice, pair=choice.pair.model_copy(update={"draft": source})), alone)
    assert (record.draft, record.lossless, record.id) == (None, True, "clip.mp4")
    exact = replace(request_, questions=QUESTIONS[:1], settings=replace(request_.settings, mode=Mode.EXACT))
    (same,) = pipeline.ask(choice, exact)
    assert same.text == record.text
    assert same.lossless
    (other,) = pipeline.ask(replace(choice, dtype="bfloat16"), exact)
    assert not other.lossless


def test_a_key_holds_the_revision_that_was_read(
    choice: PairChoice,
    request_: AskRequest,
    tiny_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--someone--tiny"
    (home / "refs").mkdir(parents=True)
    (home / "snapshots").mkdir()
    pair = choice.pair.model_copy(update={"target": Source(repo="someone/tiny")})
    settings = replace(request_.settings, mode=Mode.AR, max_new_tokens=2)
    request = replace(request_, questions=QUESTIONS[:1], settings=settings)
    keys = []
    for commit in ("a" * 40, "b" * 40, "a" * 40):
        (home / "refs" / "main").write_text(commit)
        if not (home / "snapshots" / commit).exists():
            (home / "snapshots" / commit).symlink_to(tiny_models.parent / "target")
        (record,) = pipeline.ask(replace(choice, pair=pair), request)
        assert record.target == "someone/tiny"
        keys.append(record.key)
    assert keys[0] == keys[2] != keys[1]


def test_an_interruption_keeps_what_there_is_and_asks_no_more(choice: PairChoice, request_: AskRequest):
    seen: list[Event] = []

    def interrupted() -> bool:
        return sum(isinstance(event, RoundDone) for event in seen) >= 3

    (record,) = pipeline.ask(choice, request_, seen.append, interrupted=interrupted)
    assert (record.status, record.finish_reason) == ("error", FinishReason.INTERRUPTED)
    assert record.error is not None
    assert record.error.kind == "interrupted"
    assert record.text
    assert record.stats is not None
    assert 0 < record.stats.output_tokens < 24


def test_a_video_that_cannot_be_read_gives_a_record_a_question(
    choice: PairChoice, request_: AskRequest, tmp_path: Path
):
    bad = tmp_path / "notes.mp4"
    bad.write_text("not a video at all\n" * 50)
    events: list[Event] = []
    with pytest.raises(NotAVideoError):
        pipeline.ask(choice, replace(request_, video=VideoRequest(bad)), events.append)
    records = [event.record for event in events if isinstance(event, Answered)]
    assert [record.prompt for record in records] == list(QUESTIONS)
    for record in records:
        assert (record.status, record.text, record.stats) == ("error", None, None)
        assert record.error is not None
        assert record.error.kind == "not_a_video"
    assert not any(isinstance(event, StageStarted) and event.stage is Stage.LOADING for event in events)


def test_a_pair_that_is_not_here_is_found_out_before_anything_slow(choice: PairChoice, request_: AskRequest):
    gone = Pair(target=Source(folder=Path("gone")), draft=Source(folder=Path("gone")))
    events: list[Event] = []
    with pytest.raises(PairError):
        pipeline.ask(replace(choice, pair=gone), request_, events.append)
    assert events == []


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import torch

    def refuse(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("lvspec_cli.models.load.load_models", refuse)
    yield


def test_a_clip_too_large_for_a_cpu_is_not_begun(
    choice: PairChoice, request_: AskRequest, monkeypatch: pytest.MonkeyPatch
):
    """The system would end the process in the middle."""
    monkeypatch.setattr("lvspec_cli.memory.machine.spare_memory", lambda: (100_000, 8_000_000_000))
    events: list[Event] = []
    with pytest.raises(PairError, match=r"needs about .* GB with 4 frames of 4096 pixels; free: "):
        pipeline.ask(choice, request_, events.append)
    assert not any(isinstance(event, StageStarted) and event.stage is Stage.ANSWERING for event in events)


def test_too_little_memory_is_a_pair_that_does_not_fit(
    choice: PairChoice, request_: AskRequest, small_memory: None
):
    with pytest.raises(PairError, match=r"needs about .* GB with 4 frames .*; free: .* on cpu") as caught:
        pipeline.ask(choice, request_)
    assert caught.value.remedy == "--frames 2"
    assert caught.value.exit_code == 3
