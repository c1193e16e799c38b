"""What a pair's own captions say about its rule."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.bench.pair_calibration import (
    CaptionEvidence,
    calibration_of,
    caption_evidence,
    mismatch,
    two_classes,
)
from lvspec_cli.errors import NoInputError
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.models.probe import video_attention
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.pairs.calibration import (
    PairCalibration,
    calibrated,
    calibration_file,
    read_calibration,
)
from lvspec_cli.pairs.registry import load_registry
from lvspec_cli.types import DecodeSettings, Mode, RelevanceName, Round, RuleSettings
from tests.conftest import Printed
from tests.speculation.conftest import decode
from tests.tiny_models import make_clip, save_pair

FREQUENT, RARE = 20, 50_000
GAPS = tuple(at / 10 for at in range(101))  # 0 to 10 nats


def caption(**changes: object) -> CaptionEvidence:
    """Three frequent tokens and a rare one; layer 1 looks at the video for the rare one, layer 2 does not."""
    attention = {1: (0.1, 0.1, 0.1, 0.3), 2: (0.4, 0.1, 0.4, 0.1), 3: (0.5, 0.5, 0.1, 0.4)}
    values = {"ids": (FREQUENT, FREQUENT, FREQUENT, RARE), "gaps": GAPS, "attention": attention, **changes}
    return CaptionEvidence(**values)  # type: ignore[arg-type]


def test_the_layer_that_sees_rare_tokens_is_chosen() -> None:
    found = calibration_of([caption(), caption()], 150_000)
    assert (found.captions, found.tokens, found.mismatches) == (2, 8, 202)
    assert (found.layer, found.layer_auc) == (1, 1.0)
    assert found.relaxed == 0.75
    assert found.gaps == pytest.approx([at / 2 for at in range(21)])
    assert found.attention_scale == pytest.approx(0.3)
    assert found.thresholds[RelevanceName.RANK] == pytest.approx(math.log(RARE + 1) / math.log(150_000))
    assert 0.1 <= found.thresholds[RelevanceName.ATTENTION] <= 0.3
    assert 0.3 < found.thresholds[RelevanceName.RANK_ATTENTION] < 1


def test_without_layers_that_attend_rank_is_left() -> None:
    found = calibration_of([caption(attention={}), caption()], 150_000)
    assert (found.layer, found.layer_auc, set(found.thresholds)) == (None, None, {RelevanceName.RANK})


def test_a_caption_of_one_token_takes_no_layer_away() -> None:
    empty = caption(ids=(), gaps=(), attention={})
    found, without = calibration_of([caption(), empty], 150_000), calibration_of([caption()], 150_000)
    assert (found.captions, found.layer, found.thresholds) == (2, 1, without.thresholds)


def test_few_mismatches_are_too_few() -> None:
    with pytest.raises(NoInputError, match="49 mismatches"):
        calibration_of([caption(gaps=GAPS[:49])], 150_000)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_two_classes_have_the_least_variance(values: list[float]) -> None:
    def within(border: float) -> float:
        classes = [[v for v in values if v < border], [v for v in values if v >= border]]
        return sum(float(np.var(part)) * len(part) for part in classes if part)

    border = two_classes(np.array(values))
    assert border in values
    assert within(border) == pytest.approx(min(map(within, values)), abs=1e-9)


@pytest.mark.parametrize(
    ("drafted", "target", "expected"), [((1, 2), (1, 3, 4), 0.7), ((1, 2), (1, 2, 3), None), ((), (1,), None)]
)
def test_the_first_mismatch_of_a_round(
    drafted: tuple[int, ...], target: tuple[int, ...], expected: float | None
) -> None:
    assert mismatch(Round((1,), (), drafted=drafted, target=target, gap=(0.0, 0.7))) == expected


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LoadedPair:
    return load_pair(*save_pair(tmp_path_factory.mktemp("pair"), "qwen2_5_vl"), device="cpu", dtype="float32")


def test_the_evidence_of_a_caption_is_the_targets_own(pair: LoadedPair) -> None:
    settings = DecodeSettings(gamma=4, max_new_tokens=20)
    shown = caption_evidence(pair, make_clip(4), "What moves?", settings)
    prompts = build_prompts(pair, make_clip(4), "What moves?")
    tokens = decode(pair, prompts, DecodeSettings(mode=Mode.AR, max_new_tokens=20))[0].tokens
    assert all(gap > 0 for gap in shown.gaps)
    assert len(shown.ids) == len(tokens) - 1
    layers = pair.target.family.layers(pair.target.model)
    assert set(shown.attention) == set(range(len(layers)))
    assert all(len(shares) == len(shown.ids) for shares in shown.attention.values())
    decoder = Decoder(pair.target)
    with torch.inference_mode():
        decoder.encode(prompts.target)
        decoder.begin(prompts.target, len(tokens))
        passed = decoder.forward(torch.tensor(tokens[:-1]), [1])  # what precedes each token
        shares = video_attention(decoder, passed, 1, len(tokens) - 1).mean(dim=0)
    assert shown.attention[1] == pytest.approx(shares.tolist(), abs=1e-5)
    assert len(set(shown.attention[1])) > 1


MEASURED = PairCalibration(
    target="a@1", draft="b", created="2026-11-29", captions=10, tokens=700, mismatches=160,
    gaps=tuple(float(at) for at in range(21)), relaxed=0.48, layer=25, layer_auc=0.78, attention_scale=0.13,
    thresholds={
        RelevanceName.RANK: 0.62, RelevanceName.ATTENTION: 0.07, RelevanceName.RANK_ATTENTION: 0.6
    },
)  # fmt: skip


@pytest.mark.parametrize(
    ("percentile", "nats"), [(0, 0.0), (50, 10.0), (52.5, 10.5), (99, 19.8), (100, 20.0)]
)
def test_a_margin_is_a_percentile(percentile: float, nats: float) -> None:
    assert MEASURED.margin(percentile) == pytest.approx(nats)


@pytest.mark.parametrize(
    ("relevance", "expected"),
    [
        (RelevanceName.RANK, {"anchor_threshold": 0.62}),
        (RelevanceName.ATTENTION, {"anchor_threshold": 0.07, "layers": (25,), "attention_scale": 0.13}),
        (RelevanceName.RANK_ATTENTION, {"anchor_threshold": 0.6, "layers": (25,), "attention_scale": 0.13}),
        (RelevanceName.PAPER, {"anchor_threshold": 0.48}),
        (RelevanceName.PLAUSIBLE, {}),
    ],
)
def test_a_rule_takes_what_its_relevance_reads(relevance: RelevanceName, expected: dict[str, object]) -> None:
    plain = RuleSettings(relevance=relevance, filler_margin=3.0)
    changed = {name: getattr(calibrated(plain, MEASURED), name) for name in expected}
    assert changed == expected
    assert calibrated(plain, MEASURED).filler_margin == 3.0
    margins = calibrated(plain, MEASURED, filler=60, anchor=5)
    assert (margins.filler_margin, margins.anchor_margin) == (12.0, 1.0)


def test_a_registry_knows_what_was_measured(tmp_path: Path, here: Callable[..., Printed]) -> None:
    models = tmp_path / "models.yaml"
    models.write_text(
        "pairs:\n  p:\n    target: {repo: o/a, revision: '1'}\n    draft: {repo: o/b}\n    rules:\n"
        "      balanced: {relevance: rank, filler_margin: 3}\n"
        "      percentiles: {balanced: {filler: 75}}\n",
        "utf-8",
    )
    environment = {"XDG_STATE_HOME": str(tmp_path)}

    def rule() -> RuleSettings:
        return load_registry(models, environment).pairs["p"].rules.balanced

    assert rule().filler_margin == 3
    path = calibration_file(tmp_path / "lvspec", "p")
    path.parent.mkdir(parents=True)
    ours = MEASURED.model_copy(update={"target": "o/a@1", "draft": "o/b"})
    path.write_text(ours.model_dump_json(by_alias=True), "utf-8")
    assert (rule().filler_margin, rule().anchor_threshold) == (15.0, 0.62)
    shown = here("models", "show", "p", "--models", models, environment=environment).stdout
    assert "calibrated     2026-11-29, on 10 captions" in shown
    # Of other models, of another version, broken: as if nothing had been measured.
    for text in (MEASURED.model_dump_json(by_alias=True), json.dumps({"schema": "2"}), "{"):
        path.write_text(text, "utf-8")
        assert read_calibration(path, "o/a@1", "o/b") is None
        assert rule().filler_margin == 3
    shown = here("models", "show", "p", "--models", models, environment=environment).stdout
    assert "not yet: lvspec tune CLIPS --calibrate" in shown
