"""The kernels of fused layers beside their twins. Imported by a process that runs Triton's interpreter."""

from __future__ import annotations

import torch
from torch import Tensor

from lvspec_cli.models.kernels.fused import Twins
from lvspec_cli.models.kernels.fused_kernels import Kernels

# Heads, key heads, size of a head, rows and the first one's slot: in one stretch of keys, and across two.
SHAPES = ((4, 2, 16, 1, 0), (6, 1, 40, 3, 254))


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert float((found - expected).float().norm() / expected.float().norm()) < 1e-3


def check_kernels(heads: int, key_heads: int, size: int, rows: int, start: int, device: str = "cpu") -> None:
    """The kernels are their twins: in Triton's interpreter (``test_small_batch``), or on a GPU."""
    interpreted, twins, generator = Kernels(), Twins(), torch.Generator().manual_seed(heads)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).half().to(device)

    hidden, added, weight = (
        drawn(rows, heads * size - 8),
        drawn(rows, heads * size - 8),
        drawn(heads * size - 8),
    )
    for other in (None, added):
        pairs = zip(
            interpreted.add_norm(hidden, other, weight, 1e-6),
            twins.add_norm(hidden, other, weight, 1e-6),
            strict=True,
        )
        for found, expected in pairs:
            assert_close(found, expected)
    both = 3 * drawn(rows, 2 * 3 * size)
    assert_close(interpreted.gated(both), twins.gated(both))
    slots, turns = torch.arange(start, start + rows, device=device), drawn(rows, size // 2).repeat(1, 2)
    factors, projected = (turns.cos(), turns.sin()), drawn(rows, (heads + 2 * key_heads) * size)
    stored = drawn(2, key_heads, 384, size)
    for norms in (None, (drawn(size), drawn(size))):
        own, others = stored.clone(), stored.clone()
        queries = interpreted.rotate_and_write(projected, factors, norms, 1e-6, tuple(own), slots)
        assert_close(queries, twins.rotate_and_write(projected, factors, norms, 1e-6, tuple(others), slots))
        assert_close(own, others)
    attended = interpreted.attend(queries, tuple(own), slots, size**-0.5)
    assert_close(attended, twins.attend(queries, tuple(own), slots, size**-0.5))
    # Stretches behind the last key are not read, and no row depends on those beside it.
    own[:, :, (start + rows - 1) // 128 * 128 + 128 :] = float("nan")
    for row in {0, rows - 1}:
        alone = queries[:, row : row + 1].contiguous()
        found = interpreted.attend(alone, tuple(own), slots[row : row + 1], size**-0.5)
        assert torch.equal(found, attended[row : row + 1])
