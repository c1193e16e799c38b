"""Patches of a video as one product: what the convolution gives, but for rounding. Others stay."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from lvspec_cli.models.kernels.patches import PatchProjection, multiply_patches
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


def test_in_float32_the_sums_are_those_of_transformers() -> None:
    tower = tower_of("qwen2_5_vl")
    assert multiply_patches(tower) == 0
    assert type(tower.patch_embed.proj) is nn.Conv3d
    few = nn.Conv3d(1, 2, kernel_size=(1, 1, 2), stride=(1, 1, 2))  # of two numbers, which have no order
    assert multiply_patches(PatchEmbed(few)) == 0
    assert multiply_patches(PatchEmbed(few.bfloat16())) == 1


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
    for other in others:
        model = PatchEmbed(other).bfloat16()
        assert multiply_patches(model) == 0
        assert model.proj is other
    model = PatchEmbed(nn.Conv3d(3, 8, **sizes)).bfloat16()
    assert multiply_patches(model) == 1
    assert type(model.proj) is PatchProjection
