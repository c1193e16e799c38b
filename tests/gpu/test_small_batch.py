"""Few rows by weights in nf4, with the kernels that the GPU runs."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from lvspec_cli.models.kernels.nf4 import ROWS, Packed
from lvspec_cli.models.kernels.small_batch import SmallBatch4bit, is_usable, multiply
from lvspec_cli.models.load import ModelRequest, load_model
from lvspec_cli.models.quantise import width_limit_of
from lvspec_cli.types import Quantisation
from tests.gpu.conftest import DEVICE, NEEDS_GPU
from tests.gpu.test_precision import BUNDLED

pytestmark = [
    *NEEDS_GPU,
    pytest.mark.skipif(
        torch.cuda.is_available() and not is_usable(torch.device(DEVICE)), reason="this card is not of those"
    ),
]
SHAPES = [(5120, 5120), (1024, 5120), (5120, 27648), (11008, 2048), (96, 192), (130, 4096)]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@torch.inference_mode()
def test_products(shape: tuple[int, int], kind: torch.dtype) -> None:
    """Those of the unpacked weights, and a row's do not change with the rows beside it."""
    outputs, inputs = shape
    torch.manual_seed(outputs)
    whole = torch.randn(outputs, inputs, device=DEVICE, dtype=kind) / 50
    packed, state = quantize_4bit(whole, blocksize=64, quant_type="nf4", compress_statistics=True)
    matrix = Packed.of(packed, state)
    assert matrix is not None
    values = torch.randn(ROWS, inputs, device=DEVICE, dtype=kind)
    bias = torch.randn(outputs, device=DEVICE, dtype=kind)
    exact = values.double() @ dequantize_4bit(packed, state).double().T + bias.double()
    alone = torch.cat([multiply(row[None], matrix, bias) for row in values])
    for rows in (1, 2, 3, 5, 9, 13, 16, 17, 25, 33, 65, ROWS):
        found = multiply(values[:rows], matrix, bias)
        off = (found.double() - exact[:rows]).norm() / exact[:rows].norm()
        assert off < (5e-3 if kind is torch.bfloat16 else 1e-3)
        assert torch.equal(found, alone[:rows]), rows


def test_a_model_in_nf4_has_them() -> None:
    loaded = load_model(
        ModelRequest(BUNDLED / "target", device=DEVICE, dtype="bfloat16", quantisation=Quantisation.NF4)
    )
    layers = loaded.family.layers(loaded.model)
    assert sum(type(part) is SmallBatch4bit for part in layers.modules()) == 7 * len(layers)
    assert width_limit_of(torch.device(DEVICE)) is None
