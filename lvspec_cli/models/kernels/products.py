"""How products of few rows are cut into programs: by the matrix alone, so that no row depends on others."""

from __future__ import annotations

OUTPUTS, INPUTS = 64, 128  # of a tile
_PROGRAMS = 512  # about as many as a large GPU runs at once
_MOST_SPLITS, _LEAST_STEPS = 16, 4


def splits_of(outputs: int, inputs: int, columns: int = INPUTS) -> tuple[int, int]:
    """Programs that share a sum, each over a range of the inputs, and its steps, of so many columns."""
    steps, tiles, splits = -(-inputs // columns), -(-outputs // OUTPUTS), 1
    while splits < _MOST_SPLITS and tiles * splits < _PROGRAMS and steps // (2 * splits) >= _LEAST_STEPS:
        splits *= 2
    return splits, -(-steps // splits)
