"""`lvspec tune` from the command line: what it prints can be a models.yaml, what is wrong is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lvspec_cli.bench.results import read_results
from lvspec_cli.pairs.registry import PACKAGE, read_models_file
from tests.conftest import Printed, write_video

pytestmark = pytest.mark.usefixtures("no_charts")

CLIPS = sorted((PACKAGE / "demo" / "clips").glob("*.mp4"))


@pytest.fixture
def tiny(here: Callable[..., Printed], tiny_models: Path) -> Callable[..., Printed]:
    return partial(here, environment={"LVSPEC_MODELS": str(tiny_models)})


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "my clips"
    folder.mkdir()
    for name in "abcd":
        write_video(folder / f"{name}.mp4")
    return folder


SHORT = ("--max-new-tokens", 8, "--frames", 2, "--budget", 3, "--gamma", "auto,3", "--min-fidelity", 1)


def test_what_is_printed_is_a_models_yaml_and_the_bench_reads_it(tiny, clips: Path, tmp_path: Path):
    out = tmp_path / "out"
    done = tiny("tune", clips, "--out", out, *SHORT)
    assert done.returncode == 0, done.stderr
    printed = tmp_path / "printed.yaml"
    printed.write_text(done.stdout)
    pairs = read_models_file(printed).pairs
    assert pairs == read_models_file(out / "models.yaml").pairs
    assert list(pairs) == ["tiny"]
    assert pairs["tiny"].defaults.gamma in ("auto", 3)
    assert "the report: 2 other clips" in done.stderr
    assert "the content words of ar's texts that the target's own second choices keep" in done.stderr
    assert (out / "variants.yaml").read_text().startswith("# lvspec tune\nattention:")
    assert "| attention-001" in (out / "tuning.md").read_text()
    assert (out / "report" / "report.html").is_file()
    before = read_results(out / "report").blocks
    again = tiny("tune", clips, "--out", out, *SHORT, "--quiet")
    assert (again.returncode, again.stdout, again.stderr) == (0, done.stdout, "")
    assert read_results(out / "report").blocks == before
    found = ("--models", out / "models.yaml", "--pair", "tiny", "--variants", out / "variants.yaml")
    few = ("--modes", "ar,lvspec", "--limit", 1, "--frames", 2, "--out", tmp_path / "bench")
    used = tiny("bench", clips, *found, *few)
    assert used.returncode == 0, used.stderr
    assert "lvspec/attention" in used.stdout


def test_a_pair_is_calibrated_on_its_own_captions(here: Callable[..., Printed], tmp_path: Path):
    tune = partial(here, "tune", "--pair", "demo", environment={"XDG_STATE_HOME": str(tmp_path)})
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    done = tune(broken, *CLIPS, "--calibrate", "--out", tmp_path / "out")
    kept = tmp_path / "lvspec" / "calibrations" / "demo.json"
    assert done.returncode == 1, done.stderr
    assert done.stdout.split()[:3] == ["measured", str(len(CLIPS)), "captions,"]
    assert "broken.mp4" in done.stderr
    assert f"kept in {kept}" in done.stderr
    assert json.loads(kept.read_text())["captions"] == len(CLIPS)
    short = tune(CLIPS[0], "--calibrate", "--max-new-tokens", 4, "--out", tmp_path / "out")
    assert (short.returncode, short.stdout) == (4, "")
    assert "too few for percentiles" in short.stderr


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--min-fidelity", "101"), 2, "--min-fidelity 101 is out of range"),
        (("--relevance", "none"), 2, "--relevance none has nothing to tune"),
        (("--gamma", "0"), 2, "--gamma"),
        (("gone.mp4",), 4, "gone.mp4"),
        (("--pair", "gone"), 3, "no pair named 'gone'"),
    ],
)
def test_wrong_flags_are_found_before_anything_slow(tiny, tmp_path: Path, flags, code: int, said: str):
    done = tiny("tune", *flags, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 2
    assert not (tmp_path / "out").exists()
