"""Decoder layers in few kernels on a GPU: the kernels against their twins, and who runs by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lvspec_cli
from lvspec_cli.models.kernels.fp8 import CLIP_ROWS, Packed8
from lvspec_cli.models.kernels.fused import MOST_JOINED, captured_passes, packed_product
from lvspec_cli.models.kernels.int4 import Packed4
from lvspec_cli.models.load import load_model
from lvspec_cli.types import Quantisation
from tests.gpu.conftest import DEVICE, NEEDS_GPU

pytestmark = NEEDS_GPU

BUNDLED = Path(lvspec_cli.__file__).parent / "demo" / "pair" / "target"


def test_kernels_are_their_twins() -> None:
    pytest.importorskip("triton")
    from tests.models.fused_checks import (
        JOINED,
        PACKED,
        PRODUCTS,
        SHAPES,
        check_joined,
        check_kernels,
        check_layer,
        check_packed,
        check_products,
    )

    for shape in (*SHAPES, (40, 8, 128, 17, 200), (16, 2, 128, 33, 340)):
        check_kernels(*shape, device=DEVICE)
    for heads, key_heads, size in (*JOINED, (28, 4, 128), (40, 8, 128)):
        check_joined(heads, key_heads, size, DEVICE)
    for outputs, inputs, biased in (
        *PRODUCTS,
        (7168, 5120, True),
        (5120, 27648, False),
        (22016, 2048, False),
    ):
        check_products(outputs, inputs, biased, DEVICE, most=33)
    for outputs, inputs, biased in (*PACKED, (2560, 2048, True), (2048, 11008, False)):
        check_packed(Packed4, outputs, inputs, biased, DEVICE, most=33)
    for outputs, inputs, biased in (*PACKED, (7168, 5120, True), (5120, 27648, False)):
        check_packed(Packed8, outputs, inputs, biased, DEVICE, most=33)
    check_layer(DEVICE)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our products are taken, however long they take: of so small models that is chance."""
    monkeypatch.setattr("lvspec_cli.models.kernels.fused._is_fast_enough", lambda *_: True)


@pytest.mark.usefixtures("taken")
def test_models_in_16_bits_run_by_them() -> None:
    made = load_model(BUNDLED, device=DEVICE, dtype="bfloat16").fused
    assert made is not None
    assert made.rows_stand_alone
    assert made.joins == MOST_JOINED
    assert load_model(BUNDLED, device=DEVICE, dtype="float32").fused is None
    packed = load_model(BUNDLED, device=DEVICE, dtype="bfloat16", quantisation=Quantisation.NF4)
    assert packed.fused is None
    for quantisation in (Quantisation.INT4, Quantisation.FP8):
        ours = load_model(BUNDLED, device=DEVICE, dtype="bfloat16", quantisation=quantisation).fused
        assert ours is not None
        assert ours.rows_stand_alone
        assert ours.joins >= 65, "more are multiplied unpacked"


@pytest.mark.parametrize("quantisation", [Quantisation.NONE, Quantisation.INT4, Quantisation.FP8])
def test_kernels_that_are_launched_early_give_the_same(quantisation: Quantisation) -> None:
    loaded = load_model(BUNDLED, device=DEVICE, dtype="bfloat16", quantisation=quantisation)
    made, layers = loaded.fused, loaded.family.layers(loaded.model)
    assert made is not None
    early = made.operations.early(loaded.device)
    if early is None:
        pytest.skip("from compute capability 9.0 on")
    expected, _ = captured_passes(made, layers)
    for _ in range(5):
        found, _ = captured_passes(replace(made, operations=early), layers)
        assert all(map(torch.equal, expected, found))


def test_inputs_of_clips_are_rounded_on_a_gpu_of_capability_9() -> None:
    """Elsewhere torch may lack the product, and one matrix at a time is unpacked."""
    kernels = pytest.importorskip("lvspec_cli.models.kernels.fp8_kernels")
    device = torch.device(DEVICE)
    if DEVICE == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0):
        assert packed_product(Packed8, device, torch.bfloat16) is kernels.multiply_clips


def test_products_of_many_rounded_inputs_are_near_those_of_their_twins() -> None:
    """The longest sums of a 32B, which the device takes in less than float32."""
    pytest.importorskip("triton")
    from tests.models.fused_checks import check_rounding

    check_rounding(CLIP_ROWS, 27648, DEVICE)
