"""Patches of a video through a convolution that never moves, without what that costs.

The towers of Qwen embed each patch by a 3D convolution whose kernel is as large as the patch. In 16 bits
some versions of cuDNN take 10 to 50,000 times as long for that as for the product that it is (reported in
transformers issue 45750 and PyTorch issue 174051): there it is computed as a product. transformers' own
``fusion_config`` does the same, but for all models of a class that the process loads later, in float32, too.

In float32 it stays a convolution: the order of its sums may decide a token, which has to be that of
transformers. But on CPUs oneDNN computes several neighbours of a row at once, of which a patch alone has
none. So patches are laid side by side there, which changes no sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d, linear, pad

_BESIDE = 16  # patches in a row
_AT_ONCE = 1024  # patches, so that the copy that lays them side by side is small
_PROBE = 5  # patches
_TRIED = (5, 2 * _BESIDE, 3 * _BESIDE + 5)  # patches in rows
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


class PatchRows(nn.Module):
    """The convolution over rows of patches, for inputs of its kernel's size."""

    def __init__(self, old: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias, self.stride = old.weight, old.bias, old.stride
        self.train(old.training)

    def forward(self, patches: Tensor) -> Tensor:
        """(patches, channels, frames, height, width) -> (patches, embedding, 1, 1, 1)."""
        parts = [self._embedded(part) for part in patches.split(_AT_ONCE)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[..., None, None, None]

    def _embedded(self, patches: Tensor) -> Tensor:
        """(patches, embedding)."""
        count, *size = patches.shape
        whole = pad(patches.flatten(1), (0, 0, 0, -count % _BESIDE))
        rows = whole.view(-1, _BESIDE, *size).permute(0, 2, 3, 4, 1, 5).flatten(4)
        embedded = conv3d(rows, self.weight, self.bias, self.stride)[:, :, 0, 0]
        return embedded.transpose(1, 2).flatten(0, 1)[:count].contiguous()


def multiply_patches(model: Any) -> int:
    """Replace the convolutions of patches in a video tower, in place. Returns their number.

    Weights are shared. A module that would compute something else stays.
    """
    replaced = 0
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("PatchEmbed") and type(getattr(module, "proj", None)) is nn.Conv3d:
            new = _instead_of(module.proj)
            if new is not None:
                model.set_submodule(f"{name}.proj" if name else "proj", new)
                replaced += 1
    return replaced


def _instead_of(old: nn.Conv3d) -> PatchProjection | PatchRows | None:
    if old.groups != 1 or old.stride != old.kernel_size or set(old.dilation) != {1} or any(old.padding):
        return None
    if old.weight.dtype in (torch.bfloat16, torch.float16):
        product = PatchProjection(old)
        return product if _is_close(old, product) else None
    if old.weight.dtype == torch.float32 and old.weight.device.type == "cpu":
        rows = PatchRows(old)
        return rows if _is_the_same(old, rows) else None
    return None


@torch.inference_mode()
def _is_the_same(old: nn.Conv3d, new: PatchRows) -> bool:
    """Whether both compute the same, to the bit."""
    draw = torch.Generator().manual_seed(0)
    patches = torch.randn(max(_TRIED), *old.weight.shape[1:], generator=draw)
    return all(torch.equal(old(patches[:count]), new(patches[:count])) for count in _TRIED)


@torch.inference_mode()
def _is_close(old: nn.Conv3d, new: PatchProjection) -> bool:
    """Whether both compute the same but for rounding, for inputs of the kernel's size."""
    weight = old.weight
    shape = (_PROBE, *weight.shape[1:])
    probe = torch.linspace(-2, 2, _PROBE * weight[0].numel(), device=weight.device).view(shape).to(weight)
    expected, found = old(probe).float(), new(probe).float()
    tolerance = _TOLERANCE * torch.finfo(weight.dtype).eps
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
