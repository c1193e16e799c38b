"""Packed attention against the library's own."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lvspec_cli.models.attention import packed_attention


@given(
    rows=st.integers(1, 9),
    before=st.integers(0, 20),
    key_heads=st.integers(1, 3),
    groups=st.integers(1, 4),
    batch=st.integers(1, 2),
)
def test_is_the_librarys_attention(rows: int, before: int, key_heads: int, groups: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(rows + 31 * before)
    query = torch.randn(batch, rows, key_heads * groups, 8, generator=generator).transpose(1, 2)
    key, value = torch.randn(2, batch, key_heads, before + rows, 8, generator=generator)
    mask = None
    if before and rows > 1:
        mask = torch.ones(rows, before + rows).tril(before).bool().expand(batch, 1, -1, -1)
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True, training=False)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    found, weights = packed_attention(module, query, key, value, mask, scaling=0.3)
    assert weights is None
    assert found.shape == (batch, rows, key_heads * groups, 8)
    assert torch.allclose(found, expected, atol=1e-5)
