"""ar's texts, many clips at a time: the same tokens as one by one, kept as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lvspec_cli.bench.items import BenchClip, clips_of
from lvspec_cli.bench.journal import read_journal
from lvspec_cli.bench.measure import Plan
from lvspec_cli.bench.own import TextRunner
from lvspec_cli.bench.run import BenchJob, demo_clips
from lvspec_cli.errors import VideoError
from lvspec_cli.figures.answers import BenchMode, Block, Variant
from lvspec_cli.pairs.registry import PACKAGE
from lvspec_cli.pipeline import load
from lvspec_cli.request import LoadPlan
from lvspec_cli.types import DecodeSettings, Mode
from lvspec_cli.video.decode import read_clip
from tools.demo_report import batched
from tools.demo_report.batched import REFERENCE, answered, batched_of
from tools.demo_report.report import Report, _prepared


def job_of(tmp_path: Path, paths: list[Path], *, tokens: int, processes: int = 1) -> BenchJob:
    load_plan, request = _prepared(
        Report(tmp_path, len(paths), 0, tmp_path / "page.md", max_new_tokens=tokens)
    )
    plan = Plan((REFERENCE,), request.settings, draft_keep=0.1, timed=False, scored=False)
    return BenchJob(
        load_plan=replace(load_plan, choice=replace(load_plan.choice, threads=1)),
        video=request.video,
        clips=clips_of(paths, request.video, questions=1),
        modes=plan.variants,
        gammas=(),
        plan=plan,
        out=tmp_path / "out",
        processes=processes,
    )


@pytest.mark.thorough
def test_many_at_a_time_say_what_ar_says_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By two processes: captions that are cut, answers that end before them, frames of several sizes."""
    monkeypatch.setattr(batched, "CHUNK", 2)
    paths = sorted((PACKAGE / "demo" / "clips").glob("*.mp4"))
    job = job_of(tmp_path, paths, tokens=24, processes=2)
    pair = load(job.load_plan, job.workload)
    done: list[tuple[int, int]] = []

    found = batched_of(pair, job, progress=lambda *counts: done.append(counts))

    assert done[0] == (0, 8)
    assert done[-1] == (8, 8)
    assert list(found.items) == [item.id for clip in job.clips for item in clip.items]
    settings = DecodeSettings(mode=Mode.AR, max_new_tokens=24)
    for clip in job.clips:
        texts = TextRunner(pair, read_clip(clip.video))
        for item in clip.items:
            said = next(each for each in found.blocks if each.item == item.id).measurements[0]
            alone = texts.answer(item, Variant(BenchMode.AR), settings)
            fields = ("text", "tokens", "output_tokens", "finish_reason")
            assert {name: getattr(said, name) for name in fields} == {
                name: getattr(alone, name) for name in fields
            }
    reasons = {each.measurements[0].finish_reason for each in found.blocks}
    assert reasons == {"stop", "length"}


def test_what_is_kept_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "CHUNK", 1)
    paths = demo_clips(tmp_path / "clips", 2)
    job = job_of(tmp_path, paths, tokens=4)
    pair = load(job.load_plan, job.workload)

    class StoppedError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done:
            raise StoppedError

    with pytest.raises(StoppedError):
        batched_of(pair, job, progress=stop)
    kept = read_journal(job.out)
    assert kept is not None
    assert {each.item for each in kept.blocks} == {item.id for item in job.clips[0].items}
    asked: list[str] = []

    def noted(load_plan: LoadPlan, limit: int, clips: Sequence[BenchClip]) -> list[Block]:
        asked.extend(clip.video.path.name for clip in clips)
        return answered(load_plan, limit, clips)

    monkeypatch.setattr(batched, "answered", noted)
    found = batched_of(pair, job)
    assert asked == [paths[1].name]
    assert [each.item for each in found.blocks] == [item.id for clip in job.clips for item in clip.items]


def test_a_clip_that_cannot_be_read_ends_it(tmp_path: Path) -> None:
    paths = demo_clips(tmp_path / "clips", 1)
    paths[0].write_bytes(b"no video")
    job = job_of(tmp_path, paths, tokens=4)
    with pytest.raises(VideoError):
        batched_of(load(job.load_plan, job.workload), job)
