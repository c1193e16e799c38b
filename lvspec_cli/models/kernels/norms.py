"""Normalisations as one kernel each. On a GPU, a step of a small draft is mostly small kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_TOLERANCE = 1e-3  # how much two forms of the same formula may differ on values around 1


def fuse_norms(model: Any) -> int:
    """Replace transformers' RMSNorm modules, eight kernels each on a GPU, by torch's, one kernel; in place.

    Weights are shared. The formula is the same (Zhang and Sennrich 2019), but rounds only once, at the end.
    A module that has the name but computes something else stays. Returns the number of replaced modules.
    """
    fused = 0
    for name, module in list(model.named_modules()):
        fused_norm = _fused(module) if type(module).__name__.endswith("RMSNorm") else None
        if fused_norm is not None:
            model.set_submodule(name, fused_norm)
            fused += 1
    return fused


@torch.inference_mode()
def _fused(norm: Any) -> nn.RMSNorm | None:
    """torch's own module with the same weights; None if it would not compute the same."""
    weight, epsilon = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", None)
    if isinstance(norm, nn.RMSNorm) or weight is None or weight.dim() != 1 or epsilon is None:
        return None
    fused = nn.RMSNorm(weight.shape[0], eps=epsilon, device="meta").requires_grad_(False)
    fused.weight = weight
    fused.train(norm.training)
    probe = torch.linspace(-2, 2, weight.shape[0], device=weight.device, dtype=weight.dtype)[None]
    expected, actual = norm(probe).float(), fused(probe).float()
    tolerance = max(_TOLERANCE, 4 * torch.finfo(weight.dtype).eps)
    return fused if torch.allclose(actual, expected, rtol=tolerance, atol=tolerance) else None
