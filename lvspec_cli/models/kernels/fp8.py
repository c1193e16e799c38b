"""Weights in fp8 (E4M3: 4 bits of exponent, 3 of mantissa), packed while a model is loaded from 16-bit files.

A step of a large target is bound by reading its weights, which are half as many bytes then. Each row of a
matrix has a scale. It is a power of two: the codes are floating-point, so that another scale would round no
better, and so the numbers that weights stand for are the same in bfloat16, in float32 and as they are packed.

How they are multiplied depends on the rows of a pass (``fp8_kernels``, on a GPU):

- Few rows, which are steps and verifications: weights are read packed, inputs have 16 bits.
- A clip, which is thousands of rows: inputs are rounded to 8 bits, too, each row by a scale of its own, where
  a check at load finds torch's product of two such matrices right. A GPU then multiplies twice as fast.
- Rows between, and other devices: one matrix at a time is unpacked.

So the answer and the question are computed with inputs of 16 bits, and exact mode stays what it is: the
target's own answer, by the target as it was loaded. The rounded inputs change what the target reads in the
clip, which is the same for every mode. For that, the question is not run with the clip in one pass
(``LoadedModel.reads_in_8_bits``): what it gives would depend on whether another question follows. No pass
over answers has so many rows, not even one of several answers that are decoded together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from lvspec_cli.models.kernels.packed import Multiply, Packed, drawn, is_near

CODE = torch.float8_e4m3fn
GREATEST = 448.0  # of the codes, which is 1.75 * 2^8
# The exponent of a row's scale is that of its greatest value less 8, or less 7 where the bits of the mantissa
# are above those of 1.75: this carries over then. Exponents are biased by 127, as the bits of float32 have
# them, and the least is that of the least normal number.
CARRY, LESS, LEAST = 0x1FFFFF, 8, 1
CLIP_ROWS = 2560  # from which on a pass is over a clip; 32 answers of 65 rows at a time have 2,080


@dataclass(frozen=True)
class Packed8(Packed):
    """A matrix (outputs, inputs), or the inputs of a product (rows, inputs)."""

    codes: Tensor  # float8_e4m3fn (outputs, inputs)
    scales: Tensor  # float32 (outputs,), powers of two
    GROUP: ClassVar[int] = 16  # of torch's product; kernels read so many bytes at a time

    @property
    def outputs(self) -> int:
        return self.codes.shape[0]

    @property
    def inputs(self) -> int:
        return self.codes.shape[1]

    @classmethod
    def of_rows(cls, rows: Tensor) -> Self:
        """The nearest codes.

        :raises ValueError: a weight is infinite or not a number.
        """
        values = rows.float()
        greatest = values.abs().amax(dim=1)
        if not greatest.isfinite().all():
            raise ValueError("a weight is infinite or not a number")
        exponents = ((greatest.view(torch.int32) + CARRY) >> 23) - LESS
        scales = (exponents.clamp_min(LEAST) << 23).view(torch.float32)
        return cls((values / scales.unsqueeze(1)).to(CODE), scales)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        return (self.codes.float() * self.scales.unsqueeze(1)).to(dtype)


def by_rounding(inputs: Tensor, matrix: Packed8, bias: Tensor | None) -> Tensor:
    """A linear layer of inputs that are rounded as the weights are, by torch: (rows, inputs) -> (rows,
    outputs)."""
    rows, weight = Packed8.of(inputs).unpacked(torch.float32), matrix.unpacked(torch.float32)
    return linear(rows, weight, None if bias is None else bias.float()).to(inputs.dtype)


@torch.inference_mode()
def is_right_over_clips(multiply: Multiply, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of as many rows as a clip has are those of rounded inputs."""
    matrix, bias, inputs = drawn(Packed8, CLIP_ROWS, device, dtype)
    assert isinstance(matrix, Packed8)
    return is_near(multiply(inputs, matrix, bias), by_rounding(inputs.float(), matrix, bias.float()))
