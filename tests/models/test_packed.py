"""Weights in formats of our own, in 4 bits and in fp8: what they stand for, and models loaded with them.

``fused_checks`` has the kernels, which ``test_small_batch`` runs in Triton's interpreter.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lvspec_cli.errors import PairError
from lvspec_cli.memory.plan import matrix_bytes
from lvspec_cli.memory.resolve import MOST_SLOTS
from lvspec_cli.models.decoder import QUESTION_ROWS
from lvspec_cli.models.kernels import fused
from lvspec_cli.models.kernels.fp8 import CLIP_ROWS, CODE, GREATEST, Packed8, by_rounding, is_right_over_clips
from lvspec_cli.models.kernels.fused import packed_product
from lvspec_cli.models.kernels.int4 import BLOCK, GROUP, Packed4
from lvspec_cli.models.kernels.packed import (
    Packed,
    PackedLinear,
    by_unpacking,
    is_right,
    pack_linear_layers,
)
from lvspec_cli.models.kernels.products import INPUTS, OUTPUTS
from lvspec_cli.models.load import LoadedModel, LoadedPair, ModelRequest, load_model, load_models
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.models.steps import WIDTHS
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import DecodeSettings, Mode, Quantisation
from tests.models.compiled import compiled, waits_first
from tests.models.generated import generated
from tests.packed_files import is_in_blocks
from tests.speculation.conftest import decode
from tests.tiny_families import TinyShape
from tests.tiny_models import make_clip, save_model

KINDS = {Packed4: Quantisation.INT4, Packed8: Quantisation.FP8}
CPU = torch.device("cpu")

of_both = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(KINDS[kind]))


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


FINITE = torch.arange(256, dtype=torch.uint8).view(CODE).float()
FINITE = FINITE[FINITE.isfinite()]


@given(codes=st.lists(st.sampled_from(FINITE.tolist()), min_size=16), exponent=st.integers(-130, 100))
def test_what_fp8_can_say_is_kept_to_the_bit(codes: list[float], exponent: int) -> None:
    """Whatever the power of two it is multiplied by, and unpacked in bfloat16, too."""
    row = torch.tensor(codes)
    row[0] = GREATEST  # so that nothing is below the least code
    rows = row[None] * 2.0**exponent
    packed = Packed8.of(rows)
    assert (packed.codes.dtype, packed.scales.dtype) == (CODE, torch.float32)
    assert float(packed.scales[0]) == 2.0 ** max(exponent, -126)
    if exponent >= -117:  # nothing is below the least normal number
        for dtype in (torch.float32, torch.bfloat16):
            assert torch.equal(packed.unpacked(dtype).float(), rows)


@given(
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=8),
    st.integers(-40, 0).map(lambda exponent: 2.0**exponent),
)
def test_other_numbers_are_off_by_half_a_step_of_fp8(numbers: list[float], factor: float) -> None:
    """Of three digits behind the first, that is a sixteenth; below the least normal code steps are even."""
    rows = torch.tensor([numbers]) * factor
    packed = Packed8.of(rows)
    scale, greatest = float(packed.scales[0]), float(rows.abs().max())
    assert packed.codes.float().isfinite().all()
    assert scale == 2.0**-126 or GREATEST / 2 * scale < greatest <= GREATEST * scale
    off = (packed.unpacked(torch.float64) - rows.double()).abs()
    assert (off <= torch.clamp_min(rows.double().abs() / 16, scale * 2.0**-10)).all()


def test_what_has_no_code_is_refused() -> None:
    rows = torch.zeros(2, 16)
    assert torch.equal(Packed8.of(rows).unpacked(torch.float32), rows)
    for number in (torch.inf, -torch.inf, torch.nan):
        rows[1, 3] = number
        with pytest.raises(ValueError, match="infinite or not a number"):
            Packed8.of(rows)


class Wrong(nn.Linear):
    """Another kind of layer."""


@of_both
def test_linear_layers_are_packed_where_they_can_be(kind: type[Packed]) -> None:
    blocks = nn.ModuleDict(
        {"one": nn.Linear(BLOCK, 24), "odd": nn.Linear(GROUP + 8, 24), "other": Wrong(GROUP, 24)}
    )
    bias = blocks["one"].bias
    assert pack_linear_layers(blocks, None, kind, by_unpacking) == 1
    assert [type(part) for part in blocks.values()] == [PackedLinear, nn.Linear, Wrong]
    inputs, packed = torch.randn(2, 3, BLOCK), blocks["one"]
    assert isinstance(packed, PackedLinear)
    assert isinstance(packed.matrix, kind)
    assert isinstance(bias, Tensor)
    expected = nn.functional.linear(inputs, packed.matrix.unpacked(torch.float32), bias)
    assert torch.equal(packed(inputs), expected)
    stored = sum(part.nbytes for name, part in packed.named_parameters() if name != "bias")
    scales = 4 * 24 if kind is Packed8 else 0  # of rows, which are not planned
    planned = {matrix_bytes(KINDS[kind], element) * BLOCK * 24 for element in (2, 4)}
    assert planned == {stored - scales}


@of_both
def test_kernels_that_are_wrong_or_do_not_compile_are_left_out(
    kind: type[Packed], monkeypatch: pytest.MonkeyPatch
) -> None:
    def louder(inputs: Tensor, matrix: Packed, bias: Tensor | None) -> Tensor:
        return 1.1 * by_unpacking(inputs, matrix, bias)

    assert is_right(by_unpacking, kind, CPU, torch.bfloat16)
    assert not is_right(louder, kind, CPU, torch.bfloat16)
    assert packed_product(kind, CPU, torch.bfloat16) is by_unpacking
    # Without a GPU there is nothing to compile for.
    pytest.importorskip("triton")
    monkeypatch.setattr(fused, "can_compile", lambda *_: True)
    assert packed_product(kind, CPU, torch.bfloat16) is by_unpacking


def test_inputs_of_clips_are_rounded_where_that_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from lvspec_cli.models.kernels import fp8_kernels, fused_kernels

    assert is_right_over_clips(by_rounding, CPU, torch.bfloat16)
    monkeypatch.setattr(fused, "can_compile", lambda *_: True)
    monkeypatch.setattr(fused_kernels, "PRODUCTS", {Packed8: by_unpacking})
    for clips, expected in (
        (by_rounding, by_rounding),
        (louder_by_rounding, by_unpacking),
        (None, by_unpacking),
    ):
        monkeypatch.setattr(fp8_kernels, "multiply_clips", clips)  # None raises, as what a device lacks does
        assert packed_product(Packed8, CPU, torch.bfloat16) is expected


def louder_by_rounding(inputs: Tensor, matrix: Packed8, bias: Tensor | None) -> Tensor:
    return 1.1 * by_rounding(inputs, matrix, bias)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("plain"), "qwen2_5_vl", shape=TinyShape(width=2 * GROUP))


def loaded_in(plain: Path, kind: type[Packed]) -> LoadedPair:
    request = ModelRequest(plain, device="cpu", quantisation=KINDS[kind])
    return load_models(request, request)


QUESTION = "Describe the video."
SETTINGS = DecodeSettings(mode=Mode.EXACT, gamma=4, max_new_tokens=16, repetition_guard=False)


@of_both
def test_models_are_loaded_in_it(plain: Path, kind: type[Packed]) -> None:
    pair = loaded_in(plain, kind)
    target = pair.target
    layers = target.family.layers(target.model)
    assert sum(type(part) is PackedLinear for part in layers.modules()) == 7 * len(layers)
    assert all(type(part) is not PackedLinear for part in target.model.get_output_embeddings().modules())
    assert (target.quantisation, target.full_precision) == (KINDS[kind], True)
    clip = make_clip(4, size=84)
    prompts, expected = build_prompts(pair, clip, QUESTION), generated(target, clip, QUESTION, 16)
    for mode in (Mode.AR, Mode.EXACT):
        found, rounds = decode(pair, prompts, replace(SETTINGS, mode=mode))
        assert list(found.tokens) == expected
    assert len(rounds) < 16


def test_the_question_is_not_read_in_8_bits_with_the_clip(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether another question follows changes nothing of what exact mode repeats. Only clips have so many
    rows: no question, and no verifications of all answers that may be decoded together."""
    assert max(QUESTION_ROWS, MOST_SLOTS * WIDTHS[-1]) < CLIP_ROWS
    pair = loaded_in(plain, Packed8)
    prompts = build_prompts(pair, make_clip(4, size=84), QUESTION)

    def rows_of_passes() -> list[int]:
        rows: list[int] = []
        layer: Any = pair.target.family.layers(pair.target.model)[0]
        with layer.register_forward_pre_hook(lambda _, values: rows.append(values[0].shape[1])):
            Session.of(pair).encode(prompts, replace(SETTINGS, mode=Mode.AR), is_last=True)
        return rows

    assert rows_of_passes() == [prompts.target.length]  # on a CPU nothing is rounded
    monkeypatch.setattr(LoadedModel, "reads_in_8_bits", True)
    assert rows_of_passes() == [prompts.target.prefix_length]


def test_a_model_with_a_weight_that_has_no_code_is_refused(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "broken"))
    weights = load_file(folder / "model.safetensors")
    next(weight for name, weight in weights.items() if is_in_blocks(name))[0, 0] = torch.inf
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PairError, match="cannot be loaded: a weight is infinite or not a number"):
        load_model(ModelRequest(folder, device="cpu", quantisation=Quantisation.FP8))


def test_the_kernels_compile_for_a_gpu() -> None:
    pytest.importorskip("triton")
    from lvspec_cli.models.kernels import fp8_kernels, int4_kernels, product_kernels

    tile = {"WHOLE": True, "BIAS": True, "OUTPUTS": OUTPUTS, "EARLY": True}
    numbers = dict.fromkeys(("rows", "outputs", "width", "steps"), "i32")
    compiled(int4_kernels.unpack_kernel, {"words": "*i32", **numbers}, {"WIDTH": int4_kernels.COLUMNS})
    in_four_bits = compiled(
        int4_kernels.packed_product_kernel,
        {"words": "*i32", **numbers},
        {**tile, "PLAIN": 0x4300, "OFFSET": 136},
    )
    codes = {"codes": "*fp8e4nv", "scales": "*fp32", **numbers}
    compiled(fp8_kernels.unpack_kernel, codes, {"WIDTH": fp8_kernels.COLUMNS})
    rounding = compiled(fp8_kernels.round_kernel, {**codes, "rows": "*bf16"}, {"WIDTH": 8192})
    assert re.search(r"cvt\.rn\.satfinite\.e4m3x2\.f32", rounding)
    tile |= {"INPUTS": INPUTS}
    plain = compiled(product_kernels.product_kernel, codes, {**tile, "SCALED": False})
    in_fp8 = compiled(
        product_kernels.product_kernel, {**codes, "weight": "*fp8e4nv"}, {**tile, "SCALED": True}
    )
    for assembly in (plain, in_four_bits, in_fp8):
        assert re.search(r"(mma|wgmma)\S*m\d+n\d+k16\S*bf16", assembly)
        assert waits_first(assembly)
    for assembly in (plain, in_fp8):  # weights are read 16 bytes at a time
        assert re.search(r"ld\.global\S*\.v4|cp\.async\.cg.*, 0x10", assembly)
    # Codes become numbers in registers, without a slow conversion or a way through shared memory.
    assert not re.search(r"cvt\.rn\.bf16\.s32|st\.shared\S*b16", in_four_bits)
    assert re.search(r"cvt\.rn\.f16x2\.e4m3x2", in_fp8)
    assert "cvt.bf16.f16" not in in_fp8  # which runs at a quarter of the rate
    assert not re.search(r"st\.shared\S*b16", in_fp8)
