"""Scores of a tiny target's captions, and the command around them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest
import torch

from lvspec_cli.bench.items import clips_of
from lvspec_cli.bench.relevance import (
    CAPTIONS_NAME,
    Header,
    Scheme,
    fact_tokens,
    measure_relevance,
    open_captions,
    read_relevance,
    score_caption,
)
from lvspec_cli.errors import NoInputError, UsageError
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.models.probe import video_attention
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.types import DecodeSettings, Mode, RelevanceName, VideoRequest
from tests.bench.made import ENVIRONMENT
from tests.conftest import Printed
from tests.speculation.conftest import decode
from tests.tiny_models import make_clip, never_end, save_pair

CLIPS = Path(__file__).parents[2] / "lvspec_cli" / "demo" / "clips"


@pytest.mark.parametrize(
    ("pieces", "facts"),
    [
        (["A", " red", " circle", " moves", "."], [False, True, True, False, False]),
        (["Two", " objects"], [True, False]),  # in any case
        (["re", "d", "dish"], [False, False, False]),  # a word is whole
        ([" check", "ered"], [True, True]),  # in pieces
        (["left", ",", "right"], [True, False, True]),
        (["red", "", " ", "\n", "."], [True, None, None, None, False]),
        (["a re", "d one"], [True, True]),  # tokens across words
        ([" shows", " a", " star", " shows", " up"], [False, False, True, True, True]),
    ],
)
def test_which_tokens_are_facts(pieces: list[str], facts: list[bool | None]) -> None:
    assert list(fact_tokens(pieces)) == facts


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LoadedPair:
    folders = save_pair(tmp_path_factory.mktemp("pair"), "qwen2_5_vl")
    for folder in folders:
        never_end(folder)
    return load_pair(*folders, device="cpu", dtype="float32")


def test_every_scheme_scores_every_token_of_the_caption(pair: LoadedPair) -> None:
    settings = DecodeSettings(gamma=3, max_new_tokens=12)
    clip = make_clip(4)
    scored = score_caption(pair, clip, "What moves?", settings)
    rows = scored.by_scheme
    layers, heads = 3, 4
    assert {str(scheme) for scheme in rows if scheme.head is None} == {
        *(
            f"{name}, layer {layer}"
            for name in ("attention", "similarity", "lens")
            for layer in range(layers)
        ),
        "lexicon",
        "rank",
        "random",
    }
    assert len([scheme for scheme in rows if scheme.head is not None]) == layers * heads
    for scheme, row in rows.items():
        assert len(row.scores) == len(scored.facts) <= 11
        assert all(-1e-6 <= score <= 1 + 1e-6 for score in row.scores)
        if scheme.head is None:
            assert row.score_us is not None
            assert row.score_us > 0
            assert row.prepare_ms is not None
            assert row.prepare_ms >= 0
    for layer in range(layers):
        of_heads = [rows[Scheme(RelevanceName.ATTENTION, layer, head)].scores for head in range(heads)]
        mean = rows[Scheme(RelevanceName.ATTENTION, layer)].scores
        assert mean == pytest.approx([fmean(scores) for scores in zip(*of_heads, strict=True)], abs=1e-6)


def test_the_scores_are_those_of_a_verification(pair: LoadedPair) -> None:
    """What the rule reads while a draft's proposal, here the target's own words, is verified."""
    settings = DecodeSettings(gamma=3, max_new_tokens=12)
    prompts = build_prompts(pair, make_clip(4), "What moves?")
    tokens = decode(pair, prompts, DecodeSettings(mode=Mode.AR, max_new_tokens=12))[0].tokens
    decoder = Decoder(pair.target)
    with torch.inference_mode():
        decoder.encode(prompts.target)
        decoder.begin(prompts.target, 12)
        decoder.forward(torch.tensor(tokens[:4]))
        passed = decoder.forward(torch.tensor(tokens[4:8]), [1])
        shares = video_attention(decoder, passed, 1, 3).mean(dim=0)
    scored = score_caption(pair, make_clip(4), "What moves?", settings)
    row = scored.by_scheme[Scheme(RelevanceName.ATTENTION, 1)]
    scores = dict(zip(scored.places, row.scores, strict=True))
    verified = {place: score for place, score in scores.items() if place in (5, 6, 7)}
    assert verified
    for place, score in verified.items():
        assert score == pytest.approx(float(shares[place - 5]), abs=1e-5)


def test_without_facts_beside_a_clip_there_is_nothing_to_measure(pair: LoadedPair, tmp_path: Path) -> None:
    header = Header(settings={}, environment=ENVIRONMENT)
    with open_captions(tmp_path, header) as kept, pytest.raises(NoInputError, match="facts"):
        measure_relevance(pair, [], DecodeSettings(), kept)


def test_a_run_that_was_stopped_goes_on_with_the_very_same_scores(
    pair: LoadedPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        for suffix in ("mp4", "json"):
            shutil.copy(CLIPS / f"clip_000{number}.{suffix}", tmp_path)
    (tmp_path / "clip_0002.mp4").write_text("no video")
    clips = clips_of([tmp_path], VideoRequest(Path(), max_frames=2))
    settings = DecodeSettings(gamma=3, max_new_tokens=12)
    header = Header(settings={"gamma": 3}, environment=ENVIRONMENT)
    schemes = (RelevanceName.ATTENTION, RelevanceName.LEXICON)
    said: list[str] = []

    def stop(done: int, total: int) -> None:
        assert total == 3
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with open_captions(out, header) as kept, pytest.raises(KeyboardInterrupt):
        measure_relevance(pair, clips, settings, kept, schemes=schemes, progress=stop)
    with open_captions(out, header) as kept:
        assert len(kept.stored) == 1
        whole = measure_relevance(pair, clips, settings, kept, schemes=schemes, warn=said.append)
    assert len(whole.scored) == 2
    assert list(whole.unread) == ["clip_0002.mp4"]
    assert [line.partition(":")[0] for line in said] == ["clip_0002.mp4"]
    # Once more from the file alone: nothing is scored, and no number has changed.
    monkeypatch.setattr("lvspec_cli.bench.relevance.score_caption", None)
    with open_captions(out, header) as kept:
        assert measure_relevance(pair, clips, settings, kept, schemes=schemes) == whole
    with (
        pytest.raises(UsageError, match="gamma was 3, is 4"),
        open_captions(out, header.model_copy(update={"settings": {"gamma": 4}})),
    ):
        pass
    with open_captions(out, header, redo=True) as kept:
        assert kept.stored == ()


def test_a_file_of_other_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="relevance"):
        read_relevance(tmp_path / "relevance.json")
    (tmp_path / "relevance.json").write_text('{"schema": "other"}')
    with pytest.raises(UsageError, match=r"relevance\.json"):
        read_relevance(tmp_path / "relevance.json")


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for model in save_pair(folder, "qwen2_5_vl"):
        never_end(model)
    models = folder / "models.yaml"
    models.write_text(
        "default: tiny\npairs:\n  tiny:\n    target: {folder: target}\n    draft: {folder: draft}\n"
        "    defaults: {frames: 4, gamma: 4, max_new_tokens: 60}\n"
    )
    return models


def test_the_command_writes_its_files(here: Callable[..., Printed], endless: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        for suffix in ("mp4", "json"):
            shutil.copy(CLIPS / f"clip_000{number}.{suffix}", tmp_path)
    out = tmp_path / "out"
    flags = ("--out", out, "--relevance", "attention", "--relevance", "random")

    def run() -> Printed:
        return here("bench-relevance", tmp_path, *flags, environment={"LVSPEC_MODELS": str(endless)})

    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("scheme\tAUC")
    results = read_relevance(out / "relevance.json")
    assert (results.clips, results.pair, results.gamma) == (2, "tiny", 4)
    assert results.facts > 0
    assert results.fillers > results.facts
    areas = [each.auc for each in results.schemes]
    assert areas == sorted(areas, reverse=True)
    assert {each.relevance.value for each in results.schemes} == {"attention", "random"}
    assert json.loads((out / "relevance.json").read_text())["schema"] == "lvspec.relevance.1"
    page = (out / "report.html").read_text()
    assert "attention, layer" in page
    assert "fact tokens found" in page
    kept = (out / CAPTIONS_NAME).read_bytes()
    (tmp_path / "clip_0003.mp4").write_text("no video")
    shutil.copy(CLIPS / "clip_0003.json", tmp_path)
    more = run()
    assert more.returncode == 1
    assert "not measured: clip_0003.mp4: " in more.stderr
    assert (out / CAPTIONS_NAME).read_bytes() == kept
    again = read_relevance(out / "relevance.json")
    assert list(again.unread) == ["clip_0003.mp4"]
    assert again.schemes == results.schemes


def test_clips_without_facts_are_refused(
    here: Callable[..., Printed], endless: Path, video_file: Path, tmp_path: Path
) -> None:
    done = here(
        "bench-relevance", video_file, "--out", tmp_path / "out", environment={"LVSPEC_MODELS": str(endless)}
    )
    assert done.returncode == 4
    assert "no clip has the facts" in done.stderr
