"""Patches of a video as one product, in place of a convolution that never moves.

The towers of Qwen embed each patch by a 3D convolution whose kernel is as large as the patch. In 16 bits
some versions of cuDNN take 10 to 50,000 times as long for that as for the product that it is (reported in
transformers issue 45750 and PyTorch issue 174051). In float32 the convolution stays: the order of its sums
may decide a token, which has to be that of transformers.

transformers' own ``fusion_config`` does the same, but for all models of a class that the process loads later,
in float32, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_PROBE = 5  # patches
_TOLERANCE = 4  # times the dtype's precision, of the largest value


class PatchProjection(nn.Module):
    """A convolution's weights, under their names, for inputs of its kernel's size."""

    def __init__(self, old: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = old.weight, old.bias
        self.train(old.training)

    def forward(self, patches: Tensor) -> Tensor:
        """(patches, channels, frames, height, width) -> (patches, embedding, 1, 1, 1)."""
        return linear(patches.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def multiply_patches(model: Any) -> int:
    """Replace the convolutions of patches in a video tower in 16 bits, in place. Returns their number.

    Weights are shared. A module that would compute something else stays.
    """
    replaced = 0
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("PatchEmbed") and type(getattr(module, "proj", None)) is nn.Conv3d:
            new = PatchProjection(module.proj)
            if _is_the_same(module.proj, new):
                model.set_submodule(f"{name}.proj" if name else "proj", new)
                replaced += 1
    return replaced


@torch.inference_mode()
def _is_the_same(old: nn.Conv3d, new: PatchProjection) -> bool:
    """Whether both compute the same but for rounding, for inputs of the kernel's size."""
    weight = old.weight
    if weight.dtype not in (torch.bfloat16, torch.float16):
        return False
    if old.groups != 1 or old.stride != old.kernel_size or set(old.dilation) != {1}:
        return False
    shape = (_PROBE, *weight.shape[1:])
    probe = torch.linspace(-2, 2, _PROBE * weight[0].numel(), device=weight.device).view(shape).to(weight)
    expected, found = old(probe).float(), new(probe).float()
    tolerance = _TOLERANCE * torch.finfo(weight.dtype).eps
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
