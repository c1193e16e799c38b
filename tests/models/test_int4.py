"""Weights in 4 bits of our own: what they stand for, and models that are loaded with them.

``fused_checks`` has the kernels, which ``test_small_batch`` runs in Triton's interpreter.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lvspec_cli.memory.plan import matrix_bytes
from lvspec_cli.models.kernels import fused
from lvspec_cli.models.kernels.fused import int4_product
from lvspec_cli.models.kernels.int4 import (
    BLOCK,
    GROUP,
    Int4Linear,
    Packed4,
    by_unpacking,
    is_right,
    pack_linear_layers,
)
from lvspec_cli.models.kernels.products import OUTPUTS
from lvspec_cli.models.load import ModelRequest, load_models
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.types import DecodeSettings, Mode, Quantisation
from tests.models.generated import generated
from tests.speculation.conftest import decode
from tests.tiny_families import TinyShape
from tests.tiny_models import make_clip, save_model

INT4 = Quantisation.INT4


@given(
    codes=st.lists(st.integers(-8, 7), min_size=GROUP - 1, max_size=GROUP - 1), exponent=st.integers(-20, 4)
)
def test_even_steps_are_kept_to_the_bit(codes: list[int], exponent: int) -> None:
    rows = torch.tensor([[-8, *codes], [8, *(-code for code in codes)]]) * 2.0**exponent
    packed = Packed4.of(rows)
    assert torch.equal(packed.unpacked(torch.float32), rows)
    assert (packed.words.dtype, packed.scales.dtype) == (torch.int32, torch.bfloat16)


def test_other_values_are_near() -> None:
    weight = torch.randn(96, 3 * GROUP, generator=torch.Generator().manual_seed(1))
    weight[5] = 0
    found = Packed4.of(weight).unpacked(torch.float32)
    assert torch.equal(found[5], weight[5])
    assert float((found - weight).norm() / weight.norm()) < 0.1
    # No more than rounding to sixteen even steps up to the extreme takes.
    groups = weight.unflatten(1, (-1, GROUP))
    step = groups.abs().amax(2, keepdim=True) / 8
    plain = (groups / step.clamp_min(1e-9)).round().clamp(-8, 7) * step
    assert (found - weight).norm() < (plain.flatten(1) - weight).norm()


class Wrong(nn.Linear):
    """Another kind of layer."""


def test_linear_layers_are_packed_where_they_can_be() -> None:
    blocks = nn.ModuleDict(
        {"one": nn.Linear(BLOCK, 24), "odd": nn.Linear(GROUP + 8, 24), "other": Wrong(GROUP, 24)}
    )
    bias = blocks["one"].bias
    assert pack_linear_layers(blocks, None, by_unpacking) == 1
    assert [type(part) for part in blocks.values()] == [Int4Linear, nn.Linear, Wrong]
    inputs, packed = torch.randn(2, 3, BLOCK), blocks["one"]
    assert isinstance(packed, Int4Linear)
    assert isinstance(bias, Tensor)
    expected = nn.functional.linear(inputs, packed.matrix.unpacked(torch.float32), bias)
    assert torch.equal(packed(inputs), expected)
    stored = sum(part.nbytes for name, part in packed.named_parameters() if name != "bias")
    assert stored == matrix_bytes(INT4, 4) * BLOCK * 24 == matrix_bytes(INT4, 2) * BLOCK * 24


def test_kernels_that_are_wrong_or_do_not_compile_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")

    def louder(inputs: Tensor, matrix: Packed4, bias: Tensor | None) -> Tensor:
        return 1.1 * by_unpacking(inputs, matrix, bias)

    assert is_right(by_unpacking, cpu, torch.bfloat16)
    assert not is_right(louder, cpu, torch.bfloat16)
    assert int4_product(cpu, torch.bfloat16) is by_unpacking
    # Without a GPU there is nothing to compile for.
    pytest.importorskip("triton")
    monkeypatch.setattr(fused, "can_compile", lambda *_: True)
    assert int4_product(cpu, torch.bfloat16) is by_unpacking


def test_models_are_loaded_in_it(tmp_path: Path) -> None:
    plain = save_model(tmp_path, "qwen2_5_vl", shape=TinyShape(width=2 * GROUP))
    pair = load_models(
        ModelRequest(plain, device="cpu", quantisation=INT4),
        ModelRequest(plain, device="cpu", quantisation=INT4),
    )
    target = pair.target
    layers = target.family.layers(target.model)
    assert sum(type(part) is Int4Linear for part in layers.modules()) == 7 * len(layers)
    assert all(type(part) is not Int4Linear for part in target.model.get_output_embeddings().modules())
    assert (target.quantisation, target.full_precision) == (INT4, True)
    clip, question = make_clip(4, size=84), "Describe the video."
    wanted = DecodeSettings(mode=Mode.EXACT, gamma=4, max_new_tokens=16, repetition_guard=False)
    prompts, expected = build_prompts(pair, clip, question), generated(target, clip, question, 16)
    for mode in (Mode.AR, Mode.EXACT):
        found, rounds = decode(pair, prompts, replace(wanted, mode=mode))
        assert list(found.tokens) == expected
    assert len(rounds) < 16


def test_the_kernels_compile_for_a_gpu() -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lvspec_cli.models.kernels import int4_kernels as kernels

    numbers = dict.fromkeys(("rows", "outputs", "width", "steps"), "i32")
    for kernel, constants in (
        (
            kernels.packed_product_kernel,
            {"WHOLE": True, "BIAS": True, "OUTPUTS": OUTPUTS, "PLAIN": 0x4300, "OFFSET": 136},
        ),
        (kernels.unpack_kernel, {"WIDTH": kernels.COLUMNS}),
    ):
        kinds = {"words": "*i32"} | numbers | dict.fromkeys(constants, "constexpr")
        signature = {name: kinds.get(name, "*bf16") for name in kernel.arg_names}
        even = {
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(kernel.arg_names)
            if signature[name].startswith("*") or name == "width"
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=even)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
        assert made.asm["cubin"]
        if kernel is kernels.packed_product_kernel:
            assert re.search(r"(mma|wgmma)\S*m\d+n\d+k16\S*bf16", made.asm["ptx"])
            # Codes become numbers in registers, without a conversion or a way through shared memory.
            assert not re.search(r"cvt\.rn\.bf16\.s32|st\.shared\S*b16", made.asm["ptx"])
