"""The search with a tiny pair: nothing is tuned on what is reported, and an interrupted search goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
import yaml

from lvspec_cli.bench.items import clips_of
from lvspec_cli.bench.search import Score
from lvspec_cli.bench.tune import (
    CALIBRATION,
    REPORT,
    SEARCH,
    Trial,
    Tuned,
    TuneJob,
    models_yaml,
    notes,
    rules_yaml,
    tune,
)
from lvspec_cli.bench.variants import NamedRule, read_rules
from lvspec_cli.errors import UsageError
from lvspec_cli.figures.answers import Estimate
from lvspec_cli.memory.resolve import SMALLEST_WORKLOAD, resolve
from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.pairs.registry import MarginPercentiles, read_models_file, shipped_models
from lvspec_cli.request import PairChoice
from lvspec_cli.types import DecodeSettings, RelevanceName, RoundCosts, RuleSettings, VideoRequest
from tests.conftest import write_video
from tests.tiny_models import save_pair

pytestmark = pytest.mark.usefixtures("no_charts")

SETTINGS = DecodeSettings(gamma=4, max_new_tokens=12)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LoadedPair:
    folders = save_pair(tmp_path_factory.mktemp("pair"), "qwen2_5_vl")
    return load_pair(*folders, device="cpu", dtype="float32")


@pytest.fixture
def job(tmp_path: Path, tiny_models: Path) -> TuneJob:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(4):
        write_video(folder / f"{number}.mp4", seconds=1.0 + number / 4)
    video = VideoRequest(Path(), max_frames=2)
    known = read_models_file(tiny_models).pairs["tiny"]
    return TuneJob(
        load_plan=resolve(PairChoice("tiny", known), SETTINGS, SMALLEST_WORKLOAD),
        video=video,
        settings=SETTINGS,
        clips=clips_of([folder], video),
        relevances=(RelevanceName.ATTENTION, RelevanceName.RANDOM),
        gammas=(2, 4),
        budget=3,
        min_fidelity=0.01,
        seed=0,
        out=tmp_path,
    )


def measured(folder: Path) -> dict[str, list[str | None]]:
    """By clip, whose answers its first item has."""
    _, *lines = (folder / "measurements.jsonl").read_text().splitlines()
    blocks = [json.loads(line)["block"] for line in lines if '"block"' in line]
    return {
        block["item"]: [each.get("label") or each["mode"] for each in block["measurements"]]
        for block in blocks
    }


def test_one_half_is_tuned_on_and_the_other_reported(pair: LoadedPair, job: TuneJob):
    tuned = tune(pair, job)
    searched, reported = measured(job.out / SEARCH), measured(job.out / REPORT)
    assert len(searched) == len(reported) == 2
    assert not searched.keys() & reported.keys()
    names = {each.score.name for each in tuned.trials}
    assert len(names) == 6
    for said in searched.values():
        assert said[0] == "ar"
        assert said[1] == "control"  # nothing is known about these clips
        assert set(said[2:]) == names  # two clips are one turn
    assert tuned.results is not None
    assert {item.id for item in tuned.results.items} == reported.keys()
    assert tuned.best is not None
    lines = {each.variant.name: each for each in tuned.results.modes}
    other = next(each for each in tuned.chosen if each is not tuned.best.rule.rule.relevance)
    assert list(lines) == ["ar", "control", "exact", "lvspec", "lvspec/before", f"lvspec/{other}"]
    assert lines["lvspec"].gamma == tuned.best.rule.gamma
    assert lines["lvspec"].settings["rule"]["relevance"] == tuned.best.rule.rule.relevance
    assert lines["lvspec/before"].settings["rule"]["relevance"] == "attention"
    assert lines["lvspec"].speedup_vs_ar is not None
    assert tuned.judged_by.startswith("the content words")


def stopping(at: str, share: float) -> Callable[[str], Callable[[int, int], None]]:
    """Interrupts what is done when it has come so far."""

    def stage(label: str) -> Callable[[int, int], None]:
        def told(done: int, total: int) -> None:
            if label == at and done >= share * total:
                raise KeyboardInterrupt

        return told

    return stage


def test_an_interrupted_search_goes_on_and_finds_the_same(pair: LoadedPair, job: TuneJob):
    job = replace(job, relevances=job.relevances[:1], budget=6)
    file = Path(SEARCH) / "measurements.jsonl"
    with pytest.raises(KeyboardInterrupt):
        tune(pair, job, progress=stopping("trying settings", 0.5))
    before = (job.out / file).read_bytes()
    assert 0 < before.count(b'"block"') < 2
    with pytest.raises(KeyboardInterrupt):
        tune(pair, job, progress=stopping("reporting", 0.0))
    whole = (job.out / file).read_bytes()
    assert whole.startswith(before)
    other = replace(job, out=job.out / "again")
    other.out.mkdir()
    shutil.copy(job.out / CALIBRATION, other.out)  # the same costs, as times differ
    with pytest.raises(KeyboardInterrupt):
        tune(pair, other, progress=stopping("reporting", 0.0))
    assert (other.out / file).read_bytes() == whole
    with pytest.raises(UsageError, match="budget differs"):
        tune(pair, replace(job, budget=4))


def test_one_clip_is_not_enough(pair: LoadedPair, job: TuneJob):
    with pytest.raises(UsageError, match="one clip cannot be tuned on and reported on"):
        tune(pair, replace(job, clips=job.clips[:1]))


RULE = RuleSettings(filler_margin=inf, anchor_threshold=2e-10, layers=(3, -1), shift_window=3)
BEST = Trial(
    NamedRule("attention-007", RULE, 12),
    Score("attention-007", 8, 3.0, 6.0, Estimate(value=1, low=1, high=1)),
)
COSTS = RoundCosts(draft=0.07, verification=1.1, row=0.02, overhead=0.1)


def test_the_lines_are_a_models_yaml(job: TuneJob, tmp_path: Path):
    file = tmp_path / "found.yaml"
    file.write_text(models_yaml("tiny", job.load_plan.choice.pair, BEST, COSTS))
    found = read_models_file(file).pairs["tiny"]
    assert found.rules.balanced == RULE
    assert (found.defaults.gamma, found.defaults.adaptation.costs) == (12, COSTS)
    assert found.defaults.frames == job.load_plan.choice.pair.defaults.frames
    assert found.target.path == job.load_plan.choice.pair.target.path
    assert found.rules.loose == job.load_plan.choice.pair.rules.loose


def test_every_shipped_pair_keeps_what_else_its_entry_says(tmp_path: Path):
    file = tmp_path / "found.yaml"
    for name, known in read_models_file(shipped_models()).pairs.items():
        file.write_text(models_yaml(name, known, BEST, COSTS))
        found = read_models_file(file).pairs[name]
        assert found.rules.percentiles.balanced == MarginPercentiles()
        kept = {"balanced": known.rules.balanced, "percentiles": known.rules.percentiles}
        rules = found.rules.model_copy(update=kept)
        assert found.rules.percentiles.loose == known.rules.percentiles.loose
        assert found.model_copy(update={"defaults": known.defaults, "rules": rules}) == known
        assert found.defaults.max_new_tokens == known.defaults.max_new_tokens


def test_what_was_found_is_read_by_the_bench(tmp_path: Path):
    tuned = Tuned(
        "facts", 8, (BEST,), {RelevanceName.ATTENTION: BEST}, {RelevanceName.ATTENTION: COSTS}, None
    )
    file = tmp_path / "rules.yaml"
    file.write_text(rules_yaml(tuned))
    (found,) = read_rules(file, RuleSettings(anchor_margin=9.0))
    assert (found.name, found.rule, found.gamma) == ("attention", RULE, 12)
    assert yaml.safe_load(file.read_text())["attention"]["filler_margin"] == inf


def test_where_nothing_keeps_enough_it_is_said(job: TuneJob):
    tuned = Tuned("facts", 8, (BEST,), {}, {}, None)
    assert tuned.best is None
    said = list(notes(replace(job, min_fidelity=0.998), tuned))
    assert said[0].startswith("no setting of attention is shown to keep 99.8 %")
