"""Patches of a video: as one product what the convolution gives but for rounding, in rows to the bit."""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lvspec_cli.models.kernels.patches import PatchProjection, PatchRows, multiply_patches
from tests.models.test_tower_windows import tower_of


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe"])
def test_a_tower_sees_the_same(family: str, dtype: torch.dtype) -> None:
    old = tower_of(family).to(dtype)
    new = deepcopy(old)
    names = [name for name, _ in new.named_parameters()]
    assert multiply_patches(new) == 1
    assert multiply_patches(new) == 0
    assert [name for name, _ in new.named_parameters()] == names
    patches = torch.randn(3 * 10 * 14, old.patch_embed.proj.weight[0].numel()).to(dtype)
    inputs = (patches, torch.tensor([(3, 10, 14)]))
    with torch.inference_mode():
        found, expected = (tower(*inputs).pooler_output.float() for tower in (new, old))
    off = (found - expected).norm() / expected.norm()
    assert off < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe"])
def test_in_float32_a_tower_sees_the_same_to_the_bit(family: str) -> None:
    old = tower_of(family)
    new = deepcopy(old)
    names = [name for name, _ in new.named_parameters()]
    has_avx = torch.backends.cpu.get_cpu_capability().startswith("AVX")  # without it, sums have other orders
    if has_avx:
        assert multiply_patches(new) == 1
        assert type(new.patch_embed.proj) is PatchRows
    assert multiply_patches(new) == 0
    assert [name for name, _ in new.named_parameters()] == names
    patches = torch.randn(3 * 10 * 14, old.patch_embed.proj.weight[0].numel())
    inputs = (patches, torch.tensor([(3, 10, 14)]))
    with torch.inference_mode():
        found, expected = (tower(*inputs).pooler_output for tower in (new, old))
    assert torch.equal(found, expected)


@given(count=st.integers(1, 80), outputs=st.integers(1, 70), side=st.integers(1, 16), bias=st.booleans())
def test_patches_in_rows_are_patches_alone(count: int, outputs: int, side: int, bias: bool) -> None:
    draw, size = torch.Generator().manual_seed(count), (2, side, side)
    old = nn.Conv3d(3, outputs, size, size, bias=bias)
    patches = torch.randn(count, 3, *size, generator=draw)
    with torch.inference_mode():
        found, expected = PatchRows(old)(patches), old(patches)
    assert found.shape == expected.shape
    assert found.is_contiguous()
    off = (found - expected).abs().max()
    assert off <= 1e-5 * expected.abs().max()


def test_many_patches_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    old, patches = nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4)), torch.randn(150, 3, 2, 4, 4)
    with torch.inference_mode():
        whole = PatchRows(old)(patches)
        monkeypatch.setattr("lvspec_cli.models.kernels.patches._AT_ONCE", 64)
        assert torch.equal(PatchRows(old)(patches), whole)


def test_in_float32_a_convolution_that_would_sum_in_another_order_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sums = PatchRows.forward
    last_bit = 1 + torch.finfo(torch.float32).eps

    def rounded(self: PatchRows, patches: torch.Tensor) -> torch.Tensor:
        return sums(self, patches) * (last_bit if len(patches) > 40 else 1)

    monkeypatch.setattr(PatchRows, "forward", rounded)
    tower = tower_of("qwen2_5_vl")
    assert multiply_patches(tower) == 0
    assert type(tower.patch_embed.proj) is nn.Conv3d


class PatchEmbed(nn.Module):
    """Something with the name of a patch embedding."""

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj


class Louder(nn.Conv3d):
    """Another formula."""

    def forward(self, values: Any) -> Any:
        return 2 * super().forward(values)


def test_a_convolution_that_is_no_product_stays() -> None:
    sizes: dict[str, Any] = {"kernel_size": (2, 4, 4), "stride": (2, 4, 4)}
    others = (
        nn.Conv3d(3, 8, **{**sizes, "stride": (1, 4, 4)}),
        nn.Conv3d(3, 8, **sizes, padding=(0, 1, 1)),
        nn.Conv3d(3, 8, **sizes, dilation=(1, 2, 2)),
        nn.Conv3d(4, 8, **sizes, groups=2),
        nn.Conv2d(3, 8, 4, 4),
        Louder(3, 8, **sizes),
    )
    for other, dtype in product(others, (torch.float32, torch.bfloat16)):
        model = PatchEmbed(other).to(dtype)
        assert multiply_patches(model) == 0
        assert model.proj is other
    model = PatchEmbed(nn.Conv3d(3, 8, **sizes)).bfloat16()
    assert multiply_patches(model) == 1
    assert type(model.proj) is PatchProjection
