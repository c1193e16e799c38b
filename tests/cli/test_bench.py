"""`lvspec bench` and `lvspec bench-compare` with a tiny pair: their files, their exit codes, going on."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version

from lvspec_cli.bench.lines import verdict
from lvspec_cli.bench.results import Results, read_results, to_json
from lvspec_cli.bench.variants import LABELLED_MODES
from lvspec_cli.figures.answers import BenchMode
from lvspec_cli.figures.summary import Measured, summarise
from lvspec_cli.host import install_command
from tests.bench import made
from tests.bench.made import known
from tests.conftest import Printed, Shell, write_video
from tests.schemas import check

SHORT = ("--max-new-tokens", 6, "--frames", 2)
CLIP = Path(__file__).parents[2] / "lvspec_cli/demo/clips/clip_0001.mp4"
pytestmark = pytest.mark.usefixtures("no_charts")


@pytest.fixture
def tiny(here: Callable[..., Printed], tiny_models: Path) -> Callable[..., Printed]:
    return partial(here, environment={"LVSPEC_MODELS": str(tiny_models)})


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "my clips"
    folder.mkdir()
    for name in ("a", "b"):
        write_video(folder / f"{name}.mp4")
    return folder


@pytest.mark.parametrize("command", ["bench", "bench-relevance", "tune"])
def test_without_the_package_for_charts_nothing_begins(
    command: str, tiny: Callable[..., Printed], clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = tiny(command, clips, "--out", tmp_path / "out")
    assert (done.returncode, (tmp_path / "out").exists()) == (2, False)
    assert done.stderr.splitlines() == [
        f"error: lvspec {command} needs the package matplotlib",
        f"try: install it with: {install_command('matplotlib')}",
    ]


def test_the_other_commands_do_without_the_package_for_charts(
    tiny: Callable[..., Printed], clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "captions.jsonl"
    done = tiny("caption", clips / "a.mp4", "--audit", "100%", "-o", out, *SHORT)
    assert (done.returncode, json.loads(out.read_text())["audit"] is not None) == (0, True), done.stderr
    (tmp_path / "results.json").write_text(to_json(made.results(())))
    assert tiny("bench-compare", tmp_path, tmp_path).returncode == 0
    (found,) = (
        row for row in json.loads(tiny("doctor", "--json").stdout)["findings"] if row["what"] == "matplotlib"
    )
    assert (found["state"], "install matplotlib" in found["remedy"]) == ("note", True)


@pytest.mark.parametrize(
    ("command", "measures"),
    [
        ("bench", "lvspec_cli.bench.run.measurer"),
        ("tune", "lvspec_cli.bench.tune.tune"),
        ("bench-relevance", "lvspec_cli.bench.relevance.measure_relevance"),
    ],
)
def test_too_little_memory_says_what_would_fit(
    command: str, measures: str, tiny, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate too much")

    monkeypatch.setattr(measures, full)
    done = tiny(command, clips, "--out", tmp_path / "out", "--frames", 8, "--quiet")
    assert done.returncode == 3, done.stderr
    cause, remedy = done.stderr.splitlines()
    assert re.fullmatch(
        r"error: too little memory: the pair needs about .* GB with 8 frames of \d+ pixels;"
        r" free: \d+\.\d GB of \d+\.\d GB on cpu", cause
    )  # fmt: skip
    assert remedy == "try: --frames 4"


def test_quick_measures_every_mode_on_clips_of_its_own(tiny, tmp_path: Path):
    out = tmp_path / "out"
    done = tiny("bench", "--quick", "--out", out, *SHORT)
    assert done.returncode == 0, done.stderr
    heading, *lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert heading[:3] == ["mode", "γ", "speedup"]
    assert done.stderr.count(verdict(read_results(out)) + "\n") == 1
    names = [line[0].removesuffix(" *") for line in lines]
    assert names == [*LABELLED_MODES, "hf-assisted"]  # once as it is, once with our gamma
    results = read_results(out)
    assert [each.mode for each in results.modes] == names
    assert len(results.items) == 4  # a caption and a question about each of two clips
    assert len(results.blocks) == 4
    for each in results.modes:
        if each.mode is BenchMode.HF_ASSISTED and Version(transformers.__version__) < Version("5.18"):
            assert "IndexError" in (each.error or ""), "it takes no assistant of another vocabulary"
            continue
        assert each.error is None, each.error
        assert each.speedup_vs_ar is not None
        assert each.tokens_per_s is not None
    exact = next(each for each in results.modes if each.mode is BenchMode.EXACT)
    assert exact.fidelity is not None
    assert exact.fidelity.identical is not None
    assert exact.fidelity.identical.value == 1.0
    assert exact.retention is None or exact.retention.value == 1.0
    assert exact.c
    assert exact.predicted_speedup
    assert results.environment.target_dtype == "float32"
    text = (out / "results.md").read_text()
    assert all(f"| {name}" in text for name in names)
    assert results.environment.device_name.split()[0] in text


def test_clips_an_hour_are_measured_by_how_many_are_captioned_together(tiny, clips: Path, tmp_path: Path):
    out = tmp_path / "out"
    (clips / "broken.mp4").write_bytes(b"no video")
    modes = ("--modes", "lvspec,hf-batched", "--at-once", "1,2,16")
    command = partial(tiny, "bench", clips, "--throughput", "--out", out, *modes, *SHORT)
    done = command()
    assert done.returncode == 1, done.stderr  # one could not be read
    assert "warning: not measured: 16 at once, of 2 captions in all" in done.stderr
    _, *lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[:2] for line in lines] == [
        ["lvspec", "1"],
        ["lvspec, no draft", "2"],  # as caption has it, for this draft costs as much as the target
        ["hf-batched", "1"],
        ["hf-batched", "2"],
    ]
    results = read_results(out)
    check("results", json.loads((out / "results.json").read_text()))
    assert [item.error is None for item in results.items] == [True, True, False]
    assert [(run.error, run.clips, run.output_tokens) for run in results.runs] == [(None, 2, 4)] * 4
    _, without_draft, one, two = (run.texts for run in results.runs)
    assert without_draft == one == two, "both are the target's own"
    assert [row.vs_one == 1.0 for row in results.throughput] == [True, False, True, False]
    assert command().stdout == done.stdout, "what is measured is not measured again"
    other = tiny("bench", clips, "--out", out, "--modes", "ar", *SHORT)
    assert (other.returncode, "is of another run: " in other.stderr) == (2, True)


@pytest.mark.parametrize(
    ("flags", "cause"),
    [
        (("--at-once", "1,8"), "--at-once goes with --throughput only"),
        (("--throughput", "--ablate"), "--ablate has no effect on --throughput"),
        (("--throughput", "--questions", "qa.jsonl"), "--questions has no effect on --throughput"),
        (("--throughput", "--gamma", "3,5"), "--gamma with several has no effect on --throughput"),
        (("--throughput", "--modes", "ar,hf-assisted"), "--throughput does not measure 'hf-assisted'"),
        (("--throughput", "--at-once", "0"), "--at-once '0' is not a number from 1 to 32"),
        (("--modes", "ar,hf-batched"), "--modes does not know 'hf-batched'"),
    ],
)
def test_flags_that_say_nothing_of_throughput(
    tiny, clips: Path, tmp_path: Path, flags: tuple[str, ...], cause: str
):
    done = tiny("bench", clips, "--out", tmp_path / "out", *flags)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, f"error: {cause}")


@pytest.mark.thorough
def test_the_figures_can_be_computed_again_from_the_file(tiny, clips: Path, tmp_path: Path):
    out = tmp_path / "out"
    flags = ("--modes", "ar,exact,lvspec:random", "--gamma", "2,3", "--repeat", 2, "--prompt", "What?")
    done = tiny("bench", clips, "--out", out, *flags, *SHORT, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    raw = json.loads((out / "results.json").read_text())
    assert raw["schema"] == "lvspec.bench.1"
    named = [(each["mode"], each["relevance"], each["gamma"]) for each in raw["modes"]]
    assert named == [
        ("ar", None, None),
        ("exact", None, 2), ("exact", None, 3),
        ("lvspec", "random", 2), ("lvspec", "random", 3),
    ]  # fmt: skip
    assert {"median", "low", "high"} == raw["modes"][1]["speedup_vs_ar"].keys()
    results = Results.model_validate(raw)
    assert to_json(results) == (out / "results.json").read_text()
    assert len(results.blocks) == 4
    measured = Measured({item.id: item for item in results.items}, results.blocks)
    variants = [each.variant for each in results.modes]
    used = {each.variant: each.settings for each in results.modes}
    assert summarise(measured, variants, used) == (variants[0], results.modes)


def test_a_second_run_has_nothing_left_and_other_settings_are_refused(tiny, clips: Path, tmp_path: Path):
    flags = ("bench", clips, "--out", tmp_path / "out", "--modes", "ar,exact", *SHORT)
    assert tiny(*flags).returncode == 0
    before = read_results(tmp_path / "out").blocks
    assert tiny(*flags).returncode == 0
    assert read_results(tmp_path / "out").blocks == before
    refused = tiny(*flags, "--max-new-tokens", 5)
    assert refused.returncode == 2
    assert "max_new_tokens was 6, is 5" in refused.stderr
    assert "--redo" in refused.stderr
    assert tiny(*flags, "--max-new-tokens", 5, "--redo").returncode == 0
    assert read_results(tmp_path / "out").blocks != before


def test_questions_of_a_file_are_asked_and_judged(tiny, clips: Path, tmp_path: Path):
    rows = [
        {"path": str(clips / "a.mp4"), "question": "Which?", "choices": ["red", "blue"], "answer": "A"},
        {"path": str(clips / "b.mp4"), "question": "Which?", "choices": ["red", "blue"]},
    ]
    file = tmp_path / "qa.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = tiny("bench", "--questions", file, "--out", tmp_path / "out", "--modes", "ar,exact", *SHORT)
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path / "out")
    assert [item.choices for item in results.items] == [("red", "blue")] * 2
    exact = results.modes[1]
    assert exact.fidelity is not None
    assert exact.fidelity.short_answers == 2


def test_a_clip_that_cannot_be_read_is_a_1_and_the_rest_is_measured(tiny, clips: Path, tmp_path: Path):
    (clips / "bad.mp4").write_text("no video\n" * 100)
    done = tiny("bench", clips, "--out", tmp_path / "out", "--modes", "ar", *SHORT)
    assert done.returncode == 1
    assert "bad.mp4" in done.stderr
    results = read_results(tmp_path / "out")
    assert [item.file_name for item in results.items if item.error] == ["bad.mp4"]
    assert len({block.item for block in results.blocks}) == 2


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--modes", "fast"), 2, "--modes does not know 'fast'"),
        (("--gamma", "0"), 2, "--gamma: 0 is neither auto nor a number"),
        (("--draft-keep", "0"), 2, "--draft-keep 0 is out of range"),
        (("--questions", "qa.jsonl", str(CLIP)), 2, "names its own clips"),
        (("gone.mp4",), 4, "gone.mp4"),
        (("--pair", "gone"), 3, "no pair named 'gone'"),
    ],
)
def test_wrong_flags_are_found_before_anything_slow(tiny, tmp_path: Path, flags, code: int, said: str):
    done = tiny("bench", *flags, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 2


def test_a_stopped_run_goes_on(clips: Path, tmp_path: Path, tiny_models: Path):
    shell = Shell(tmp_path, {"LVSPEC_MODELS": str(tiny_models)})
    out = tmp_path / "out"
    flags = ["bench", clips, "--out", out, "--modes", "ar,exact", "--repeat", 6, *SHORT]
    command = [*shell.command, *map(str, flags)]
    running = subprocess.Popen(command, env=shell.environment, stderr=subprocess.PIPE, text=True)
    file = out / "measurements.jsonl"
    while not file.is_file() or file.read_bytes().count(b'"block"') < 2:
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130, said
    assert "goes on from there" in said
    left = file.read_bytes()
    assert left.count(b'"block"') < 12
    done = shell.run(*flags)
    assert done.returncode == 0, done.stderr
    whole = file.read_bytes()
    assert whole.startswith(left[: left.rindex(b"\n") + 1])
    assert len(read_results(out).blocks) == 12


def test_compare_shows_what_changed_and_fails_on_a_regression(tiny, clips: Path, tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert tiny("bench", clips, "--out", first, "--modes", "ar,exact", *SHORT).returncode == 0
    results = read_results(first)
    ar, exact = results.modes
    length = known(exact.mean_accepted_length)

    def doctored(factor: float) -> None:
        changed = exact.model_copy(update={"mean_accepted_length": factor * length})
        second.mkdir(exist_ok=True)
        (second / "results.json").write_text(to_json(results.model_copy(update={"modes": (ar, changed)})))

    doctored(0.9)
    worse = tiny("bench-compare", first, second)
    assert worse.returncode == 6
    assert "exact γ=4 got worse: mean accepted length" in worse.stderr
    (row,) = [line for line in worse.stdout.splitlines() if line.endswith("worse")]
    assert row.startswith("exact γ=4\tmean accepted length\t")
    assert "-10.0 %" in row
    assert tiny("bench-compare", first, second, "--margin", "0.15").returncode == 0
    doctored(1.1)
    better = tiny("bench-compare", first / "results.json", second)
    assert (better.returncode, better.stderr) == (0, "")
    alone = results.model_copy(update={"modes": (exact.model_copy(update={"gamma": 9}),)})
    (second / "results.json").write_text(to_json(alone))
    neither = tiny("bench-compare", first, second)
    assert (neither.returncode, f"error: {second} has no mode of {first}\n" in neither.stderr) == (2, True)
    (second / "results.json").write_text("{}")
    assert tiny("bench-compare", first, second).returncode == 2
    assert tiny("bench-compare", first, tmp_path / "gone").returncode == 4


def test_rules_with_names_are_lines_of_their_own(tiny, clips: Path, tmp_path: Path):
    out, file = tmp_path / "out", tmp_path / "rules.yaml"
    file.write_text("bold: {filler_margin: .inf, gamma: 6}\n")
    flags = ("--modes", "ar,lvspec", "--gamma", 4, "--variants", file, "--ablate", "--controls")
    done = tiny("bench", clips, "--out", out, "--limit", 1, *flags, *SHORT)
    assert done.returncode == 0, done.stderr
    results = read_results(out)
    names = [str(each.variant) for each in results.modes]
    assert names[:2] == ["ar", "lvspec γ=4"]
    assert {"lvspec/bold γ=6", "lvspec/no-shift γ=4", "lvspec/no-list γ=4", "lvspec:random γ=4"} <= set(names)
    rules = {each.label: each.settings["rule"] for each in results.modes if each.label}
    assert rules["bold"]["filler_margin"] == "Infinity"
    raw = json.loads((out / "results.json").read_text())  # where it is null among numbers
    assert raw["settings"]["rules"]["bold"]["filler_margin"] is None
    assert [
        each["settings"]["rule"]["filler_margin"] for each in raw["modes"] if each["label"] == "bold"
    ] == [None]
    assert rules["no-shift"]["shift_window"] == 0
    assert not rules["no-list"]["never_loosely"]
    assert [each.line for each in results.contrasts] == ["lvspec γ=4"] * (len(names) - 2)
    assert all(each.speed and each.accepted_length for each in results.contrasts)
    for name in ("results.md", "report.html"):
        assert "lvspec/no-shift γ=4" in (out / name).read_text()
    refused = tiny("bench", clips, "--out", out, "--limit", 1, *flags[:-1], *SHORT)
    assert "modes was" in refused.stderr  # the same folder holds another run
    assert tiny("bench", clips, "--variants", tmp_path / "gone.yaml").returncode == 2


@pytest.mark.thorough
def test_texts_alone_are_the_same_texts_without_times(tiny, clips: Path, tmp_path: Path):
    flags = (
        "bench",
        clips,
        "--modes",
        "ar,exact,lvspec,hf-ar",
        "--prompt",
        "What?",
        "--prompt",
        "Who?",
        *SHORT,
    )
    assert tiny(*flags, "--out", tmp_path / "timed").returncode == 0
    done = tiny(*flags, "--out", tmp_path / "texts", "--texts-only")
    assert done.returncode == 0, done.stderr
    assert "nothing was timed" in done.stderr
    timed, texts = (read_results(tmp_path / name) for name in ("timed", "texts"))
    for one, other in zip(timed.blocks, texts.blocks, strict=True):
        pairs = list(zip(one.measurements, other.measurements, strict=True))
        assert [each.text for each, _ in pairs] == [each.text for _, each in pairs]
        assert [each.accepted_lengths for each, _ in pairs] == [each.accepted_lengths for _, each in pairs]
        assert [each.log_probability for _, each in pairs] == [
            pytest.approx(each.log_probability) for each, _ in pairs
        ]
        assert all(each.end_to_end_s == 0 for _, each in pairs)
    assert all(each.speedup_vs_ar is None for each in texts.modes)
    assert texts.modes[1].mean_accepted_length == timed.modes[1].mean_accepted_length
