"""``lvspec caption`` with the tiny pair: what it takes, writes and leaves alone."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from lvspec_cli.batch.answer import Answering, smaller_request
from lvspec_cli.batch.slots import Finished, NextWork, Ready, Slots
from lvspec_cli.cli.caption_run import _retrying
from lvspec_cli.cli.reporting import going_on
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import VideoRequest
from lvspec_cli.video.decode import read_clip
from tests.batch.conftest import Caption, lasting, rows
from tests.batch.processes import Processes, until
from tests.batch.test_cutting import write_scenes
from tests.batch.test_resume import work
from tests.conftest import demo_plan, write_video
from tests.tiny_models import save_pair, spoil_weights
from tests.video.clips import make_clip

NAMES = ["a.mp4", "b.mp4", "c.mkv", "d.mp4", "more/e.mp4"]


def names(path: Path) -> list[str]:
    return [row["file_name"] for row in rows(path)]


def test_a_folder_gives_a_record_a_video_in_order(caption: Caption, clips: Path, tmp_path: Path):
    printed = caption(clips, "--out", "out.jsonl")
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == ""
    found = rows(tmp_path / "out.jsonl")
    assert [row["file_name"] for row in found] == NAMES
    assert {row["task"] for row in found} == {"caption"}
    assert {row["status"] for row in found} == {"ok"}
    assert all(row["stats"]["output_tokens"] and row["sampling"]["decoded"] == 4 for row in found)
    assert "5 captioned, 0 failed" in printed.stderr
    assert not list(tmp_path.glob("*.lock"))


def test_the_same_run_twice_gives_the_same_rows(caption: Caption, clips: Path, tmp_path: Path):
    for name in ("one.jsonl", "two.jsonl"):
        assert caption(clips, "--out", name).returncode == 0
    one, two = ([lasting(row) for row in rows(tmp_path / name)] for name in ("one.jsonl", "two.jsonl"))
    assert one == two


def test_no_row_depends_on_the_clock_unless_it_is_asked_for(
    caption: Caption, clips: Path, tmp_path: Path, tiny_models: Path
):
    models = tmp_path / "models.yaml"
    shipped = tiny_models.read_text().replace("folder: ", f"folder: {tiny_models.parent}/")
    models.write_text(shipped.replace("fallback: false", "fallback: true"))
    for flags in ((), ("--fallback",)):
        assert caption(clips / "a.mp4", "--out", "out.jsonl", "--models", models, *flags).returncode == 0
    assert [row["settings"]["fallback"] for row in rows(tmp_path / "out.jsonl")] == [False, True]


def test_what_has_a_record_is_skipped_and_new_files_are_done(caption: Caption, clips: Path, tmp_path: Path):
    caption(clips, "--out", "out.jsonl")
    before = (tmp_path / "out.jsonl").read_bytes()
    printed = caption(clips, "--out", "out.jsonl")
    assert printed.returncode == 0
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert "5 done, 0 failed, 0 to do" in printed.stderr
    write_video(clips / "aa.mp4")
    printed = caption(clips, "--out", "out.jsonl")
    assert "5 done, 0 failed, 1 to do" in printed.stderr
    assert (tmp_path / "out.jsonl").read_bytes().startswith(before)
    assert names(tmp_path / "out.jsonl") == [*NAMES, "aa.mp4"]


def test_other_settings_are_new_work_and_are_said_so(caption: Caption, clips: Path, tmp_path: Path):
    caption(clips, "--out", "out.jsonl")
    printed = caption(clips, "--out", "out.jsonl", "--mode", "ar")
    assert "0 done, 0 failed, 5 to do" in printed.stderr
    assert "5 rows of these videos with other settings" in printed.stderr
    assert [row["mode"] for row in rows(tmp_path / "out.jsonl")] == ["lvspec"] * 5 + ["ar"] * 5


def test_a_changed_file_is_new_work(caption: Caption, clips: Path, tmp_path: Path):
    caption(clips, "--out", "out.jsonl")
    write_video(clips / "b.mp4", seconds=2.5)
    printed = caption(clips, "--out", "out.jsonl")
    assert "4 done, 0 failed, 1 to do" in printed.stderr
    assert names(tmp_path / "out.jsonl") == [*NAMES, "b.mp4"]


def test_failures_are_rows_and_stay_failures_until_they_are_retried(
    caption: Caption, clips: Path, tmp_path: Path
):
    good = (clips / "b.mp4").read_bytes()
    (clips / "b.mp4").write_bytes(b"no video")
    (clips / "c.mkv").write_bytes(good[: len(good) // 3])
    printed = caption(clips, "--out", "out.jsonl", "--at-once", 4)
    assert printed.returncode == 1
    found = {row["file_name"]: row for row in rows(tmp_path / "out.jsonl")}
    assert [found[name]["status"] for name in NAMES] == ["ok", "error", "error", "ok", "ok"]
    assert found["b.mp4"]["error"]["kind"] == "not_a_video"
    assert "failed: b.mp4: not a video" in printed.stderr
    assert "--retry-errors" not in printed.stderr, "the same file fails in the same way"
    stopped = ["lvspec", "caption", "--redo", "-q", "--", "--redo", "-a.mp4"]
    assert going_on(stopped) == "the same command without --redo goes on from there"
    assert going_on([*stopped[:2], *stopped[3:]]) == "the same command goes on from there"
    same = _retrying(stopped)
    assert same == ["lvspec", "caption", "-q", "--retry-errors", "--", "--redo", "-a.mp4"]
    assert "try: repair or remove the files that cannot be read" in printed.stderr
    again = caption(clips, "--out", "out.jsonl")
    assert again.returncode == 1, "a failure that was only skipped is still one"
    assert "3 done, 2 failed, 0 to do" in again.stderr
    retried = caption(clips, "--out", "out.jsonl", "--retry-errors", "--at-once", 4)
    assert retried.returncode == 1
    assert "3 done, 0 failed, 2 to do" in retried.stderr
    assert len(rows(tmp_path / "out.jsonl")) == 5


def test_redo_does_all_of_it_again_and_nothing_else(caption: Caption, clips: Path, tmp_path: Path):
    caption(clips, "--out", "out.jsonl")
    caption(clips / "a.mp4", "--out", "out.jsonl", "--mode", "ar")
    printed = caption(clips, "--out", "out.jsonl", "--redo")
    assert "0 done, 0 failed, 5 to do" in printed.stderr
    assert [(row["mode"], row["file_name"]) for row in rows(tmp_path / "out.jsonl")] == [
        ("ar", "a.mp4"),
        *(("lvspec", name) for name in NAMES),
    ]


def test_rows_of_an_interruption_are_done_again(caption: Caption, clips: Path, tmp_path: Path):
    caption(clips, "--out", "out.jsonl")
    found = rows(tmp_path / "out.jsonl")
    found[1] |= {
        "status": "error",
        "finish_reason": "interrupted",
        "error": {"kind": "interrupted", "message": "stopped"},
    }
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    printed = caption(clips, "--out", "out.jsonl")
    assert printed.returncode == 0
    assert "4 done, 0 failed, 1 to do" in printed.stderr
    assert sorted(names(tmp_path / "out.jsonl")) == NAMES


def test_several_prompts_take_one_pass_over_the_video(
    caption: Caption, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    encoded: list[Session] = []
    original = Session._encode_target

    def counted(self: Session, *rest: Any, **named: Any) -> None:
        encoded.append(self)
        original(self, *rest, **named)

    monkeypatch.setattr(Session, "_encode_target", counted)
    prompts = ("--prompt", "Describe it.", "--prompt", "What is {name}, of {duration} seconds?")
    assert caption(clips / "a.mp4", "--out", "out.jsonl", *prompts).returncode == 0
    assert [row["prompt"] for row in rows(tmp_path / "out.jsonl")] == [
        "Describe it.",
        "What is a, of 0:00.8 seconds?",
    ]
    assert len(encoded) == 1
    assert caption(clips / "a.mp4", "--out", "out.jsonl", *prompts, "--prompt", "Why?").returncode == 0
    assert [row["prompt"] for row in rows(tmp_path / "out.jsonl")][2:] == ["Why?"]


def test_a_prompt_that_two_videos_share_is_read_from_a_file(caption: Caption, clips: Path, tmp_path: Path):
    (tmp_path / "prompt.txt").write_text("Say what\nyou see.\n")
    assert caption(clips, "--out", "out.jsonl", "--prompt-file", "prompt.txt").returncode == 0
    assert {row["prompt"] for row in rows(tmp_path / "out.jsonl")} == {"Say what\nyou see."}


def test_long_videos_are_cut(caption: Caption, clips: Path, tmp_path: Path):
    write_video(clips / "long.mp4", seconds=5)
    printed = caption(clips / "long.mp4", "--out", "out.jsonl", "--segment", 2, "--overlap", 0.5)
    assert printed.returncode == 0, printed.stderr
    stretches = [(row["segment"]["start"], row["segment"]["end"]) for row in rows(tmp_path / "out.jsonl")]
    assert stretches == [(0, 2), (1.5, 3.5), (3, 5)]
    times = [row["sampling"]["timestamps"] for row in rows(tmp_path / "out.jsonl")]
    assert all(
        start <= taken[0] <= taken[-1] < end for taken, (start, end) in zip(times, stretches, strict=True)
    )


def test_videos_are_cut_where_the_scene_changes_and_going_on_looks_for_no_scene_again(
    caption: Caption, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_scenes(tmp_path / "film.mp4", [1.5, 2.0])
    printed = caption("film.mp4", "--out", "out.jsonl", "--scenes", "--to", "srt")
    assert printed.returncode == 0, printed.stderr
    stretches = [(row["segment"]["start"], row["segment"]["end"]) for row in rows(tmp_path / "out.jsonl")]
    assert stretches == [(0, 1.5), (1.5, 3.5)]
    assert (tmp_path / "film.srt").read_text().count("00:00:01,500") == 2
    monkeypatch.setattr("lvspec_cli.batch.cutting.scene_segments", pytest.fail)
    assert "2 done, 0 failed, 0 to do" in caption("film.mp4", "--out", "out.jsonl", "--scenes").stderr


def test_jobs_bring_their_own_prompts_times_and_ids(caption: Caption, clips: Path, tmp_path: Path):
    (clips / "jobs.csv").write_text("path,start,end,prompt,id\na.mp4,0.2,0.5,How many?,first\nd.mp4,,,,\n")
    printed = caption(clips / "jobs.csv", "--out", "out.jsonl", "--prompt", "Describe it.")
    assert printed.returncode == 0, printed.stderr
    one, other = rows(tmp_path / "out.jsonl")
    assert (one["prompt"], one["segment"]) == ("How many?", {"start": 0.2, "end": 0.5})
    assert one["id"].startswith("first")
    assert (other["file_name"], other["prompt"]) == ("d.mp4", "Describe it.")


def test_a_list_of_paths_comes_from_stdin(caption: Caption, clips: Path, tmp_path: Path):
    listed = f"{clips / 'd.mp4'}\0{clips / 'a.mp4'}\0"
    assert caption("-", "-0", "--out", "out.jsonl", stdin=listed).returncode == 0
    assert names(tmp_path / "out.jsonl") == ["d.mp4", "a.mp4"]


def test_names_that_are_not_utf8_or_hostile_round_trip(caption: Caption, clips: Path, tmp_path: Path):
    hostile = [b"\xff\xfe.mp4", b"-rf.mp4", b"new\nline.mp4", b"\x1b[31mred.mp4", b"[bold]x.mp4", b"a b.mp4"]
    folder = os.fsencode(tmp_path) + b"/hostile"
    os.mkdir(folder)  # noqa: PTH102
    for name in hostile:
        shutil.copy(os.fsencode(clips / "a.mp4"), folder + b"/" + name)
    printed = caption("hostile", "--out", "out.jsonl")
    assert printed.returncode == 0, printed.stderr
    import base64

    found = [
        base64.b64decode(row["file_name_b64"]) if row["file_name_b64"] else row["file_name"].encode()
        for row in rows(tmp_path / "out.jsonl")
    ]
    assert found == sorted(hostile)
    assert "\x1b" not in printed.stderr
    assert caption("hostile", "--out", "out.jsonl").stderr.startswith("6 done")


def test_what_cannot_be_taken_is_a_row_that_failed(caption: Caption, clips: Path, tmp_path: Path):
    os.mkfifo(clips / "pipe.mp4")
    printed = caption(clips / "a.mp4", clips / "pipe.mp4", clips / "gone.mp4", "--out", "out.jsonl")
    assert printed.returncode == 1
    found = {row["file_name"]: row for row in rows(tmp_path / "out.jsonl")}
    assert found["a.mp4"]["status"] == "ok"
    assert found["pipe.mp4"]["error"]["kind"] == "not_a_video"
    assert found["gone.mp4"]["error"]["kind"] == "no_input"
    again = caption(clips / "a.mp4", clips / "pipe.mp4", clips / "gone.mp4", "--out", "out.jsonl")
    assert again.returncode == 1
    assert len(rows(tmp_path / "out.jsonl")) == 3


def test_a_folder_without_a_readable_video_does_not_load_the_pair(
    caption: Caption, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "bad").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "bad" / name).write_bytes(b"no video")
    monkeypatch.setattr("lvspec_cli.cli.caption_run.run", None)
    done = caption("bad", "--out", "out.jsonl")
    assert done.returncode == 1
    assert [row["error"]["kind"] for row in rows(tmp_path / "out.jsonl")] == ["not_a_video"] * 2
    assert "0 captioned, 2 failed in 0 s\n" in done.stderr, "a speed of nothing is none"


def test_gates_make_failures_that_keep_their_text(caption: Caption, clips: Path, tmp_path: Path):
    short = ("--max-new-tokens", 3, "--out", "out.jsonl")
    printed = caption(clips / "a.mp4", *short, "--fail-on", "length")
    assert printed.returncode == 1
    (row,) = rows(tmp_path / "out.jsonl")
    assert (row["status"], row["error"]["kind"], row["finish_reason"]) == ("error", "length", "length")
    assert row["text"]
    assert caption(clips / "a.mp4", *short, "--retry-errors").returncode == 0
    assert rows(tmp_path / "out.jsonl")[0]["status"] == "ok"


def test_a_damaged_file_counts_as_partial_where_that_is_asked(caption: Caption, clips: Path, tmp_path: Path):
    whole = write_video(clips / "whole.mkv", seconds=4)
    raw = whole.read_bytes()
    whole.write_bytes(raw[: len(raw) * 2 // 3])
    printed = caption(whole, "--out", "out.jsonl", "--fail-on", "partial", "--fps", 4)
    (row,) = rows(tmp_path / "out.jsonl")
    sampling = row["sampling"]
    assert printed.returncode == (sampling["decoded"] < sampling["frames_expected"])
    assert row["status"] == ("error" if printed.returncode else "ok")


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A memory that holds the prompts of 12 visual tokens; gives the sizes that were tried."""
    tried: list[int] = []
    encode = Session.encode

    def limited(self: Session, prompts: Any, settings: Any = None, **more: Any) -> None:
        tried.append(prompts.target.visual_tokens)
        if tried[-1] > 12:
            torch.empty(1 << 60, dtype=torch.uint8)  # what an allocator says when memory ends
        encode(self, prompts, settings, **more)

    monkeypatch.setattr(Session, "encode", limited)
    return tried


def test_too_little_memory_makes_the_clip_smaller_and_the_next_runs_as_ever(
    caption: Caption, clips: Path, tmp_path: Path, small_memory: list[int]
):
    write_video(clips / "big.mp4", size=512)
    printed = caption(clips / "big.mp4", clips / "a.mp4", "--out", "out.jsonl")
    assert printed.returncode == 0, printed.stderr
    big, small = rows(tmp_path / "out.jsonl")
    assert big["sampling"]["oom_retries"] > 0
    assert big["sampling"]["width"] < 512, "fewer pixels first"
    assert small["sampling"]["oom_retries"] == 0
    assert big["sampling"]["requested"] == small["sampling"]["requested"], "the record says what was asked"
    assert max(small_memory[-1:]) <= 12


def test_a_clip_gets_smaller_by_pixels_and_then_by_frames(video_file: Path):
    asked = VideoRequest(video_file, fps=2.0, max_frames=16)
    clip = read_clip(VideoRequest(video_file, max_frames=4))
    large = replace(clip, frames=np.zeros((4, 200, 200, 3), np.uint8))
    fewer_pixels = smaller_request(asked, large)
    assert fewer_pixels == replace(asked, max_pixels=20_000, max_frames=4)
    small = replace(clip, frames=np.zeros((4, 120, 120, 3), np.uint8))
    fewer_frames = smaller_request(asked, small)
    assert fewer_frames == replace(asked, max_pixels=14_400, max_frames=2)
    least = replace(small, frames=small.frames[:3], timestamps=clip.timestamps[:3])
    assert smaller_request(asked, least) is None


def given(*works: Ready) -> NextWork:
    """These works, decoded already."""
    left = iter(works)
    return lambda waits: next(left, None)


def broken(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """From now on every clip is answered with ``error``."""

    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr("lvspec_cli.batch.answer.ClipAnswers", fail)


def test_what_a_library_makes_of_a_signal_is_no_failure_of_the_clip(
    monkeypatch: pytest.MonkeyPatch, video_file: Path
):
    clip = read_clip(VideoRequest(video_file, max_frames=2))
    pair: Any = None
    for interrupted, count in ((True, 0), (False, 1)):
        stop = Mock(return_value=False)

        def fail(*arguments: Any, stop: Mock = stop, signal: bool = interrupted, **options: Any) -> Any:
            stop.return_value = signal
            raise ImportError("initialization failed")

        monkeypatch.setattr("lvspec_cli.batch.answer.ClipAnswers", fail)
        answering = Answering(pair, demo_plan(), read_clip, "fail", lambda event: None, stop)
        done = list(Slots(answering, given(Ready(work(str(video_file), "key"), clip))).run())
        assert sum(not isinstance(each, Finished) for each in done) == count


def test_a_gpu_that_is_lost_stops_the_batch_after_the_clip_that_lost_it(
    caption: Caption, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def synchronize(device: int) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    broken(monkeypatch, RuntimeError("CUDA error: an illegal memory access was encountered"))
    for name, answer in {"is_initialized": True, "device_count": 1, "memory_allocated": 1}.items():
        monkeypatch.setattr(f"torch.cuda.{name}", Mock(return_value=answer))
    monkeypatch.setattr("torch.cuda.synchronize", synchronize)
    printed = caption(clips, "--out", "out.jsonl")
    assert printed.returncode == 3
    assert "the GPU does not answer any more: CUDA error: an illegal memory access was" in printed.stderr
    (row,) = rows(tmp_path / "out.jsonl")
    assert (row["file_name"], row["status"]) == ("a.mp4", "error")


ENDLESS_READ = {  # who reads which file, and what else it wants
    "ask --questions": ("ask", "VIDEO", "--questions", "FILE"),
    "bench --variants": ("bench", "VIDEO", "--variants", "FILE", "--out", "bench"),
    "bench --questions": ("bench", "--questions", "FILE", "--out", "bench"),
    "bench-compare": ("bench-compare", "FILE", "FILE"),
    "export": ("export", "FILE", "--to", "csv", "--out-dir", "exported"),
    "merge": ("merge", "merged.jsonl", "FILE"),
}


@pytest.mark.sampled
@pytest.mark.parametrize("command", ENDLESS_READ)
@pytest.mark.parametrize("endless", ["device", "sparse"])
def test_every_command_refuses_a_file_without_end_by_name(
    lvspec: Processes, video_file: Path, tmp_path: Path, command: str, endless: str
):
    """In processes of little memory and time: who reads on is ended."""
    file = tmp_path / "large.jsonl"
    if endless == "device":
        file.symlink_to("/dev/zero")
    else:
        with file.open("wb") as stream:
            stream.truncate(30 * 2**30)
    places = {"VIDEO": video_file, "FILE": file}
    arguments = [places.get(word, word) for word in ENDLESS_READ[command]]
    done = lvspec.start(tmp_path, *arguments, limits=((resource.RLIMIT_DATA, 3 * 2**30),))
    assert until(lambda: not done.family(), 300)
    assert done.wait() in (1, 2, 4), done.stderr
    cause, remedy = done.stderr.splitlines()
    assert cause.startswith(f"error: {file}")
    assert re.search("a device|not a regular file|(larger|longer) than [0-9]+ MiB", cause)
    assert remedy.startswith("try: ")


@pytest.mark.parametrize("flag", ["--from-list", "--prompt-file", "--models", "jobs"])
@pytest.mark.parametrize("endless", ["device", "sparse"])
def test_a_file_without_end_is_refused_by_name(
    caption: Caption, clips: Path, tmp_path: Path, flag: str, endless: str
):
    file = Path("/dev/zero") if endless == "device" else tmp_path / "large.jsonl"
    if endless == "sparse":
        with file.open("wb") as stream:
            stream.truncate(30 * 2**30)
    elif flag == "jobs":
        file = tmp_path / "jobs.csv"
        file.symlink_to("/dev/zero")
    printed = caption(*([file] if flag == "jobs" else [clips / "a.mp4", flag, file]), "--out", "out.jsonl")
    assert printed.returncode == 2
    assert str(file) in printed.stderr
    assert ("a device" if endless == "device" else "larger than") in printed.stderr


def test_a_line_without_end_is_named(caption: Caption, clips: Path, tmp_path: Path):
    assert caption(clips / "a.mp4", "--out", "out.jsonl").returncode == 0
    os.truncate(tmp_path / "out.jsonl", 30 * 2**30)
    size = (tmp_path / "out.jsonl").stat().st_size
    printed = caption(clips / "a.mp4", "--out", "out.jsonl")
    assert printed.returncode == 5
    assert re.search(r"out\.jsonl, line 2: longer than 64 MiB", printed.stderr)
    assert (tmp_path / "out.jsonl").stat().st_size == size


@pytest.mark.parametrize(
    ("flag", "words", "named"),
    [
        ("--prompt", 5000, "--prompt: [0-9]+ tokens"),
        ("--prompt-file", 5000, r"prompt\.txt: [0-9]+ tokens"),
        ("--prompt-file", 60_000, r"prompt\.txt: 359999 characters"),
        ("--system", 5000, "--system: [0-9]+ tokens"),
        ("jobs", 5000, r"jobs\.jsonl, line 2: [0-9]+ tokens"),
        ("jobs", 160_000, r"jobs\.jsonl, line 2: 959999 characters"),
    ],
)
def test_a_prompt_that_the_model_has_no_positions_for_is_refused_at_the_start(
    caption: Caption,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
    words: int,
    named: str,
):
    monkeypatch.setattr("lvspec_cli.batch.serve.load", lambda *_: pytest.fail("the pair was loaded"))
    text = "moves " * words
    (tmp_path / "prompt.txt").write_text(text)
    jobs = [{"path": "clips/a.mp4"}, {"path": "clips/b.mp4", "prompt": text}]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    given: dict[str, list[Any]] = {"jobs": ["jobs.jsonl"], "--prompt-file": [clips, flag, "prompt.txt"]}
    printed = caption(*given.get(flag, [clips, flag, text]), "--out", "out.jsonl")
    assert printed.returncode == 2
    assert re.search(f"{named}, and the target has 4096 positions, 40 of them for the answer", printed.stderr)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("relevance", ["similarity", "attention"])
def test_a_layer_that_the_target_has_not_is_one_error_and_no_row(
    caption: Caption, clips: Path, tmp_path: Path, relevance: str
):
    flags = ("--relevance", relevance, "--layer", 99, "--out", "out.jsonl")
    printed = caption(clips, *flags)
    assert printed.returncode == 2, printed.stderr
    assert printed.stderr.count("error: ") == 1
    assert re.search("error: the target has [0-9]+ layers, no layer 99\ntry: ", printed.stderr)
    assert (tmp_path / "out.jsonl").read_bytes() == b""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pair_that_computes_nan_stops_the_batch_and_writes_no_row(
    caption: Caption, clips: Path, tmp_path: Path, workers: int
):
    folder = tmp_path / "spoilt"
    spoil_weights(save_pair(folder, "qwen2_5_vl")[0])
    models = folder / "models.yaml"
    models.write_text("pairs: {nan: {target: {folder: target}, draft: {folder: draft}}}")
    given = ("--pair", "nan", "--models", models, "--frames", 2, "--workers", workers)
    assert caption(clips / "a.mp4", "--out", "out.jsonl").returncode == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    printed = caption(clips, *given, "--out", "out.jsonl")
    assert printed.returncode == 3
    assert "the target's numbers are not finite (NaN)" in printed.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_too_little_memory_fails_the_clip_where_it_shall_not_shrink(
    caption: Caption, clips: Path, tmp_path: Path, small_memory: list[int]
):
    write_video(clips / "big.mp4", size=512)
    printed = caption(clips / "big.mp4", clips / "a.mp4", "--out", "out.jsonl", "--on-oom", "fail")
    assert printed.returncode == 1
    big, small = rows(tmp_path / "out.jsonl")
    assert (big["status"], big["error"]["kind"]) == ("error", "out_of_memory")
    said = r"too little memory: the pair needs about .* GB with 4 frames of \d+ pixels; free: .* on cpu"
    assert re.fullmatch(f"{said}; try: --frames 2", big["error"]["message"])
    assert small["status"] == "ok"


def test_a_dry_run_tells_and_writes_nothing(caption: Caption, clips: Path, tmp_path: Path):
    (clips / "bad.mp4").write_bytes(b"no video")
    make_clip(clips / "strip.mp4", count=2, size=(1000, 2))
    caption(clips / "a.mp4", "--out", "out.jsonl")
    before = (tmp_path / "out.jsonl").read_bytes()
    printed = caption(clips, "--out", "out.jsonl", "--dry-run")
    assert printed.returncode == 1
    assert (tmp_path / "out.jsonl").read_bytes() == before
    table = [line.split("\t") for line in printed.stdout.splitlines()]
    told = {line[0]: line for line in table[1:]}
    assert told["a.mp4"][-1] == "done"
    assert told["b.mp4"][-1] == "to do"
    assert "cannot be read" in told["bad.mp4"][-1]
    assert "the model takes no frames of 1000x2 pixels" in told["strip.mp4"][-1]
    assert "4 captions to do, 1 done, 0 failed, 2 unreadable" in printed.stderr
    assert caption(clips, "--out", "out.jsonl").returncode == 1
    taken = {row["file_name"]: row["sampling"] for row in rows(tmp_path / "out.jsonl")}
    assert told["b.mp4"][3:6] == [
        str(taken["b.mp4"]["decoded"]),
        f"{taken['b.mp4']['width']}x{taken['b.mp4']['height']}",
        str(taken["b.mp4"]["visual_tokens"]),
    ]
    write_video(clips / "new.mp4")
    assert "as past runs like this one went" in caption(clips, "--out", "out.jsonl", "--dry-run").stderr


def test_a_dry_run_tells_stretches_and_failures_that_would_be_skipped(
    caption: Caption, clips: Path, tmp_path: Path
):
    write_video(clips / "long.mp4", seconds=3)
    flags = ("--out", "out.jsonl", "--segment", 1.25, "--max-new-tokens", 2)
    assert caption(clips / "long.mp4", *flags, "--end", 1.25, "--fail-on", "length").returncode == 1
    planned = caption(clips / "long.mp4", *flags, "--dry-run")
    table = [line.split("\t") for line in planned.stdout.splitlines()[1:]]
    assert [(line[1], line[-1]) for line in table] == [
        ("0-1.25", "failed before"),
        ("1.25-2.5", "to do"),
        ("2.5-3", "to do"),
    ]


def test_records_go_to_stdout_on_request(caption: Caption, clips: Path, tmp_path: Path):
    printed = caption(clips, "--out", "-")
    assert printed.returncode == 0
    assert [json.loads(line)["file_name"] for line in printed.stdout.splitlines()] == NAMES
    assert not (tmp_path / "-").exists()


@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_stdout_may_be_named_as_a_file(caption: Caption, clips: Path, place: str):
    printed = caption(clips, "--out", place, "--max-new-tokens", 2)
    assert printed.returncode == 0, printed.stderr
    assert [json.loads(line)["file_name"] for line in printed.stdout.splitlines()] == NAMES
    assert "--out - leaves no file to go on from" in caption(clips, "--out", place, "--redo").stderr


def test_jobs_and_prompts_are_read_as_other_programs_write_them(
    caption: Caption, clips: Path, tmp_path: Path
):
    (clips / "jobs.csv").write_text("path;end;prompt;\n;;;\na.mp4;0,5;;\n\nd.mp4;;How many?;\n")
    (tmp_path / "list.txt").write_text(f"{clips}/b.mp4\r\n", encoding="utf-16")
    (tmp_path / "prompt.txt").write_text("Was geschieht in {name}?\r\n", encoding="utf-16")
    given = (clips / "jobs.csv", "--from-list", "list.txt", "--prompt-file", "prompt.txt")
    printed = caption(*given, "--out", "out.jsonl", "--max-new-tokens", 2)
    assert printed.returncode == 0, printed.stderr
    told = [(row["file_name"], row["segment"]["end"], row["prompt"]) for row in rows(tmp_path / "out.jsonl")]
    assert told == [
        ("a.mp4", 0.5, "Was geschieht in a?"),
        ("d.mp4", None, "How many?"),
        ("b.mp4", None, "Was geschieht in b?"),
    ]


def test_the_place_of_an_unknown_field_is_named(caption: Caption, clips: Path, tmp_path: Path):
    (clips / "jobs.csv").write_text("path;prompt\na.mp4;Well?\nb.mp4;Which {colour}?\n")
    (tmp_path / "prompt.txt").write_text("Look at {name}.\nWhich {colour}?\n")
    remedy = "try: use {name}, {duration} and {subtitles}; write {{ and }} for braces"
    for arguments, place in (
        ((clips / "jobs.csv",), f"{clips}/jobs.csv, line 3"),
        ((clips, "--prompt-file", "prompt.txt"), "prompt.txt, line 2"),
        ((clips, "--prompt", "Which {colour}?"), "--prompt"),
    ):
        printed = caption(*arguments, "--out", "out.jsonl")
        said = f"error: {place}: the unknown field {{colour}} in the prompt 'Which {{colour}}?'"
        assert (printed.returncode, printed.stderr.splitlines()) == (2, [said, remedy])


def test_a_file_of_records_that_an_editor_saved_is_gone_on_with(
    caption: Caption, clips: Path, tmp_path: Path
):
    out = tmp_path / "out.jsonl"
    caption(clips, "--out", "out.jsonl")
    edited = [row | {"rating": 5} for row in rows(out)]
    out.write_text("".join(json.dumps(row) + "\n" for row in edited), encoding="utf-8-sig")
    write_video(clips / "new.mp4")
    assert "5 done, 0 failed, 1 to do" in caption(clips, "--out", "out.jsonl").stderr
    assert caption(clips / "a.mp4", "--out", "out.jsonl", "--redo").returncode == 0
    assert [(row["file_name"], row.get("rating")) for row in rows(out)] == [
        *((name, 5) for name in NAMES[1:]),
        ("new.mp4", None),
        ("a.mp4", None),
    ]


def test_exports_are_written_in_the_same_pass(caption: Caption, clips: Path, tmp_path: Path):
    printed = caption(clips, "--out", "out.jsonl", "--to", "txt", "--to", "csv", "--prefix", "sks ")
    assert printed.returncode == 0, printed.stderr
    texts = {row["file_name"]: row["text"] for row in rows(tmp_path / "out.jsonl")}
    assert (clips / "a.txt").read_text().rstrip("\n") == "sks " + texts["a.mp4"].rstrip("\n")
    assert (clips / "more" / "e.txt").exists()
    assert len((tmp_path / "out.csv").read_text().splitlines()) >= 6
    (clips / "b.txt").write_text("my own words")
    (clips / "bb.txt").write_text("mine")
    write_video(clips / "bb.mp4")
    printed = caption(clips, "--out", "out.jsonl", "--to", "txt", "--prefix", "sks ")
    assert printed.returncode == 1
    assert (clips / "b.txt").read_text() == "my own words"
    assert (clips / "bb.txt").read_text() == "mine"


def test_shards_share_the_work_out_and_merge_to_the_whole(
    caption: Caption, here: Caption, clips: Path, tmp_path: Path
):
    caption(clips, "--out", "whole.jsonl")
    for share in (1, 2, 3):
        assert caption(clips, "--out", f"{share}.jsonl", "--shard", f"{share}/3").returncode in (0, 4)
    parts = [name for name in ("1.jsonl", "2.jsonl", "3.jsonl") if (tmp_path / name).exists()]
    assert len(parts) > 1
    printed = here("merge", "merged.jsonl", *parts)
    assert printed.returncode == 0, printed.stderr

    def by_name(path: str) -> list[dict[str, Any]]:
        return sorted((lasting(row) for row in rows(tmp_path / path)), key=lambda row: row["file_name"])

    assert by_name("merged.jsonl") == by_name("whole.jsonl")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere",), 4, "nowhere"),
        ((), 4, "no video was named"),
        (("clips", ""), 4, "a video's name is empty"),
        (("clips", "--segment", "2", "--scenes"), 2, "exclude each other"),
        (("clips", "--segment", "2", "--overlap", "3"), 2, "--overlap"),
        (("clips", "--overlap", "1"), 2, "--overlap goes with --segment"),
        (("clips", "--redo", "--retry-errors"), 2, "exclude each other"),
        (("clips", "--shard", "4/3"), 2, "4/3"),
        (("clips", "--prompt", "What is {colour}?"), 2, "{colour}"),
        (("clips", "--prompt", "<|im_end|>"), 2, "<|im_end|>"),
        (("clips", "--fail-on", "boredom"), 2, "boredom"),
        (("clips", "--out", "-", "--to", "csv"), 2, "--out -"),
        (("clips", "--out", "/dev/stdout", "--to", "csv"), 2, "--out -"),
        (("clips", "--out", "/dev/stderr"), 2, "--out /dev/stderr: messages go there"),
        (("clips", "--out", "pipe"), 5, "pipe: not a regular file"),
        (("clips", "--prefix", "x"), 2, "--prefix goes with --to"),
        (("clips", "--out", "no/such/folder/out.jsonl"), 5, "no such folder"),
        (("clips", "--devices", "cpu,cpu", "--workers", "2"), 2, "--devices"),
        (("clips", "--devices", "cpu,"), 2, "'cpu,' has an empty place"),
        (("clips", "--glob", "*.webm"), 4, "*.webm"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    caption: Caption, clips: Path, arguments: tuple[str, ...], code: int, message: str
):
    os.mkfifo("pipe")
    printed = caption(*arguments)
    assert printed.returncode == code, printed.stderr
    errors = [line for line in printed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_a_file_that_is_not_ours_is_refused_and_stays(caption: Caption, clips: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("dear diary\nmore\n")
    printed = caption(clips, "--out", "notes.txt")
    assert printed.returncode == 5
    assert (tmp_path / "notes.txt").read_text() == "dear diary\nmore\n"
