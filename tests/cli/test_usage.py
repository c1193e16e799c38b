"""Wrong usage and bad input: the exit code, one line of cause, one of remedy, nothing on stdout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import pytest

from lvspec_cli.cli import options
from lvspec_cli.cli.requests import (
    Argument,
    ArgumentKind,
    argument_of,
    ask_mistake,
    bench_mistake,
    caption_mistake,
    decode_settings,
    effectless,
)
from lvspec_cli.host import install_command
from lvspec_cli.output.records import Record
from lvspec_cli.pairs.registry import PACKAGE, load_registry
from lvspec_cli.types import KeepBy, Looseness, Mode, RelevanceName
from tests.conftest import Printed, Shell, write_video
from tests.video.clips import make_clip, make_sound

Run = Callable[..., Printed]
CLIP = str(PACKAGE / "demo/clips/clip_0001.mp4")
EMPTY = str(PACKAGE / "cli")  # of videos
WRONG = [
    (["ask"], 2, "Missing argument 'VIDEO... "),
    (["ask", "x.mp4"], 2, "there is no question\ntry: write one: lvspec ask x.mp4 'What happens?'"),
    (["ask", EMPTY, "q"], 4, f"no video and no picture in {EMPTY}\ntry: name the files themselves; of"),
    (["ask", "youtu.be/a?t=1", "q"], 4, "try: download it first: yt-dlp 'youtu.be/a?t=1'"),
    (["ask", "x.mp4", " "], 2, "a question is empty"),
    (["ask", "x.mp4", "-", "--question", "-"], 2, "stdin can be read only once"),
    (["ask", "x.mp4", "-"], 2, "the question on stdin is empty"),
    (["ask", "x.mp4", "--questions", "-"], 2, "-: no question in it"),
    (["ask", "x.mp4", "q\udce9"], 2, "a question is not UTF-8 text"),
    (["ask", "x.mp4", "q", "--system", "\udce9"], 2, "--system is not UTF-8 text"),
    (["ask", "x.mp4", "What", "moves?"], 2, "quote the question: lvspec ask x.mp4 'What moves?'"),
    (["ask", "What moves?"], 4, "no such video: What moves?\ntry: lvspec ask VIDEO 'What moves?'"),
    (["chat", "http:/a.org/x.mp4"], 4, "file: http://a.org/x.mp4\ntry: download it first: yt-dlp http:"),
    (["chat", CLIP, "Why?"], 2, "chat takes one video and no question\ntry: type it in the chat, or: lvspec"),
    (["chat", "no.mp4"], 4, "no such file: no.mp4"),
    (["chat", CLIP, "--mode", "ar", "--gamma", "3"], 2, "--gamma has no effect with --mode ar"),
    (
        ["bench", CLIP, "--modes", "ar,exact", "--max-loss", "1"],
        2,
        "--max-loss has no effect with --mode exact",
    ),
    (["bench", CLIP, "--modes", "ar,lvspec", "--seed", "1"], 2, "--seed has no effect without"),
    (["bench", "http:/a.org/x.mp4"], 4, "file: http://a.org/x.mp4\ntry: download it first: yt-dlp http:"),
    (["bench", EMPTY], 4, "no video and no picture in "),
    (["caption", CLIP, "--out", EMPTY], 5, "not a regular file"),
    (["tune", "no.mp4"], 4, "no such file: no.mp4"),
    (["bench-relevance", "no/*.mp4"], 4, "no such file: no/*.mp4\ntry: name the folder: no"),
    (["show", "http://a.org/x.jsonl"], 4, "file: http://a.org/x.jsonl\ntry: download it first"),
    (["export", "http://a.org/x.jsonl", "--to", "csv"], 4, "file: http://a.org/x.jsonl\ntry: download"),
    (["ask", "x.mp4", "y.mp4"], 4, "no such file: x.mp4, nor 1 more"),
    (["ask", "http://a.org/x.mp4", "q"], 4, "file: http://a.org/x.mp4\ntry: download it first: yt-dlp http:"),
    (["caption", "http://a.org/x.mp4"], 4, "file: http://a.org/x.mp4\ntry: download it first: yt-dlp http:"),
    (
        ["caption", "no/*.mp4"],
        4,
        "no such file: no/*.mp4\ntry: did you mean lvspec caption no --glob '*.mp4'",
    ),
    (
        ["ask", "x.mp4", "q", "--device", "gpu"],
        2,
        "--device gpu: there is no such device\ntry: did you mean cuda",
    ),
    (
        ["caption", "x.mp4", "--devices", "cpu,cpx"],
        2,
        "--devices cpx: there is no such device\ntry: use auto",
    ),
    (["models", "fit", "--device", "cuda:x"], 2, "--device cuda:x: there is no such device"),
    (["ask", "x.mp4", "q", "--nope"], 2, "No such option: --nope"),
    (["ask", "x.mp4", "q", "--mode", "fast"], 2, "'fast' is not one of 'lvspec', 'exact', 'ar'"),
    (["ask", "x.mp4", "q", "--gamma", "0"], 2, "Invalid value for '--gamma': 0 is neither auto nor a number"),
    (["ask", "x.mp4", "q", "--max-new-tokens", "0"], 2, "'--max-new-tokens'"),
    (["ask", "x.mp4", "q", "--temperature", "0.5"], 2, "--temperature has no rule in mode lvspec yet"),
    (["ask", "x.mp4", "q", "--mode", "ar", "--temperature", "inf"], 2, "--temperature inf is out of range"),
    (["ask", "x.mp4", "q", "--relevance", "gut"], 2, "'gut' is not one of 'attention'"),
    (["ask", "x.mp4", "q", "--looseness", "very"], 2, "'very' is not one of 'strict'"),
    (["ask", "x.mp4", "q", "--filler-margin", "nan"], 2, "--filler-margin: Input should be greater"),
    (["ask", "x.mp4", "q", "--shift-window", "99"], 2, "--shift-window: Input should be less"),
    (["ask", "x.mp4", "q", "--frames", "0"], 2, "'--frames'"),
    (["ask", "x.mp4", "q", "--fps", "0"], 2, "--fps 0 is out of range\ntry: give a number above 0"),
    (["ask", "x.mp4", "q", "--start", "1:99"], 2, "'1:99' is not a time"),
    (["ask", "x.mp4", "q", "--start", "5", "--end", "0:05"], 2, "--end is not after --start"),
    (["ask", "x.mp4", "q", "--max-pixels", "3"], 2, "'--max-pixels'"),
    (["ask", "x.mp4", "q", "--decoder", "vlc"], 2, "'vlc' is not one of 'pyav', 'decord'"),
    (["ask", "x.mp4", "q", "--background", "nice"], 2, "--background nice is not an opaque colour"),
    (["ask", "x.mp4", "q", "--background", "#00000080"], 2, "try: give a name or #rrggbb"),
    (["ask", "x.mp4", "q", "--decode-timeout", "0"], 2, "--decode-timeout 0 is out of range"),
    (["ask", "x.mp4", "q", "--threads", "0"], 2, "'--threads'"),
    (["ask", "x.mp4", "q", "--seed", "-1"], 2, "'--seed'"),
    (["ask", "x.mp4", "q", "--seed", "9" * 20], 2, "'--seed': Input should be less than or equal"),
    (["ask", "x.mp4", "q", "--seed", "9" * 5000], 2, "'--seed'"),
    (["ask", "x.mp4", "q", "--max-new-tokens", "1000000000000"], 2, "'--max-new-tokens'"),
    (["ask", "x.mp4", "q", "--threads", "1000000"], 2, "'--threads'"),
    (["ask", "x.mp4", "q", "--frames", "1" + "0" * 30], 2, "'--frames'"),
    (["ask", "x.mp4", "q", "--max-pixels", "1" + "0" * 30], 2, "'--max-pixels'"),
    (["ask", "x.mp4", "q", "--fps", "1e30"], 2, "'--fps'"),
    (["ask", "x.mp4", "q", "--gamma", "1" + "0" * 30], 2, "'--gamma'"),
    (["ask", "x.mp4", "q", "--start", "1" + "0" * 400], 2, "is not a time"),
    (["ask", "x.mp4", "q", "--end", "9" * 5000 + ":00:00"], 2, "is not a time"),
    (["ask", "x.mp4", "q", "--start", "999999999"], 2, "is later than a video lasts"),
    (["ask", "x.mp4", "q", "--mode", "ar", "--temperature", "1e-320"], 2, "is out of range\ntry: give 0 for"),
    (
        ["ask", "x.mp4", "q", "--mode", "ar", "--temperature", "1e30"],
        2,
        "--temperature 1e+30 is out of range",
    ),
    (["caption", "x.mp4", "--seed", "9" * 20], 2, "'--seed'"),
    (["caption", "x.mp4", "--decode-memory", "1" + "0" * 30], 2, "'--decode-memory'"),
    (["caption", "x.mp4", "--segment", "1e308"], 2, "--segment 1e+308 is out of range"),
    (["caption", "x.mp4", "--workers", "1000"], 2, "'--workers'"),
    (["caption", "x.mp4", "--decode-workers", "1000"], 2, "'--decode-workers'"),
    (["demo", "--seed", "9" * 20], 2, "'--seed'"),
    (["demo", "--count", "9" * 20], 2, "'--count'"),
    (["bench", "--repeat", "9" * 20], 2, "'--repeat'"),
    (["bench", "--limit", "9" * 20], 2, "'--limit'"),
    (["bench", "--questions-per-clip", "9" * 20], 2, "'--questions-per-clip'"),
    (["bench", "--processes", "9" * 20], 2, "'--processes'"),
    (["bench-relevance", "--limit", "9" * 20], 2, "'--limit'"),
    (["tune", "--seed", "9" * 20], 2, "'--seed'"),
    (["tune", "--report", "9" * 20], 2, "'--report'"),
    (["tune", "--budget", "9" * 20], 2, "'--budget'"),
    (["tune", "--min-fidelity", "1e300"], 2, "--min-fidelity"),
    (["ask", "x.mp4", "q", "--decode-timeout", "1e300"], 2, "--decode-timeout 1e+300 is out of range"),
    (["ask", "x.mp4", "q", "--layer", "9" * 20], 2, "--layer"),
    (["ask", "x.mp4", "q", "--anchor-threshold", "inf"], 2, "--anchor-threshold: Input should be less"),
    (["ask", "x.mp4", "q", "--max-loose-run", "9" * 20], 2, "--max-loose-run: Input should be less"),
    (["ask", "x.mp4", "q", "--max-loose-in-window", "9" * 20], 2, "--max-loose-in-window: Input should be"),
    (["ask", "x.mp4", "q", "--loose-window", "9" * 20], 2, "--loose-window: Input should be less"),
    (["ask", "x.mp4", "q", "--random-rate", "2"], 2, "--random-rate: Input should be less"),
    (["ask", "x.mp4", "q", "--draft-keep", "2"], 2, "--draft-keep 2 is out of range"),
    (["ask", "x.mp4", "q", "--dtype", "int3"], 2, "'int3' is not one of 'auto'"),
    (["ask", "x.mp4", "q", "--models", "none.yaml"], 2, "none.yaml: No such file or directory"),
    (
        ["ask", "x.mp4", "q", "--pair", "nope"],
        3,
        "there is no pair named 'nope'\ntry: `lvspec models` lists them",
    ),
    (["ask", "x.mp4", "q", "--pair", "Qwen3-vl-8"], 3, "try: did you mean qwen3-vl-8b-"),
    (["ask", "x.mp4", "q", "--pair", "dmeo"], 3, "try: did you mean demo? `lvspec models` lists them"),
    (
        ["ask", "x.mp4", "q", "--mode", "ar", "--looseness", "loose"],
        2,
        "--looseness has no effect with --mode ar",
    ),
    (["caption", "x.mp4", "-0"], 2, "--null has no effect without a list of paths"),
    (["export", "x.jsonl"], 2, "Missing option '--to'. Choose from: txt, srt,"),
    (["ask", CLIP, "q", "--pair", "qwen2.5-vl-32b-7b"], 3, "is not wholly in the local cache"),
    (["ask", "x.mp4", "--questions", "none.txt"], 4, "none.txt: No such file or directory"),
    (["ask", CLIP, "q", "--trace", "no/such/folder/t"], 5, "no/such/folder/t: No such file or directory"),
    (["demo", "--count", "0"], 2, "'--count'"),
    (["nope"], 2, "No such command 'nope'"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG)
def test_wrong_usage(here: Run, arguments: list[str], code: int, message: str):
    printed = here(*arguments)
    assert printed.returncode == code
    assert message in printed.stderr
    assert printed.stdout == ""
    lines = printed.stderr.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["error:", "try:"]


LVSPEC = options.Decoding()
LAYER, RATE = ("--layer", "with --relevance lexicon"), ("--random-rate", "with --relevance lens")
SEED = ("--seed", "without --temperature or --relevance random")
KEEP_BY = ("--draft-keep-by", "without --draft-keep")
AR, EXACT = options.Decoding(mode=Mode.AR), options.Decoding(mode=Mode.EXACT)


@pytest.mark.parametrize(
    ("decoding", "rule", "said"),
    [
        (LVSPEC, options.Rule(filler_margin=3.0, looseness=Looseness.STRICT), None),
        (LVSPEC, options.Rule(anchor_threshold=7.0), ("--anchor-threshold", "with --relevance plausible")),
        (LVSPEC, options.Rule(relevance=RelevanceName.ATTENTION, anchor_threshold=7.0, layers=[1]), None),
        (LVSPEC, options.Rule(relevance=RelevanceName.LEXICON, layers=[1]), LAYER),
        (LVSPEC, options.Rule(relevance=RelevanceName.LENS, random_rate=0.1), RATE),
        (LVSPEC, options.Rule(defer_sure=True, defer=0), ("--defer-sure", "without --defer")),
        (replace(LVSPEC, draft_keep_by=KeepBy.EVEN), options.Rule(), KEEP_BY),
        (replace(LVSPEC, draft_keep_by=KeepBy.EVEN, draft_keep=0.5), options.Rule(), None),
        (EXACT, options.Rule(filler_margin=3.0), ("--filler-margin", "with --mode exact")),
        (EXACT, options.Rule(looseness=Looseness.PAPER), ("--looseness", "with --mode exact")),
        (EXACT, options.Rule(looseness=Looseness.STRICT), None),
        (AR, options.Rule(), None),
        (AR, options.Rule(max_loss=0.1), ("--max-loss", "with --mode ar")),
        (replace(AR, gamma="4"), options.Rule(), ("--gamma", "with --mode ar")),
        (replace(AR, fallback=False), options.Rule(), None),
        (replace(LVSPEC, seed=7), options.Rule(), SEED),
        (replace(LVSPEC, seed=7), options.Rule(relevance=RelevanceName.RANDOM), None),
        (replace(EXACT, seed=7, temperature=0.5), options.Rule(), None),
        (replace(AR, seed=7), options.Rule(), SEED),
    ],
)  # fmt: skip
def test_a_flag_that_changes_nothing_is_refused(
    decoding: options.Decoding, rule: options.Rule, said: tuple[str, str] | None
):
    _, pair = load_registry(environment={}).pair("demo")
    settings = decode_settings(decoding, rule, pair)
    assert effectless(options.Loading(), decoding, rule, settings) == said
    drafting = effectless(options.Loading(draft_device="cpu"), decoding, rule, settings)
    assert (drafting is None) == (said is None and decoding.mode is not Mode.AR)


def test_a_variable_that_names_no_pair_or_file_is_named(here: Run):
    done = here("ask", "x.mp4", "q", environment={"LVSPEC_PAIR": "nope"})
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        3, "error: LVSPEC_PAIR: there is no pair named 'nope'",
    )  # fmt: skip
    done = here("models", environment={"LVSPEC_MODELS": "none.yaml"})
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        2,
        "error: LVSPEC_MODELS: none.yaml: no such file",
    )


def test_what_a_run_will_need_is_looked_for_before_it_begins(
    here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "captions.jsonl"
    for module, flags in (("pyarrow", ["--to", "parquet"]), ("decord", ["--decoder", "decord"])):
        monkeypatch.setitem(sys.modules, module, None)
        done = here("caption", CLIP, "--out", out, *flags)
        assert install_command(module) in done.stderr.splitlines()[-1]
        assert (done.returncode, done.stdout, out.exists()) == (5 if module == "pyarrow" else 2, "", False)
    for command in ("chat", "bench"):
        done = here(command, CLIP, "--decoder", "decord")
        assert (done.returncode, install_command("decord") in done.stderr) == (2, True)


VIDEO, WORDS, FOLDER, TEXT, PATTERN = (
    ArgumentKind.VIDEO, ArgumentKind.WORDS, ArgumentKind.FOLDER, ArgumentKind.TEXT_FILE, ArgumentKind.PATTERN
)  # fmt: skip
A, B, QUESTION = Argument("a.mp4", VIDEO), Argument("b.mp4", VIDEO), Argument("Why?", WORDS)
CLIPS, LIST, JOBS = Argument("my clips", FOLDER), Argument("list.txt", TEXT), Argument("jobs.csv", TEXT)


@pytest.mark.parametrize(
    ("given", "code", "remedy"),
    [
        ([A], None, ""),
        ([A, QUESTION], None, ""),
        ([A, Argument("-", ArgumentKind.STDIN)], None, ""),
        ([Argument("gone", WORDS), QUESTION], None, ""),  # that there is no such file is said later
        ([A, B], None, ""),  # a question may come by a flag
        ([A, B, QUESTION], None, ""),
        ([A, CLIPS, QUESTION], None, ""),
        ([CLIPS, QUESTION], None, ""),
        ([A, QUESTION, B], 2, "lvspec ask a.mp4 b.mp4 'Why?'"),
        ([A, JOBS, QUESTION], None, ""),  # what the file is, is said later
        ([QUESTION, A], 2, "lvspec ask a.mp4 'Why?'"),
        ([Argument("What", WORDS), Argument("moves?", WORDS), A], 2, "lvspec ask a.mp4 'What moves?'"),
        (
            [Argument("in/*.mp4", PATTERN)],
            4,
            "lvspec caption in --glob '*.mp4' --prompt 'What happens?'",
        ),
        ([A, Argument("*.mkv", PATTERN), QUESTION], 4, "lvspec caption . --glob '*.mkv' --prompt 'Why?'"),
        ([A, Argument("这是*什么*", PATTERN)], None, ""),
        ([Argument("-", ArgumentKind.STDIN), QUESTION], 2, "save it to a file first"),
        ([Argument("file:///a.mp4", ArgumentKind.URL)], 4, "name the file: /a.mp4"),
        ([Argument("https://a.org/?v=1", ArgumentKind.URL)], 4, "download it first: yt-dlp 'https://a.org/?v=1'"),
        ([A, Argument("https://a.org/b.mp4", ArgumentKind.URL)], 4, "download it first: yt-dlp https://a.org/b.mp4"),
        ([A, Argument("https://a.org/b shows what?", ArgumentKind.URL)], None, ""),
        ([LIST], 2, "did you mean lvspec caption --from-list list.txt"),
        ([JOBS, QUESTION], 2, "did you mean lvspec caption jobs.csv"),
        ([A, LIST], 2, "did you mean lvspec ask a.mp4 --questions list.txt"),
        (
            [A, Argument("Who", WORDS), Argument("is", WORDS)],
            2,
            "quote the question: lvspec ask a.mp4 'Who is'",
        ),
    ],
)  # fmt: skip
def test_arguments_of_ask_that_are_not_a_video_and_a_question(
    given: list[Argument], code: int | None, remedy: str
):
    mistake = ask_mistake(given)
    assert (mistake and mistake.exit_code, mistake.remedy if mistake else "") == (code, remedy)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ([A, CLIPS, JOBS, Argument("-", ArgumentKind.STDIN), Argument("gone", WORDS)], None),
        ([A, LIST], "did you mean lvspec caption --from-list list.txt"),
        ([A, Argument("What is it?", WORDS)], "did you mean lvspec caption VIDEOS --prompt 'What is it?'"),
        ([A, Argument("Why?", WORDS)], "did you mean lvspec caption VIDEOS --prompt 'Why?'"),
        ([A, Argument("rtsp://a/b", ArgumentKind.URL)], "download it first: yt-dlp rtsp://a/b"),
    ],
)
def test_arguments_of_caption_that_are_no_videos(given: list[Argument], remedy: str | None):
    mistake = caption_mistake(given)
    assert (mistake and mistake.remedy) == remedy
    assert "is text" in str(bench_mistake([A, CLIPS, LIST])) and bench_mistake([A, CLIPS, QUESTION]) is None


def test_what_an_argument_is_goes_by_its_form_and_by_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("film").touch()
    Path("notes.txt").touch()
    Path("jobs.jsonl").touch()
    Path("clips").mkdir()
    Path("www.mine").mkdir()
    kinds = {
        "film": VIDEO, "gone.MP4": VIDEO, "clips": FOLDER, "notes.txt": TEXT, "jobs.jsonl": TEXT,
        "gone.txt": WORDS, "Is it a.mp4": WORDS, "What?": WORDS, "": WORDS, "x" * 5000: WORDS, "a\0": WORDS,
        "*.mp4": PATTERN, "What*?": PATTERN, "2 * 3 =": WORDS, "-": ArgumentKind.STDIN,
        "www.a.org/b.mp4": ArgumentKind.URL, "www.mine": FOLDER, "www. what is it": WORDS,
        "https://a.org/b.mp4": ArgumentKind.URL, "http:none.mp4": VIDEO, "C:/a.mp4": VIDEO,
    }  # fmt: skip
    assert {text: argument_of(text).kind for text in kinds} == kinds


def test_alone_it_shows_its_help(here: Run):
    printed = here()
    assert (printed.returncode, printed.stdout) == (2, "")
    assert "│ ask      Ask questions about a video" in printed.stderr


def make_bad_file(kind: str, folder: Path) -> Path:
    """A file that cannot be answered about."""
    file = folder / f"{kind}.mp4"
    match kind:
        case "folder":
            file.mkdir()
        case "empty":
            file.touch()
        case "notes":
            file.write_text("just some notes\n" * 100)
        case "playlist":
            whole = write_video(folder / "whole.mp4")
            file.write_text(f"#EXTM3U\n#EXTINF:2,\nfile://{whole}\n#EXT-X-ENDLIST\n")
        case "sound":
            make_sound(file)
        case "encrypted":
            key = {"encryption_key": "76a6c65c5ea762046bd749a2e632ccbb"}
            scheme = {
                "encryption_scheme": "cenc-aes-ctr",
                "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
            }
            make_clip(file, container_options={**scheme, **key})
        case "no index":
            file.write_bytes(write_video(folder / "whole.mp4").read_bytes()[:400])
        case "no frame":
            data = make_clip(folder / "whole.mp4", container_options={"movflags": "faststart"}).read_bytes()
            file.write_bytes(data[: data.index(b"mdat") + 8])
        case "a day":
            make_clip(file, count=2, rate=1, ticks=[0, 25 * 3600])
        case "strip":
            make_clip(file, count=2, size=(1000, 2))
        case "long":
            make_clip(file, count=24)
    return file


# What the file is, further flags, exit code, kind of the record's error, message.
BAD = [
    ("gone", [], 4, None, "no such file: "),
    ("folder", [], 4, None, "no video and no picture in "),
    ("empty", [], 1, "not_a_video", "the file is empty: "),
    ("notes", [], 1, "not_a_video", "not a video that can be read: "),
    ("playlist", [], 1, "not_a_video", "not a video that can be read: "),
    ("sound", [], 1, "no_video_stream", "sound only: "),
    ("encrypted", [], 1, "encrypted", "the video is encrypted: "),
    ("no index", [], 1, "damaged", "cut off or damaged before its first frame: "),
    ("no frame", [], 1, "damaged", "no frame can be "),
    ("a day", [], 1, "over_limit", "25:00:01 long, the limit is 24:00:00: "),
    ("strip", [], 1, "video", "the model takes no frames of 1000x2 pixels (absolute aspect ratio "),
    ("long", ["--decode-timeout", "0.001"], 1, "decode_timeout", "decoding took longer than 0.001 s: "),
]


@pytest.mark.parametrize(("kind", "flags", "code", "record", "message"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_is_said_and_recorded(
    here: Run, tiny_models: Path, tmp_path: Path, kind: str, flags: list[str], code: int,
    record: str | None, message: str,
):  # fmt: skip
    file = make_bad_file(kind, tmp_path)
    arguments = ["ask", file, "What?", "--question", "Why?", "--models", tiny_models, "--quiet", *flags]
    printed = here(*arguments)
    assert (printed.returncode, printed.stdout) == (code, "")
    cause, remedy = printed.stderr.splitlines()
    assert cause.startswith(f"error: {message}")
    assert cause.endswith(str(file))
    assert remedy.startswith("try: ")
    again = here(*arguments, "--json")
    assert (again.returncode, again.stderr) == (code, printed.stderr)
    records = [Record.model_validate_json(line) for line in again.stdout.splitlines()]
    assert [row.prompt for row in records] == (["What?", "Why?"] if record else [])
    assert all(row.error and row.error.kind == record for row in records)


def test_a_trace_does_not_overwrite_another_file(here: Run, video_file: Path, tmp_path: Path):
    (tmp_path / "other.mp4").write_bytes(b"another video")
    printed = here("ask", video_file, "What?", "--trace", tmp_path / "other.mp4")
    assert printed.returncode == 5
    assert "other.mp4 was not written by lvspec, and is left alone\ntry: name another file" in printed.stderr
    assert (tmp_path / "other.mp4").read_bytes() == b"another video"


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("bench", ["results.json", "results.md", "report.html", "measurements.jsonl"]),
        ("bench-relevance", ["relevance.json", "report.html", "relevance.jsonl"]),
        ("tune", ["models.yaml", "variants.yaml", "tuning.md", "calibration.json"]),
    ],
)
def test_results_do_not_overwrite_files_of_others(here: Run, tmp_path: Path, command: str, names: list[str]):
    for name in names:
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("mine")
        for flags in ((), ("--redo",)):
            printed = here(command, "--out", folder, *flags)
            assert printed.returncode == 5, name
            assert f"{name} was not written by lvspec, and is left alone\ntry: name another" in printed.stderr
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_text() == "mine"


def test_a_trace_does_not_overwrite_the_video(here: Run, video_file: Path, tmp_path: Path):
    (tmp_path / "link.mp4").symlink_to(video_file)
    before = video_file.read_bytes()
    printed = here("ask", video_file, "What?", "--trace", tmp_path / "link.mp4")
    assert (printed.returncode, printed.stdout) == (2, "")
    assert "--trace would overwrite the video" in printed.stderr
    assert video_file.read_bytes() == before


BAD_MODELS = [
    ("default: a\npairs:\n  a:\n    target: {folder: x}\n", "line 3: pairs.a.draft: is missing"),
    (
        "pairs: {a: {target: {folder: x}, draft: {folder: x}}}\ngama: 3\n",
        "line 2: gama: there is no such key",
    ),
    ("pairs: {\n", "line 2: "),
]


@pytest.mark.parametrize(("text", "message"), BAD_MODELS)
def test_a_bad_models_file_is_named_with_line_and_key(here: Run, tmp_path: Path, text: str, message: str):
    models = tmp_path / "m.yaml"
    models.write_text(text)
    for arguments in (["models", "--models", models], ["ask", "x.mp4", "q", "--models", models]):
        printed = here(*arguments)
        assert (printed.returncode, printed.stdout) == (2, "")
        cause, remedy = printed.stderr.splitlines()
        assert cause.startswith(f"error: {models}, {message}")
        assert remedy.startswith("try: ")


@pytest.mark.parametrize("name", ["none.mp4", "-none.mp4", "http:none.mp4", ".", ""])
def test_no_such_file_is_a_4(
    here: Run, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.chdir(tmp_path)
    done = here("ask", "--models", tiny_models, "--", name, "What?")
    assert (done.returncode, done.stdout) == (4, ""), done.stderr
    assert done.stderr.splitlines()[-2].startswith("error: ")
    assert ("name is empty" in done.stderr) == (name == "")


def test_debug_shows_where_an_error_came_from(here: Run, tiny_models: Path):
    asked = ("ask", "none.mp4", "What?", "--models", tiny_models)
    assert "Traceback" not in here(*asked).stderr
    done = here(*asked, "--debug")
    assert (done.returncode, "Traceback" in done.stderr) == (4, True)


def test_names_cannot_act_on_the_terminal(here: Run, tiny_models: Path, tmp_path: Path):
    bad = tmp_path / "evil\x1b[2J\u202e.mp4"
    bad.write_text("not a video")
    done = here("ask", bad, "What?", "--models", tiny_models)
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    assert "\u202e" not in done.stderr
    assert "evil\\x1b[2J\\u202e.mp4" in done.stderr


def test_python_errors_read_as_one_line_too(capsys: pytest.CaptureFixture[str]):
    import typer

    from lvspec_cli.cli.reporting import as_lvspec_error, reporting

    with pytest.raises(typer.Exit) as ended, reporting(debug=False):
        raise ZeroDivisionError("division by zero")
    assert ended.value.exit_code == 1
    cause, remedy = capsys.readouterr().err.splitlines()
    assert cause == "error: ZeroDivisionError: division by zero"
    assert "--debug" in remedy
    assert "--debug" not in as_lvspec_error(ZeroDivisionError(), debug=True).remedy


def list_pairs(
    shell: Shell, stdout: int | TextIO, argument: str = "models"
) -> subprocess.CompletedProcess[str]:
    command = [*shell.command, argument]
    return subprocess.run(
        command, env=shell.environment, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
    )


def test_closed_stdout_is_said(shell: Shell):
    command = ["sh", "-c", '"$@" >&-', "sh", *shell.command, "--help"]
    done = subprocess.run(command, env=shell.environment, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 5
    assert "standard output is closed" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("argument", ["models", "--help"])
def test_a_full_disk_is_said(shell: Shell, argument: str):
    with Path("/dev/full").open("w") as full:
        done = list_pairs(shell, full, argument)
    assert done.returncode == 5
    assert "cannot write to standard output: No space left" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_a_reader_that_leaves_is_no_error(shell: Shell):
    reading, writing = os.pipe()
    os.close(reading)
    done = list_pairs(shell, writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + 13, "")
