"""NF4 weights in the layout of the small-batch kernels: 4 bits a weight, blocks of 64, quantised scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS = 80  # the most rows of a product: a verification with the greatest gamma has 65
BLOCK = 64  # weights that share a scale
SCALES = 256  # scales that share an outer scale
WORD = 8  # weights in 32 bits


# The values of the sixteen codes (QLoRA, Dettmers et al. 2023, arXiv 2305.14314, appendix E).
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Packed:
    """An nf4 matrix, (outputs, inputs), in the layout of bitsandbytes, with scales of one byte."""

    words: Tensor  # int32 (outputs * inputs / 8,), two weights a byte, the first in the upper half
    scales: Tensor  # uint8 (outputs * inputs / 64,)
    outer: Tensor  # float32, a scale for each 256 scales
    outer_levels: Tensor  # float32 (256,), the values of the scales' codes
    offset: Tensor  # float32, a single one, added to all scales
    outputs: int
    inputs: int

    @classmethod
    def of(cls, weights: Tensor, state: Any) -> Packed | None:
        """From bitsandbytes' packed weights and their ``QuantState``; None for another layout."""
        outputs, inputs = state.shape
        inner = state.state2
        is_nf4 = state.quant_type == "nf4" and state.blocksize == BLOCK and weights.dtype == torch.uint8
        nested = inner is not None and inner.blocksize == SCALES and state.absmax.dtype == torch.uint8
        if not is_nf4 or not nested or inputs % BLOCK:
            return None
        if not torch.allclose(state.code.float().cpu(), torch.tensor(LEVELS), atol=1e-6):
            return None
        words = weights.view(-1).view(torch.int32)
        return cls(words, state.absmax, inner.absmax, inner.code, state.offset, outputs, inputs)
