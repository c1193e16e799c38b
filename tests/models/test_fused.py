"""Decoder layers in few kernels: their twins against transformers' layers, and the kernels against the twins.

The kernels run in Triton's interpreter. What a GPU would run is compiled here, and not run.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from transformers.activations import GELUActivation

from lvspec_cli.models.attention import register
from lvspec_cli.models.families import FAMILIES
from lvspec_cli.models.kernels.fused import MOST_ROWS, Twins, fuse_layers, triton_operations
from lvspec_cli.models.load import fused_layers
from lvspec_cli.types import Quantisation
from tests.tiny_families import TINY, TinyShape


def layers_of(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """Decoder layers whose weights, also those of norms and biases, are random."""
    tiny = TINY[family]
    config = tiny.config(tiny.tokenizer(), TinyShape(layers=2))
    config.get_text_config()._attn_implementation = register()
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    layers = FAMILIES[model.config.model_type].layers(model)
    torch.manual_seed(0)
    for weight in layers.parameters():
        nn.init.normal_(weight, std=0.3)
    return layers


@pytest.mark.parametrize("family", [*TINY])
def test_layers_of_every_family_are_what_they_were_or_stay(family: str) -> None:
    layers = layers_of(family, torch.bfloat16 if family == "qwen3_vl" else torch.float32)
    before = {name: weight.clone() for name, weight in layers.state_dict().items()}
    made = fuse_layers(layers, Twins())
    assert (made is None) == family.startswith("qwen3_5"), "which has states and gates"
    after = layers.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    if made is not None:
        assert len(made.layers) == 2
        attention, mlp = layers[1].self_attn, layers[1].mlp
        joined = ((attention.q_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj))
        for first, last in joined:
            assert first.weight.untyped_storage().data_ptr() == last.weight.untyped_storage().data_ptr()
        assert (made.layers[0].projection.bias is not None) == (attention.q_proj.bias is not None)
        assert (made.layers[0].head_norms is not None) == hasattr(attention, "q_norm")
        size = attention.head_dim
        assert made.takes(torch.empty(1, MOST_ROWS, size))
        assert not made.takes(torch.empty(1, MOST_ROWS + 1, size))
        assert not made.takes(torch.empty(1, 1, size // 2)), "a part of each head is rotated"


class Quantised(nn.Linear):
    """Weights that cannot be joined."""


class Louder(Twins):
    """Kernels that compute something else."""

    def gated(self, both: Tensor) -> Tensor:
        return 1.2 * super().gated(both)


def test_a_layer_that_is_not_reproduced_keeps_all_of_them_plain() -> None:
    assert fuse_layers(layers_of("smolvlm"), Louder()) is None
    other = layers_of("smolvlm")
    other[1].mlp.act_fn = GELUActivation()
    assert fuse_layers(other, Twins()) is None
    packed = layers_of("smolvlm")
    packed[1].mlp.up_proj.__class__ = Quantised
    assert fuse_layers(packed, Twins()) is None
    biased = layers_of("smolvlm")
    biased[0].mlp.up_proj.bias = nn.Parameter(torch.ones(128))
    assert fuse_layers(biased, Twins()) is None


def test_where_layers_are_made_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, asked = torch.device("cuda:0"), []
    assert triton_operations(torch.device("cpu"), torch.bfloat16) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert triton_operations(gpu, torch.float16) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert triton_operations(gpu, torch.float32) is None

    def told(device: torch.device, dtype: torch.dtype) -> Twins:
        asked.append((device, dtype))
        return Twins()

    monkeypatch.setattr("lvspec_cli.models.load.triton_operations", told)
    for quantisation in Quantisation:
        made = fused_layers(layers_of("smolvlm"), gpu, quantisation, torch.bfloat16)
        assert (made is not None) == (quantisation in (Quantisation.NONE, Quantisation.BF16))
    assert asked == [(gpu, torch.bfloat16)] * 2


def test_the_kernels_compile_for_a_gpu() -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lvspec_cli.models.kernels import fused_kernels as kernels

    floats = dict.fromkeys(("parts", "maxima", "sums"), "*fp32") | {"slots": "*i64"}
    floats |= dict.fromkeys(("epsilon", "scaling"), "fp32")
    numbers = dict.fromkeys(
        ("width", "rows", "heads", "key_heads", "capacity", "size", "packed", "stretches"), "i32"
    )
    for kernel, constants in (
        (kernels.add_norm_kernel, {"ADD": True, "WIDTH": 2048}),
        (kernels.rotate_kernel, {"NORM": True, "HALF": 64}),
        (kernels.attend_kernel, {"SIZE": 128}),
        (kernels.combine_kernel, {"SIZE": 128, "STRETCHES": 64}),
        (kernels.gated_kernel, {"WIDTH": kernels.COLUMNS}),
    ):
        kinds = floats | numbers | dict.fromkeys(constants, "constexpr")
        signature = {name: kinds.get(name, "*bf16") for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["cubin"]
