"""Where the rows of several sequences are in one pass."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.models.joined import PACKED_ROWS, JoinedRows, Layout, Part, blocks_of, told_of


def test_rows_are_laid_out_by_hand() -> None:
    parts = (Part(1, 40, 1), Part(3, 7, 3))
    layout = Layout.of(parts, (1, 3, 3), 6)
    assert layout.sequences == (1, 3, 3, 3, 3, 3)
    assert layout.places == (40, 7, 8, 9, 10, 11), "padding goes on after the last sequence"
    assert layout.cells == (0, 6, 7, 8, 9, 9), "the one behind the grid is padding's"
    blocks = blocks_of([1, 5], 7)
    assert blocks == [(0, 1, 0), (1, 5, 0), (1, 5, 16), (1, 5, 32)]
    rows = JoinedRows.of(told_of(layout, blocks, 5), 6)
    assert [part.tolist() for part in (rows.sequences, rows.places, rows.cells)] == [
        list(part) for part in (layout.sequences, layout.places, layout.cells)
    ]
    assert rows.blocks.tolist() == [*map(list, blocks), [0, 0, 0]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 9))
def test_blocks_have_every_packed_row_of_every_sequence_once(rows: list[int], groups: int) -> None:
    found = [
        (first, packed)
        for first, count, start in blocks_of(rows, groups)
        for packed in range(start, min(start + PACKED_ROWS, groups * count))
    ]
    starts = torch.tensor([0, *rows]).cumsum(0).tolist()
    assert found == [
        (first, packed)
        for first, count in zip(starts, rows, strict=False)
        for packed in range(groups * count)
    ]
