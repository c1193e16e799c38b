"""The commands with the prediction layer of a tiny Qwen3.5 as the draft: ``--draft mtp``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import lvspec_cli
from lvspec_cli.output.records import Record
from tests.conftest import Printed
from tests.tiny_models import add_prediction_layer, save_model

MODELS = """\
default: tiny
pairs:
  tiny: &tiny
    target: {folder: target}
    draft: {folder: not-here}
    defaults: {frames: 4, gamma: 4, max_new_tokens: 24, fallback: false}
  plain: {<<: *tiny, target: {folder: plain}}
  alone: {<<: *tiny, draft: {mtp: true}}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair whose target carries the layer and whose draft is not on this machine; one without the layer."""
    folder = tmp_path_factory.mktemp("mtp")
    add_prediction_layer(save_model(folder / "target", "qwen3_5"))
    save_model(folder / "plain", "qwen3_5")
    (folder / "models.yaml").write_text(MODELS)
    return folder / "models.yaml"


@pytest.fixture
def lvspec(here: Callable[..., Printed], models: Path) -> Callable[..., Printed]:
    def run(*arguments: object) -> Printed:
        return here(*arguments, environment={"LVSPEC_MODELS": str(models)})

    return run


def answers(done: Printed) -> list[Record]:
    assert done.returncode == 0, done.stderr
    return [Record.model_validate_json(line) for line in done.stdout.splitlines()]


def test_exact_is_ar_for_several_questions(lvspec: Callable[..., Printed], video_file: Path) -> None:
    asked = ("ask", video_file, "What moves?", "--question", "Why?", "--json", "--quiet")
    plain = answers(lvspec(*asked, "--mode", "ar"))
    exact = answers(lvspec(*asked, "--mode", "exact", "--draft", "mtp"))
    assert [row.text for row in exact] == [row.text for row in plain]
    assert [row.draft for row in plain + exact] == [None, None, "mtp", "mtp"]
    assert exact[0].lossless
    assert exact[0].stats is not None
    assert exact[0].stats.drafted > 0
    # A pair of models.yaml may say so by itself: the pair's name is the only thing that differs.
    named = answers(lvspec(*asked, "--mode", "exact", "--pair", "alone"))
    assert [(row.draft, row.text) for row in named] == [(row.draft, row.text) for row in exact]


def test_captions_are_audited(lvspec: Callable[..., Printed], video_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    done = lvspec("caption", video_file, "--out", out, "--audit", "100%", "--draft", "mtp")
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["draft"] == "mtp"
    assert row["audit"]["output_tokens"] > 0
    again = lvspec("caption", video_file, "--out", out, "--draft", "mtp")
    assert "0 captioned, 0 failed, 1 skipped" in again.stderr


@pytest.mark.thorough
def test_a_bench_measures_it(lvspec: Callable[..., Printed], video_file: Path, tmp_path: Path) -> None:
    """Left out, the modes that need a second model are not among those that are measured."""
    flags = ("--prompt", "What?", "--gamma", "3", "--max-new-tokens", 12, "--draft", "mtp")
    done = lvspec("bench", video_file, *flags, "--out", tmp_path / "bench")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "bench" / "results.json").read_text())
    assert results["settings"]["draft"] == "mtp"
    measured = {each["mode"]: each for each in results["blocks"][0]["measurements"]}
    assert set(measured) == {"ar", "exact", "lvspec", "hf-ar", "control"}
    assert measured["ar"]["text"] == measured["exact"]["text"] == measured["hf-ar"]["text"]
    assert measured["exact"]["drafted"] > 0
    named = lvspec("bench", video_file, *flags, "--modes", "ar,exact-pruned", "--out", tmp_path / "pruned")
    assert named.returncode == 2
    assert "--draft mtp cannot be measured in exact-pruned" in named.stderr


def test_what_is_said_of_it(lvspec: Callable[..., Printed]) -> None:
    shown = lvspec("models", "show", "tiny").stdout
    assert ", for --draft mtp: in the target's files" in shown
    assert "--draft mtp" not in lvspec("models", "show", "plain").stdout
    fit = lvspec("models", "fit", "tiny", "--draft", "mtp", "--device", "cpu")
    assert fit.returncode == 0, fit.stderr
    assert "auto: none on cpu: the target fits as it is\n" in fit.stdout
    rows = {line.split("\t")[0]: line.split("\t") for line in fit.stdout.splitlines()}
    assert rows["none"][2] == rows["int8, draft none"][2] == "0.2 MB"
    for pair, missing in (("plain", "no tensor mtp.*"), ("smolvlm2-2.2b-256m", "smolvlm models have no")):
        bare = lvspec("models", "fit", pair, "--draft", "mtp")
        assert (bare.returncode, missing in bare.stderr) == (3, True)
    verified = lvspec("models", "verify", "tiny", "--draft", "mtp", "--device", "cpu", "--quiet")
    assert verified.returncode == 0, verified.stdout
    assert "ok\tprediction layer\t49504 parameters, in the target's files" in verified.stdout
    assert "ok\tself-test\texact mode gives the target's" in verified.stdout
    assert lvspec("models", "pull", "tiny", "--draft", "mtp", "--quiet").stdout.endswith("/target\n")


@pytest.mark.parametrize(
    ("flags", "code", "line"),
    [
        (("--pair", "plain"), 3, "has no prediction layer: no tensor mtp.*"),
        (("--pair", "demo"), 3, "has no prediction layer: no tensor mtp.*"),
        (("--draft-device", "cpu"), 2, "and stays on its device, not on cpu"),
        (("--quant-draft", "nf4"), 2, "it is never packed"),
        (("--draft-keep", "0.5"), 2, "--draft-frames and --draft-pixels cannot make that less"),
    ],
)
def test_what_does_not_go_with_it(
    lvspec: Callable[..., Printed], video_file: Path, flags: tuple[str, ...], code: int, line: str
) -> None:
    done = lvspec("ask", video_file, "What?", "--draft", "mtp", *flags)
    assert done.returncode == code
    error, remedy = done.stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    assert line in error
    assert remedy.startswith("try: ")


def test_the_library_takes_it(models: Path, video_file: Path) -> None:
    model = lvspec_cli.load("tiny", mode="exact", models=models, draft="mtp", device="cpu")
    plain = lvspec_cli.load("tiny", mode="ar", models=models, device="cpu")
    found, expected = (each.ask(video_file, "What moves?") for each in (model, plain))
    assert (found.draft, found.text) == ("mtp", expected.text)
