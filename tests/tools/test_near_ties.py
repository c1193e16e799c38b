"""What rounding does to logits, as tools.near_ties has it."""

from __future__ import annotations

import pytest
import torch

from lvspec_cli.models.load import load_pair
from lvspec_cli.speculation.verify import ROUNDING
from tools.near_ties import ALONE, BESIDE, VERIFIED, Moved, greatest_of, near_share
from tools.train_demo.evaluate import PAIR_FOLDER


def test_distances_are_compared_in_units_of_the_greater_logit() -> None:
    before = torch.tensor([[20.0, 19.0], [0.5, 0.25], [-8.0, -8.5]])
    after = torch.tensor([[20.0, 19.5], [0.5, 0.25], [-8.0, -9.0]])
    found = Moved.of(before, after)
    assert (found.positions, found.most) == (3, 0.5 / 8)
    assert found.mean == pytest.approx((0.5 / 20 + 0.5 / 8) / 3)
    assert found.one_in_1000 == pytest.approx(0.5 / 20)


def test_a_share_of_positions_is_near() -> None:
    far, near = 3 * ROUNDING, 0.5 * ROUNDING
    greatest = torch.tensor([[1.0, 1.0 - far], [1.0, 1.0 - near], [1.0, 0.0], [0.1, 0.1]])
    assert near_share(greatest) == 0.5


def test_ways_of_reading_differ_by_rounding_alone() -> None:
    pair = load_pair(PAIR_FOLDER / "target", None, device="cpu", dtype="float32")
    clips = sorted((PAIR_FOLDER.parent / "clips").glob("*.mp4"))[:2]
    found = greatest_of(pair, clips)
    assert set(found) == {ALONE, VERIFIED, BESIDE}
    assert (found[ALONE][:, 0] >= found[ALONE][:, 1]).all()
    for way in (VERIFIED, BESIDE):
        moved = Moved.of(found[ALONE], found[way])
        assert moved.positions > 100
        assert 0 < moved.mean < ROUNDING / 3
        assert moved.most < 10 * ROUNDING
