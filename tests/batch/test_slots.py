"""Captions that are decoded together: the rows of one at a time, whatever fails or stops beside them."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import current_thread
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from lvspec_cli.answers import has_room_for, prompts_of
from lvspec_cli.batch.answer import Answering
from lvspec_cli.batch.remote import after_death
from lvspec_cli.batch.serve import _Decoding, _processing, decoders_of, has_spare_core, threads_of_decoder
from lvspec_cli.batch.slots import Ready, Slots
from lvspec_cli.memory.plan import Workload
from lvspec_cli.models.cache import SlotCache, SlotMemory
from lvspec_cli.models.load import LoadedModel
from lvspec_cli.request import AskRequest, Company
from lvspec_cli.speculation import answer
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import Clip, DecodeSettings, PairPrompts, VideoRequest
from lvspec_cli.video.pool import DecodePool
from tests.batch.conftest import Caption, lasting, rows
from tests.batch.test_resume import work

PROMPTS = ("--prompt", "What moves?", "--prompt", "how many balls")


def by_key(file: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: lasting(row) for row in rows(file)}


@pytest.fixture
def caption(caption: Caption, cheap_models: Path) -> Caption:
    return partial(caption, "--models", cheap_models)


@pytest.fixture(scope="module")
def _expected() -> dict[str, dict[str, Any]]:
    return {}


@pytest.fixture
def expected(
    caption: Caption, clips: Path, tmp_path: Path, _expected: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The rows of all clips and both prompts, one at a time."""
    if not _expected:
        assert caption(clips, *PROMPTS, "--at-once", 1, "--out", "one.jsonl").returncode == 0
        _expected |= by_key(tmp_path / "one.jsonl")
        assert len(_expected) == 10
    return _expected


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int, int], Exception | None]) -> list[int]:
    """Rounds of several answers fail where ``fails`` says so, after the passes. Gives how many each had.

    Slots are filled as soon as they are free, however slow decoding is.

    :param fails: by the number of the round of several answers, and how many they are.
    """
    decode, sizes = answer.decode_rounds, list[int]()

    def decode_or_fail(answers: Sequence[Any]) -> list[Any]:
        sizes.append(len(answers))
        if len(answers) > 1 and (error := fails(len(sizes), len(answers))) is not None:
            with monkeypatch.context() as patch:
                patch.setattr(answer.Answer, "verified", Mock(side_effect=error))
                return decode(answers)
        return decode(answers)

    next_work = _Decoding.next_work
    monkeypatch.setattr(_Decoding, "next_work", lambda decoding, waits: next_work(decoding, True))
    monkeypatch.setattr("lvspec_cli.speculation.engine.decode_rounds", decode_or_fail)
    return sizes


def test_rows_do_not_depend_on_what_is_decoded_beside_them(
    caption: Caption, clips: Path, tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, cache = Session._encode_target, SlotMemory.cache
    encoded, slots = list[str](), list[int]()

    def encode_target(session: Session, prompts: PairPrompts, *given: Any, **more: Any) -> None:
        encoded.append("a clip")
        encode(session, prompts, *given, **more)

    def counted(memory: SlotMemory) -> SlotCache:
        made = cache(memory)
        slots.append(memory.slots)
        return made

    monkeypatch.setattr(Session, "_encode_target", encode_target)
    monkeypatch.setattr(SlotMemory, "cache", counted)
    sizes = failing(monkeypatch, lambda number, count: None)
    gc.disable()  # memory is free again without it
    try:
        printed = caption(clips, *PROMPTS, "--at-once", 3, "--out", "out.jsonl")
    finally:
        gc.enable()
    assert max(slots) == 3, "as many as are planned"
    assert printed.returncode == 0, printed.stderr
    assert by_key(tmp_path / "out.jsonl") == expected
    assert max(sizes) == 3
    assert len(encoded) == 5, "both prompts of a clip share its prefix"


@pytest.mark.parametrize("keeps", [False, True])
def test_auto_is_one_at_a_time_where_a_loaded_pair_mixes_rows(
    caption: Caption, clips: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    """As on a GPU, for which this is decided when the pair is loaded."""
    chosen = Company(3, keeps_texts=True), list[str]()
    monkeypatch.setattr("lvspec_cli.cli.caption_job.chosen_company", lambda *_: chosen)
    monkeypatch.setattr(LoadedModel, "keeps_rows_apart", keeps)
    sizes = failing(monkeypatch, lambda number, count: None)
    printed = caption(clips, "--at-once", "auto", "--out", "out.jsonl")
    assert max(sizes) == (3 if keeps else 1)
    assert ("one caption at a time" in printed.stderr) != keeps


def test_auto_goes_on_with_one_at_a_time_where_passes_are_captured_no_longer(
    caption: Caption, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = failing(monkeypatch, lambda number, count: None)
    chosen = Company(3, keeps_texts=True), list[str]()
    monkeypatch.setattr("lvspec_cli.cli.caption_job.chosen_company", lambda *_: chosen)
    monkeypatch.setattr(LoadedModel, "keeps_rows_apart", property(lambda _: len(sizes) < 4))
    printed = caption(clips, "--at-once", "auto", "--out", "out.jsonl")
    assert printed.stderr.count("one caption at a time") == 1
    assert (max(sizes), sizes[-1]) == (3, 1)
    assert sizes[4:] == sorted(sizes[4:], reverse=True), "those that are under way are finished"


@pytest.mark.parametrize("fails", [False, True])
def test_frames_are_processed_ahead_and_once_more_where_that_has_failed(
    caption: Caption, clips: Path, tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    fails: bool,
) -> None:  # fmt: skip
    threads: list[str] = []

    def prompts(*given: Any) -> Any:
        threads.append(current_thread().name)
        if fails:
            raise MemoryError
        return prompts_of(*given)

    monkeypatch.setattr("lvspec_cli.batch.serve.has_spare_core", lambda *facts: True)
    monkeypatch.setattr("lvspec_cli.batch.answer.prompts_of", prompts)
    printed = caption(clips, *PROMPTS, "--at-once", 2, "--out", "out.jsonl")
    assert printed.returncode == 0, printed.stderr
    assert by_key(tmp_path / "out.jsonl") == expected
    assert threads
    assert all(name.startswith("processing") for name in threads)


def test_nothing_is_processed_ahead_beside_a_clip_alone_or_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ahead, next_work, room = Mock(), Mock(return_value=Ready(work("a", "key"), Mock())), Mock()
    monkeypatch.setattr("lvspec_cli.batch.answer.has_room_for", room)
    for alone, has_room, taken, submitted in ((True, True, 0, 0), (False, False, 1, 0), (False, True, 2, 1)):
        answering = Answering(Mock(), Mock(), Mock(), "fail", Mock(), Mock(), ahead=ahead)
        slots, room.return_value = Slots(answering, next_work), has_room
        slots._slots = [Mock(part_of=Mock(work=Mock(alone=alone)))]
        slots._look_ahead()
        assert (next_work.call_count, ahead.submit.call_count) == (taken, submitted)


def test_the_next_clips_frames_are_processed_while_one_is_encoded(
    caption: Caption, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted, before_encoding, room = Mock(), list[int](), Mock(wraps=has_room_for)
    encode, decoded = Session.encode, DecodePool.clips

    class Ahead(ThreadPoolExecutor):
        submit = submitted

    def counted(*given: Any, **named: Any) -> None:
        before_encoding.append(submitted.call_count)
        encode(*given, **named)

    def all_at_once(*given: Any, **named: Any) -> Iterator[Any]:
        yield from list(decoded(*given, **named))

    submitted.return_value.exception.return_value = MemoryError()  # so that they are processed again
    monkeypatch.setattr(Session, "encode", counted)
    monkeypatch.setattr(DecodePool, "clips", all_at_once)
    monkeypatch.setattr("lvspec_cli.batch.answer.has_room_for", room)
    monkeypatch.setattr("lvspec_cli.batch.serve.has_spare_core", lambda *facts: True)
    monkeypatch.setattr("lvspec_cli.batch.serve.ThreadPoolExecutor", Ahead)
    printed = caption(clips, "--at-once", 2, "--out", "out.jsonl")
    assert printed.returncode == 0, printed.stderr
    assert before_encoding[::2] == [1, 2, 3, 4, 4]  # each is encoded before its answer, and by it
    assert all(isinstance(call.args[-1], Clip) for call in room.call_args_list), "there is room for both"


def test_there_has_to_be_room_for_the_clip_that_is_encoded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = list[tuple[int, int]]()

    def room(plan: Any, load: Workload, *_: Any) -> bool:
        loads.append((load.frames, load.max_pixels))
        return True

    monkeypatch.setattr("lvspec_cli.memory.resolve.has_room", room)
    small, large = (
        Mock(frames=np.zeros((frames, 1, 1, 3)), timestamps=(0.0,) * frames, width=side, height=side)
        for frames, side in ((3, 28), (5, 56))
    )
    request = AskRequest(VideoRequest(Path("a.mp4")), ("?",), DecodeSettings())
    for clip, beside in ((small, None), (small, large), (large, small)):
        assert has_room_for(Mock(), Mock(), request, clip, beside)
    assert loads == [(3, 28 * 28), (8, 56 * 56), (8, 56 * 56)]


def test_a_prefill_leaves_cores_to_what_is_decoded_and_rounds_do_not(
    caption: Caption, clips: Path, tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, rounds, before = list[int](), list[int](), torch.get_num_threads()
    encode, step = Session._encode_target, Slots._round

    def encoded(*given: Any, **named: Any) -> None:
        encoding.append(torch.get_num_threads())
        encode(*given, **named)

    def stepped(*given: Any) -> Any:
        rounds.append(torch.get_num_threads())
        return step(*given)

    monkeypatch.setattr(Session, "_encode_target", encoded)
    monkeypatch.setattr(Slots, "_round", stepped)
    monkeypatch.setattr(DecodePool, "cores_taken", 1)
    monkeypatch.setattr("lvspec_cli.batch.serve.usable_cores", lambda: 2)
    monkeypatch.setattr("lvspec_cli.models.threads._is_whole", lambda _: True)  # tiny models' are not
    torch.set_num_threads(2)
    try:
        printed = caption(clips, *PROMPTS, "--at-once", 2, "--out", "out.jsonl")
    finally:
        torch.set_num_threads(before)
    assert printed.returncode == 0, printed.stderr
    assert by_key(tmp_path / "out.jsonl") == expected
    assert set(encoding) == {1}
    assert set(rounds) == {2}


def test_frames_are_processed_ahead_by_one_thread_whatever_a_prefill_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("lvspec_cli.batch.serve.has_spare_core", lambda *facts: True)
    with _processing(Mock(), 1) as ahead:
        assert ahead is not None
        ahead.submit(int).result()  # it has begun
        torch.set_num_threads(2)
        try:
            assert ahead.submit(torch.get_num_threads).result() == 1
        finally:
            torch.set_num_threads(before)


def test_frames_are_processed_ahead_where_a_core_is_left() -> None:
    assert has_spare_core("cpu", threads=1, pairs=1, cores=2)
    assert not has_spare_core("cpu", threads=2, pairs=1, cores=2)
    assert not has_spare_core("cpu", threads=2, pairs=2, cores=4)
    assert has_spare_core("cuda", threads=16, pairs=1, cores=16)


def test_on_a_cpu_videos_are_decoded_by_one_thread_each_and_as_many_at_a_time_as_there_are_cores():
    assert [decoders_of("cpu", cores) for cores in (1, 2, 3, 4, 16)] == [1, 2, 3, 4, 4]
    assert [decoders_of("cuda", cores) for cores in (1, 2, 3, 4, 16)] == [1, 1, 1, 2, 4]
    assert [decoders_of("cpu", 4, pairs) for pairs in (1, 2, 4, 8)] == [4, 2, 1, 1]
    assert (threads_of_decoder("cpu"), threads_of_decoder("cuda")) == (1, None)


def test_beside_a_pair_on_a_cpu_a_video_is_decoded_by_one_thread(
    caption: Caption, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int | None] = []
    begin = DecodePool.__init__

    def noted(self: DecodePool, workers: int, max_bytes: int, *, threads: int | None = None) -> None:
        given.append(threads)
        begin(self, workers, max_bytes, threads=threads)

    monkeypatch.setattr(DecodePool, "__init__", noted)
    printed = caption(clips, *PROMPTS, "--out", "out.jsonl")
    assert printed.returncode == 0, printed.stderr
    assert given[-1] == 1


def test_where_a_round_runs_out_of_memory_the_last_clip_waits_and_no_clip_is_made_smaller(
    caption: Caption, clips: Path, tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = failing(monkeypatch, lambda number, count: MemoryError() if count > 2 and number > 4 else None)
    printed = caption(clips, *PROMPTS, "--at-once", 4, "--out", "out.jsonl")
    assert printed.returncode == 0, printed.stderr
    assert by_key(tmp_path / "out.jsonl") == expected
    assert "too little memory for more clips at once: 3 from now on" in printed.stderr
    assert "too little memory for more clips at once: 2 from now on" in printed.stderr
    assert sizes.count(4) == 5
    assert max(sizes[-5:]) <= 2


def test_a_round_that_fails_costs_the_clip_that_fails_alone(
    caption: Caption, clips: Path, tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda number, count: ValueError("odd") if number == 3 else None)
    printed = caption(clips, *PROMPTS, "--at-once", 4, "--out", "out.jsonl")
    assert printed.returncode == 0, printed.stderr
    assert by_key(tmp_path / "out.jsonl") == expected


def test_an_interruption_leaves_whole_rows_and_the_next_run_does_the_rest(
    caption: Caption, clips: Path, tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(number: int, count: int) -> None:
        if number == 12:
            signal.raise_signal(signal.SIGINT)

    failing(monkeypatch, interrupt)
    assert caption(clips, *PROMPTS, "--at-once", 4, "--out", "out.jsonl").returncode == 130
    done = by_key(tmp_path / "out.jsonl")
    assert done.items() < expected.items()
    assert caption(clips, *PROMPTS, "--at-once", 4, "--out", "out.jsonl").returncode == 0
    assert by_key(tmp_path / "out.jsonl") == expected


def test_a_dry_run_says_how_many_and_that_memory_holds_fewer(
    caption: Caption, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvspec_cli.cli.caption_job.fitting_slots", lambda plan, load, most: 2)
    printed = caption(clips, "--at-once", 3, "--dry-run")
    assert "there is memory for 2 captions at once, not 3" in printed.stderr
    assert "\n2 captions at once\n" in printed.stderr


def test_loose_captions_without_the_draft_are_the_targets_own_whatever_is_beside_them(
    caption: Caption, clips: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Session, "_encode_draft", Mock(side_effect=AssertionError("it is not even prefilled"))
    )
    dear = ("--models", tiny_models)  # a draft that costs as much as its target
    assert caption(clips, *dear, "--mode", "ar", "--out", "ar.jsonl").returncode == 0
    texts = {row["file_name"]: row["text"] for row in rows(tmp_path / "ar.jsonl")}
    printed = caption(clips, *dear, "--at-once", 3, "--out", "out.jsonl")
    assert "3 captions at once go without the draft: it would cost more than it saves" in printed.stderr
    found = rows(tmp_path / "out.jsonl")
    assert {row["file_name"]: row["text"] for row in found} == texts
    assert {(row["mode"], row["stats"]["drafted"]) for row in found} == {("lvspec", 0)}


@pytest.mark.parametrize(
    ("flags", "cause"),
    [
        (("--at-once", "0"), "--at-once '0' is neither auto nor a number"),
        (("--at-once", "many"), "--at-once 'many' is neither auto nor a number"),
        (("--at-once", "2", "--fallback"), "--fallback measures one caption at a time"),
    ],
)
def test_wrong_numbers(caption: Caption, clips: Path, flags: tuple[str, ...], cause: str) -> None:
    printed = caption(clips, *flags)
    assert printed.returncode == 2
    assert cause in printed.stderr


def test_a_dead_workers_clips_are_done_again_alone_and_one_that_kills_it_alone_fails() -> None:
    a, b, c, d = (work(f"/{name}.mp4", name) for name in "abcd")
    failed, left = after_death([a, b, c, d], under_way=2)
    assert not failed
    assert left == [replace(a, alone=True), replace(b, alone=True), c, d]
    assert after_death(left, under_way=2) == (left[:1], left[1:])
    assert after_death([c, d], under_way=1) == ([c], [d])
    assert after_death([], under_way=2) == ((), [])
