"""Decoder layers in few kernels on a GPU: the kernels against their twins, and who runs by them."""

from __future__ import annotations

from pathlib import Path

import pytest

import lvspec_cli
from lvspec_cli.models.load import load_model
from lvspec_cli.types import Quantisation
from tests.gpu.conftest import DEVICE, NEEDS_GPU

pytestmark = NEEDS_GPU

BUNDLED = Path(lvspec_cli.__file__).parent / "demo" / "pair" / "target"


def test_kernels_are_their_twins() -> None:
    pytest.importorskip("triton")
    from tests.models.fused_checks import SHAPES, check_kernels

    for shape in (*SHAPES, (40, 8, 128, 17, 200), (16, 2, 128, 33, 340)):
        check_kernels(*shape, device=DEVICE)


def test_models_in_16_bits_run_by_them() -> None:
    assert load_model(BUNDLED, device=DEVICE, dtype="bfloat16").fused is not None
    assert load_model(BUNDLED, device=DEVICE, dtype="float32").fused is None
    packed = load_model(BUNDLED, device=DEVICE, dtype="bfloat16", quantisation=Quantisation.NF4)
    assert packed.fused is None
