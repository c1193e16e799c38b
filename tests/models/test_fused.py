"""Decoder layers in few kernels: their twins against transformers' layers, and the kernels against the twins.

The kernels run in Triton's interpreter. What a GPU would run is compiled here, and not run.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from transformers.activations import GELUActivation

from lvspec_cli.models.attention import register
from lvspec_cli.models.families import FAMILIES
from lvspec_cli.models.joined import StoredTogether
from lvspec_cli.models.kernels import fused as fused_module
from lvspec_cli.models.kernels.fp8 import Packed8
from lvspec_cli.models.kernels.fused import (
    MOST_JOINED,
    MOST_ROWS,
    FusedLayers,
    Operations,
    Twins,
    fuse_layers,
    pays,
    triton_operations,
)
from lvspec_cli.models.kernels.int4 import Packed4
from lvspec_cli.models.kernels.packed import Packed, PackedLinear, by_unpacking, pack_linear_layers
from lvspec_cli.models.kernels.products import INPUTS, OUTPUTS, splits_of
from lvspec_cli.models.load import fused_layers
from lvspec_cli.models.steps import Replay, run_again
from lvspec_cli.types import Quantisation
from tests.models.compiled import compiled, waits_first
from tests.tiny_families import TINY, TinyShape


def model_of(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model whose decoder layers have random weights, also those of norms and biases."""
    tiny = TINY[family]
    config = tiny.config(tiny.tokenizer(), TinyShape(layers=2))
    config.get_text_config()._attn_implementation = register()
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    layers = FAMILIES[model.config.model_type].layers(model)
    torch.manual_seed(0)
    for weight in layers.parameters():
        nn.init.normal_(weight, std=0.3)
    return model


def fused_of(model: Any, *operations: Operations) -> FusedLayers | None:
    family = FAMILIES[model.config.model_type]
    language = family.language(model)
    return fuse_layers(language.layers, language.norm, model.lm_head, operations or [Twins()])


@pytest.mark.parametrize("family", [*TINY])
def test_layers_of_every_family_are_what_they_were_or_stay(family: str) -> None:
    model = model_of(family, torch.bfloat16 if family == "qwen3_vl" else torch.float32)
    layers = FAMILIES[model.config.model_type].layers(model)
    before = {name: weight.clone() for name, weight in layers.state_dict().items()}
    made = fused_of(model)
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


@pytest.mark.parametrize("kind", [Packed4, Packed8])
def test_packed_layers_are_joined_too(kind: type[Packed]) -> None:
    model = model_of("smolvlm")
    layers = model.model.text_model.layers
    assert pack_linear_layers(layers, None, kind, by_unpacking) == 14
    made = fused_of(model)
    assert made is not None
    attention, joined = layers[1].self_attn, made.layers[1].projection.weight
    assert isinstance(joined, kind)
    for name in kind.names():
        parts = [getattr(part, name) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        assert {part.untyped_storage().data_ptr() for part in parts} == {
            getattr(joined, name).untyped_storage().data_ptr()
        }
    assert fused_of(model, Louder()) is None
    other = Packed8 if kind is Packed4 else Packed4
    up = layers[1].mlp.up_proj
    layers[1].mlp.up_proj = PackedLinear(other.of(up.matrix.unpacked(torch.float32)), None, by_unpacking)
    assert fused_of(model) is None


class Quantised(nn.Linear):
    """Weights that cannot be joined."""


class Louder(Twins):
    """Kernels that compute something else."""

    def gated(self, both: Tensor) -> Tensor:
        return 1.2 * super().gated(both)


class Blind(Twins):
    """Kernels that tell another share of attention."""

    def attend(self, *given: Any, watched: bool = False) -> tuple[Tensor, Tensor | None]:
        attended, share = super().attend(*given, watched=watched)
        return attended, None if share is None else 0.9 * share


class Broken(Twins):
    """Kernels that do not compile."""

    def add_norm(self, *_: Any) -> tuple[Tensor, Tensor]:
        raise RuntimeError("ptxas failed")


class OneByOne(Twins):
    """Products in which a row does not depend on the others."""

    def multiply(self, inputs: Tensor, weight: Tensor | Packed, bias: Tensor | None) -> Tensor:
        return torch.cat([super(OneByOne, self).multiply(row[None], weight, bias) for row in inputs])

    def attend(self, queries: Tensor, *stored: Any, watched: bool = False) -> tuple[Tensor, Tensor | None]:
        cache, slots, scaling = stored
        if isinstance(cache, StoredTogether):
            return super().attend(queries, *stored, watched=watched)  # a sequence at a time
        parts = [
            super(OneByOne, self).attend(
                queries[:, row : row + 1], cache, slots[row : row + 1], scaling, watched=True
            )
            for row in range(len(slots))
        ]
        shares = [share for _, share in parts if share is not None]
        return torch.cat([part for part, _ in parts]), torch.cat(shares, dim=1) if watched else None


class Mixing(OneByOne):
    """Nearly: what a row gets depends on how many there are, by less than what rounding may change."""

    def multiply(self, inputs: Tensor, weight: Tensor | Packed, bias: Tensor | None) -> Tensor:
        return super().multiply(inputs, weight, bias) * (1 + 1e-6 * (len(inputs) > 12))


def test_a_layer_that_is_not_reproduced_keeps_all_of_them_plain() -> None:
    assert fused_of(model_of("smolvlm"), Louder()) is None
    assert fused_of(model_of("smolvlm"), Broken()) is None
    assert fused_of(model_of("smolvlm"), Blind()) is None
    other = model_of("smolvlm")
    other.model.text_model.layers[1].mlp.act_fn = GELUActivation()
    assert fused_of(other) is None
    packed = model_of("smolvlm")
    packed.model.text_model.layers[1].mlp.up_proj.__class__ = Quantised
    assert fused_of(packed) is None
    biased = model_of("smolvlm")
    biased.model.text_model.layers[0].mlp.up_proj.bias = nn.Parameter(torch.ones(128))
    assert fused_of(biased) is None
    scaled = model_of("smolvlm")
    scaled.lm_head.register_forward_hook(lambda *values: 2 * values[2])
    assert fused_of(scaled) is None


@pytest.mark.parametrize(("fast", "taken"), [(True, OneByOne), (False, Twins)])
def test_our_products_are_taken_where_rows_stand_alone_and_they_are_not_slow(
    fast: bool, taken: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_module, "_is_fast_enough", lambda *_: fast)
    model, others = model_of("smolvlm"), Twins()
    for first in (Louder(), Broken(), Mixing()):  # wrong, or of rows that depend on each other
        made = fused_of(model, first, others)
        assert made is not None
        assert made.operations is others
    made = fused_of(model, OneByOne(), others)
    assert made is not None
    assert type(made.operations) is taken
    if fast:
        assert made.rows_stand_alone
    assert fused_of(model, OneByOne()).rows_stand_alone  # type: ignore[union-attr]
    assert not fused_of(model, Mixing()).rows_stand_alone  # type: ignore[union-attr]


class Early(OneByOne):
    """Kernels that can be launched early."""

    def __init__(self, early: Operations) -> None:
        self.launched = early

    def early(self, device: torch.device) -> Operations:
        return self.launched


class Racing(OneByOne):
    """Kernels of which one reads, now and then, before the last one has written."""

    passes = 0

    def add_norm(self, hidden: Tensor, added: Tensor | None, *others: Any) -> tuple[Tensor, Tensor]:
        self.passes += added is None
        return super().add_norm(hidden, None if self.passes % 7 == 0 else added, *others)


def test_kernels_are_launched_early_where_that_is_faster_and_gives_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def replayed(replay: Replay) -> float:
        for _ in range(20):
            replay()
        return times.pop(0)

    monkeypatch.setattr(fused_module, "cuda_graphs", lambda _: run_again)
    monkeypatch.setattr(fused_module, "_milliseconds", replayed)
    model = model_of("smolvlm")
    for early, after, is_taken in (
        (OneByOne(), 0.9, True),
        (OneByOne(), 1.0, False),
        (Louder(), 0.9, False),
        (Broken(), 0.9, False),
        (Racing(), 0.9, False),
    ):
        times = [1.0, after]
        made = fused_of(model, Early(early))
        assert made is not None
        assert (made.operations is early) == is_taken
        assert made.rows_stand_alone
        assert made.joins == MOST_JOINED


def test_kernels_can_be_launched_early_from_one_card_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from lvspec_cli.models.kernels.fused_kernels import Kernels

    assert Kernels().early(torch.device("cpu")) is None
    for capability, can_be in (((8, 9), False), ((9, 0), True), ((10, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert (Kernels().early(torch.device("cuda:0")) is not None) == can_be


class Unplaced(OneByOne):
    """Kernels that take the rows of all sequences for those of the first."""

    def attend(self, queries: Tensor, *stored: Any, watched: bool = False) -> tuple[Tensor, Tensor | None]:
        cache, *others = stored
        if isinstance(cache, StoredTogether):
            zeros = torch.zeros_like(cache.rows.sequences)
            cache = replace(cache, rows=replace(cache.rows, sequences=zeros))
        return super().attend(queries, cache, *others, watched=watched)


class Narrow(OneByOne):
    """Products of which rows depend on each other where there are more than one answer has."""

    def multiply(self, inputs: Tensor, weight: Tensor | Packed, bias: Tensor | None) -> Tensor:
        return super().multiply(inputs, weight, bias) * (1 + 1e-6 * (len(inputs) > MOST_ROWS))


class Alone(OneByOne):
    """Kernels of which those for several sequences do not compile."""

    def attend(self, queries: Tensor, *stored: Any, watched: bool = False) -> tuple[Tensor, Tensor | None]:
        if isinstance(stored[0], StoredTogether):
            raise RuntimeError("ptxas failed")
        return super().attend(queries, *stored, watched=watched)


def test_rows_of_several_sequences_are_fused_where_each_is_what_it_is_alone() -> None:
    joins, cosines = {}, torch.empty(1, MOST_JOINED, 16)
    for run in (Twins(), OneByOne(), Unplaced(), Alone(), Narrow()):
        made = fused_of(model_of("qwen2_5_vl"), run)
        assert made is not None
        assert made.rows_stand_alone == isinstance(run, OneByOne)
        takes = [made.takes_joined(cosines[..., : made.size], made.joins + more) for more in (0, 1)]
        assert takes == [True, False]
        joins[type(run)] = made.joins
    whole = dict.fromkeys((Twins, OneByOne), MOST_JOINED)
    assert joins == {**whole, Unplaced: 0, Alone: 0, Narrow: MOST_ROWS}


def test_products_of_ours_may_take_a_little_longer() -> None:
    assert [pays(own, 1.0) for own in (0.5, 1.0, 1.1, 1.2)] == [True, True, True, False]


@given(outputs=st.integers(1, 200_000), inputs=st.integers(1, 40_000))
def test_splits_cover_a_matrix(outputs: int, inputs: int) -> None:
    splits, steps = splits_of(outputs, inputs)
    assert inputs <= splits * steps * INPUTS
    assert splits == 1 or (steps >= 4 and -(-outputs // OUTPUTS) * splits < 1024)


def test_where_layers_are_made_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, asked = torch.device("cuda:0"), []
    assert triton_operations(torch.device("cpu"), torch.bfloat16) == ()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert triton_operations(gpu, torch.float16) == ()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert triton_operations(gpu, torch.float32) == ()

    def told(device: torch.device, dtype: torch.dtype) -> tuple[Twins]:
        asked.append((device, dtype))
        return (Twins(),)

    monkeypatch.setattr("lvspec_cli.models.load.triton_operations", told)
    for quantisation in Quantisation:
        made = fused_layers(FAMILIES["smolvlm"], model_of("smolvlm"), gpu, quantisation, torch.bfloat16)
        assert (made is not None) == (
            quantisation in (Quantisation.NONE, Quantisation.BF16, Quantisation.INT4, Quantisation.FP8)
        )
    assert asked == [(gpu, torch.bfloat16)] * 4


def test_the_kernels_compile_for_a_gpu() -> None:
    pytest.importorskip("triton")
    from lvspec_cli.models.kernels import fused_kernels as kernels

    types = dict.fromkeys(("parts", "maxima", "sums", "shares", "to_video"), "*fp32")
    types |= dict.fromkeys(("slots", "sequences", "blocks", "table", "places"), "*i64")
    types |= dict.fromkeys(("epsilon", "scaling"), "fp32")
    types |= dict.fromkeys(("width", "rows", "heads", "key_heads", "size", "groups"), "i32")
    for kernel, constants in (
        (kernels.add_norm_kernel, {"ADD": True, "WIDTH": 2048}),
        (kernels.rotate_kernel, {"NORM": True, "JOINED": False, "HALF": 64}),
        (kernels.rotate_kernel, {"NORM": True, "JOINED": True, "HALF": 64}),
        (kernels.attend_kernel, {"SIZE": 128, "SHARES": True, "JOINED": False}),
        (kernels.attend_kernel, {"SIZE": 128, "SHARES": True, "JOINED": True}),
        (kernels.combine_kernel, {"SIZE": 128, "SHARES": True}),
        (kernels.gated_kernel, {"WIDTH": kernels.COLUMNS}),
    ):
        assembly = compiled(kernel, types, {**constants, "EARLY": False})
        assert "griddepcontrol" not in assembly
        assert waits_first(compiled(kernel, types, {**constants, "EARLY": True}))
        if kernel is kernels.attend_kernel:
            # Keys are read 16 bytes at a time, although their address is read too.
            assert re.search(r"ld\.global\S*\.v4|cp\.async\.cg.*, 0x10", assembly)
