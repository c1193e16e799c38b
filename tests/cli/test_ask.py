"""`lvspec ask` as a process of its own: through pipes, and ended by signals."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from lvspec_cli.cli.bench import noted_last
from lvspec_cli.cli.requests import argument_of, collect_questions, videos_and_question
from lvspec_cli.errors import UsageError
from lvspec_cli.escape import visible
from lvspec_cli.events import Noted
from lvspec_cli.output.records import Record
from lvspec_cli.ui.progress import PlainProgress
from tests.conftest import PATIENCE, Printed, Shell, write_video
from tests.schemas import check


@pytest.fixture
def tiny(here: Callable[..., Printed], tiny_models: Path) -> Callable[..., Printed]:
    """`lvspec ask` with the tiny pair, in this process."""
    return partial(here, "ask", environment={"LVSPEC_MODELS": str(tiny_models)})


def test_piped_answers_come_alone_and_in_order(tiny_shell: Shell, tiny, video_file: Path, tmp_path: Path):
    (tmp_path / "more.txt").write_text("Who?\n\nWhere?\n")
    trace = tmp_path / "rounds.jsonl"
    arguments = ["-", "--question", "Why?", "--questions", tmp_path / "more.txt"]
    done = tiny_shell.run("ask", video_file, *arguments, "--trace", trace, input="What\nmoves?\n")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stderr
    for said in (
        "decoding",
        "loading",
        "encoding the video",
        "tokens a step of the large model",
        "4 of 4 frames",
    ):
        assert said in done.stderr, said

    before = trace.read_text()
    again = tiny(video_file, *arguments, "--json", "--quiet", "--trace", trace, stdin="What\nmoves?\n")
    assert (again.returncode, again.stderr) == (0, "")
    assert trace.read_text() == before, "a trace may be written over, and says the same again"
    records = [Record.model_validate_json(line) for line in again.stdout.splitlines()]
    assert [record.prompt for record in records] == ["What\nmoves?", "Why?", "Who?", "Where?"]
    assert done.stdout == visible("\n---\n".join(record.text or "" for record in records) + "\n")

    rows = [json.loads(line) for line in trace.read_text().splitlines()]
    for row in rows:
        check("trace", row)
    for line in again.stdout.splitlines():
        check("record", json.loads(line))
    assert {row["question"] for row in rows} == {1, 2, 3, 4}
    output = [token["id"] for row in rows if row["question"] == 1 for token in row["output"]]
    assert records[0].stats is not None
    assert len(output) == records[0].stats.output_tokens


def test_questions_in_utf_16_are_read_and_what_is_no_text_is_said(tmp_path: Path):
    file = tmp_path / "q.txt"
    file.write_text("Où?\r\n\r\nWho?\r\n", encoding="utf-16")
    assert collect_questions(None, (), file, ()) == ("Où?", "Who?")
    file.write_bytes("Who?\n".encode("utf-16-le"))
    with pytest.raises(UsageError, match=r"q\.txt, line 1: a NUL: UTF-16 without a byte order mark"):
        collect_questions(None, (), file, ())


@pytest.mark.parametrize(
    ("arguments", "videos", "question"),
    [
        (["a.mp4"], ("a.mp4",), None),
        (["gone"], ("gone",), None),
        (["a.mp4", "What?"], ("a.mp4",), "What?"),
        (["a.mp4", "-"], ("a.mp4",), "-"),
        (["a.mp4", "clips"], ("a.mp4", "clips"), None),
        (["a.mp4", "b.mp4"], ("a.mp4", "b.mp4"), None),
        (["a.mp4", "gone.mp4", "clips", "What?"], ("a.mp4", "gone.mp4", "clips"), "What?"),
    ],
    ids=str,
)
def test_the_last_argument_is_the_question_unless_it_is_a_video(
    arguments: list[str],
    videos: tuple[str, ...],
    question: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    Path("clips").mkdir()
    assert videos_and_question([argument_of(text) for text in arguments]) == (videos, question)


def test_answers_about_several_videos_and_pictures_bear_their_names(tiny, video_file: Path, tmp_path: Path):
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.mp4", "deep/b.mp4"):
        shutil.copy(video_file, folder / name)
    Image.new("RGB", (64, 48), "red").save(tmp_path / "photo.png")
    (folder / "c.mp4").write_text("no video")
    asked = (folder, tmp_path / "photo.png", "What?", "--question", "Why?", "--max-new-tokens", 5)
    done = tiny(*asked, "--json", "-q")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    names = ["clips/a.mp4", "clips/c.mp4", "clips/deep/b.mp4", "photo.png"]
    assert [record["id"] for record in records] == [f"{name}#{n}" for name in names for n in (1, 2)]
    assert [record["status"] for record in records] == ["ok"] * 2 + ["error"] * 2 + ["ok"] * 4
    assert records[-1]["sampling"]["timestamps"] == [0.0]
    shown = tiny(*asked)
    assert (done.returncode, shown.returncode) == (1, 1)
    texts = [visible(record["text"]) for record in records if record["text"] is not None]
    about = [f"{name}: {texts[2 * n]}\n---\n{name}: {texts[2 * n + 1]}\n" for n, name in enumerate(
        ["clips/a.mp4", "clips/deep/b.mp4", "photo.png"]
    )]  # fmt: skip
    assert shown.stdout == "".join(about)
    assert shown.stderr.count("error: not a video that can be read: ") == 2
    assert shown.stderr.count("loading: ") == 1
    (folder / "c.mp4").rename(tmp_path / "clips/deep/b.mp4")  # alone in its folder
    only = tiny(folder / "deep", "What?", "-q")
    assert (only.returncode, only.stdout, only.stderr.count("error: not a video")) == (1, "", 1)


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["gone.mp4", "What?"], 4, "no such file: gone.mp4"),
        (["What?", "--trace", "t.jsonl"], 2, "--trace is of one video"),
        (["list.csv", "What?"], 2, "list.csv is a list, and ask takes videos"),
        ([], 2, "there is no question"),
    ],
    ids=str,
)
def test_several_videos_that_cannot_be_asked_about(
    tiny,
    video_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    code: int,
    message: str,
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(video_file, "b.mp4")
    Path("list.csv").touch()
    done = tiny(video_file, "b.mp4", *more)
    assert done.returncode == code
    assert message in done.stderr


def test_nothing_is_said_of_the_pair_before_errors(here, tmp_path: Path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"no video")
    said = here("ask", tmp_path / "a.mp4", tmp_path / "b.mp4", "What?").stderr.splitlines()
    assert [line.split(":")[0] for line in said] == ["error", "error"]
    stream = io.StringIO()
    with pytest.raises(UsageError), noted_last(PlainProgress(stream)) as note:
        note(Noted("pair demo (auto)"))
        raise UsageError("wrong", "mend it")
    assert stream.getvalue() == ""
    with noted_last(PlainProgress(stream)) as note:
        note(Noted("pair demo (auto)"))
        assert stream.getvalue() == ""
    assert stream.getvalue() == "pair demo (auto)\n"


def test_quiet_leaves_nothing_but_the_answer(tiny_shell: Shell, video_file: Path):
    done = tiny_shell.run("ask", video_file, "What?", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n")


def test_flags_reach_the_record(tiny, video_file: Path):
    decoding = (
        "--mode exact --gamma 3 --max-new-tokens 9 --temperature 0.7 --seed 5 --dtype float32 --device cpu"
        " --draft-frames 1 --draft-pixels 1600"
    )
    video = "--fps 1.5 --start 0:00.5 --end 1.9 --max-pixels 3136 --decoder decord --background navy"
    done = tiny(video_file, "What?", *decoding.split(), *video.split(), "--system", "Hello", "--json", "-q")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["mode"], row["lossless"], row["system"]) == ("exact", False, "Hello")  # it is sampled
    assert {"gamma": 3, "temperature": 0.7, "seed": 5, "max_new_tokens": 9}.items() <= row["settings"].items()
    assert {"draft_frames": 1, "draft_pixels": 1600}.items() <= row["settings"].items()
    assert row["stats"]["output_tokens"] <= 9
    assert row["segment"] == {"start": 0.5, "end": 1.9}
    requested = {"frames": None, "fps": 1.5, "max_pixels": 3136, "decoder": "decord", "background": "#000080"}
    assert row["sampling"]["requested"] == requested
    assert all(0.3 <= time <= 1.9 for time in row["sampling"]["timestamps"])
    assert row["sampling"]["width"] * row["sampling"]["height"] <= 3136
    assert row["file_name"] == "clip.mp4"


def test_rule_flags_and_looseness_reach_the_rule(tiny, video_file: Path):
    flags = "--relevance random --random-rate 0.25 --filler-margin inf --anchor-margin 0.1 --shift-window 1"
    done = tiny(video_file, "What?", *flags.split(), "--max-loose-run", "1", "--json", "-q")
    rule = json.loads(done.stdout)["settings"]["rule"]
    assert (rule["relevance"], rule["random_rate"], rule["filler_margin"]) == ("random", 0.25, None)
    assert (rule["anchor_margin"], rule["shift_window"], rule["max_loose_run"]) == (0.1, 1, 1)


def test_strict_gives_the_words_of_the_target_alone(tiny, video_file: Path):
    strict = tiny(video_file, "What?", "--looseness", "strict", "--quiet")
    alone = tiny(video_file, "What?", "--mode", "ar", "--quiet")
    assert (strict.returncode, strict.stderr, alone.stderr) == (0, "", "")
    assert strict.stdout == alone.stdout


def test_a_damaged_file_is_answered_with_a_warning(tiny, tmp_path: Path):
    whole = write_video(tmp_path / "whole.mp4", seconds=6.0, size=160).read_bytes()
    start, end = whole.index(b"mdat") + 4, whole.rindex(b"moov") - 4
    middle = (start + end) // 2
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(whole[:middle] + bytes(end - middle) + whole[end:])
    done = tiny(damaged, "What?", "--frames", 8, "--max-new-tokens", 4)
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("warning: ") for line in done.stderr.splitlines()), done.stderr
    record = Record.model_validate_json(tiny(damaged, "What?", "--frames", 8, "--json", "-q").stdout)
    assert record.status == "ok"
    assert record.sampling.warnings


def test_a_pair_of_little_knowledge_says_so(here, tiny_models: Path, video_file: Path, tmp_path: Path):
    models = tmp_path / "models.yaml"
    folder = tiny_models.parent
    models.write_text(
        f"pairs:\n  small:\n    world: noise\n    target: {{folder: {folder}/target}}\n"
        f"    draft: {{folder: {folder}/draft}}\n"
    )
    done = here("ask", video_file, "What?", "--models", models, "--pair", "small", "--max-new-tokens", 5)
    assert done.returncode == 0, done.stderr
    *_, note = done.stderr.splitlines()
    assert note == "small knows only noise; --pair takes another of `lvspec models`"
    shutil.copy(video_file, tmp_path / "b.mp4")
    several = (
        "ask",
        video_file,
        tmp_path / "b.mp4",
        "What?",
        "--models",
        models,
        "--pair",
        "small",
        "--json",
    )
    quiet = here(*several, "-q", "--max-new-tokens", 5)
    assert quiet.stderr == "warning: small knows only noise\n"
    assert ["knows only noise" in json.loads(row)["warnings"][0] for row in quiet.stdout.splitlines()] == [
        True,
        True,
    ]
    chat = here("chat", video_file, "--models", models, "--pair", "small", "-q")
    assert chat.stderr == "warning: small knows only noise\n"
    named = {"LVSPEC_PAIR": "small"}
    again = here("ask", video_file, "What?", "--models", models, "--json", environment=named)
    assert json.loads(again.stdout)["pair"] == "small"


def start(models: Path, home: Path, *arguments: object) -> subprocess.Popen[str]:
    shell = Shell(home, {"LVSPEC_MODELS": str(models)})
    command = [*shell.command, "ask", *map(str, arguments)]
    return subprocess.Popen(
        command, env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_answer_with_what_there_is(
    endless_models: Path, tmp_path: Path, video_file: Path, number: signal.Signals, code: int
):
    rows = tmp_path / "rounds"
    os.mkfifo(rows)  # the first line tells that the answer has begun
    running = start(
        endless_models, tmp_path, video_file, "What?", "--question", "Why?", "--json", "--trace", rows
    )
    with rows.open() as trace:
        for _ in range(3):
            assert trace.readline()
        running.send_signal(number)
        trace.read()
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == code, err
    (record,) = [Record.model_validate_json(line) for line in out.splitlines()]
    assert (record.status, record.finish_reason.value) == ("error", "interrupted")
    assert record.text
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err


def test_a_signal_before_the_answer_ends_at_once(endless_models: Path, tmp_path: Path, video_file: Path):
    running = start(endless_models, tmp_path, video_file, "What?")
    assert running.stderr is not None
    assert running.stderr.readline().startswith("decoding")
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err


@pytest.mark.skipif(sys.platform != "linux", reason="finds the decoder in /proc")
def test_a_signal_while_decoding_ends_the_decoder_too(endless_models: Path, tmp_path: Path):
    long = write_video(tmp_path / "long.mp4", seconds=120.0)
    running = start(endless_models, tmp_path, long, "What?", "--frames", 900)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    while not (decoder := children.read_text().split()):
        assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out, err) == (143, "", "interrupted\n")
    until = time.monotonic() + 10
    while Path(f"/proc/{decoder[0]}").exists():
        assert time.monotonic() < until


@pytest.mark.skipif(sys.platform != "linux", reason="finds the decoder in /proc")
def test_a_file_that_changes_while_it_is_read_gives_no_answer(tiny_models: Path, tmp_path: Path):
    """Replaced while its decoder stands still: no record has the key of the one and the text of the other."""
    video = write_video(tmp_path / "clip.mp4")
    running = start(tiny_models, tmp_path, video, "What?", "--question", "Why?", "--json")
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    while not (decoder := children.read_text().split()):
        assert running.poll() is None
    os.kill(int(decoder[0]), signal.SIGSTOP)
    write_video(tmp_path / "new.mp4", seconds=1.0).rename(video)
    os.kill(int(decoder[0]), signal.SIGCONT)
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 1, err
    said = f"error: the file changed while it was read: {video}"
    assert err.splitlines()[-2:] == [said, "try: run it again"]
    records = [Record.model_validate_json(line) for line in out.splitlines()]
    assert [record.error and record.error.kind for record in records] == ["changed"] * 2
    assert not any(record.text for record in records)


def test_a_reader_that_leaves_ends_the_answer(endless_models: Path, tmp_path: Path, video_file: Path):
    running = start(endless_models, tmp_path, video_file, "What?", "--quiet")
    assert running.stdout is not None
    assert running.stdout.read(1)
    running.stdout.close()
    assert running.wait(timeout=PATIENCE) == 128 + 13
    assert running.stderr is not None
    assert running.stderr.read() == ""


def test_models_lists_pairs_with_sizes_and_places(tiny_shell: Shell):
    done = tiny_shell.run("models")
    assert done.returncode == 0
    heading, *lines = [line.split("\t") for line in done.stdout.splitlines()]
    rows = {line[0]: dict(zip(heading, line, strict=True)) for line in lines}
    assert rows["tiny (default)"]["here"] == "folder"
    assert "MB" in rows["tiny (default)"]["target"]
    assert rows["qwen2.5-vl-32b-7b"]["here"] == "not downloaded"
    assert "68.3 GB" in rows["qwen2.5-vl-32b-7b"]["target"]
