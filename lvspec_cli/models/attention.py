"""Attention for few rows over a long cache, without a copy of the cache."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "lvspec"
SPLIT_KEYS = 128  # keys in each part of split-K attention


class Together(Protocol):
    """Sequences whose rows run in one pass."""

    def attended(self, query: Tensor, scaling: float | None) -> Tensor:
        """Attention of rows of all sequences, (1, heads, rows, size), each to its own sequence.

        Returns (1, rows, heads, size).
        """


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    split_k: bool = False,
    together: Together | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Grouped-query attention with transformers' interface.

    Query heads that share a key head become rows of this head. Keys and values are then read once and not
    repeated for each query head, which would cost more than the attention itself for a few rows.

    ``query`` (batch, heads, rows, size); ``key`` and ``value`` (batch, key heads, length, size);
    ``attention_mask`` (batch, 1, rows, length), or already packed by :func:`packed_mask`, or None. None means
    all keys for a single row, and causal attention from an empty cache for several rows.
    ``split_k``: use :func:`split_k_attention`. ``together``: the rows are of several sequences, and attend to
    those that it names, instead of ``key`` and ``value``. Returns (batch, rows, heads, size).
    """
    if together is not None:
        return together.attended(query, scaling), None
    batch, heads, rows, size = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None and rows > 1:
        output = scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=groups > 1
        )
        return output.transpose(1, 2).contiguous(), None
    packed = query.reshape(batch, key.shape[1], groups * rows, size)
    mask = attention_mask
    if mask is not None and mask.shape[2] == rows and groups > 1:
        mask = mask.repeat(1, 1, groups, 1)
    if split_k and mask is not None:
        output = split_k_attention(packed, key, value, mask, scaling or size**-0.5)
    else:
        output = scaled_dot_product_attention(
            packed, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
        )
    return output.reshape(batch, heads, rows, size).transpose(1, 2).contiguous(), None


def split_k_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention by matrix products that use the whole GPU for few rows and heads but many keys.

    A fused kernel would give all rows of a head to one multiprocessor, which reads all keys alone.

    ``query`` (batch, heads, rows, size); ``key`` and ``value`` (batch, heads, length, size), contiguous,
    ``length`` a multiple of :data:`SPLIT_KEYS`; ``mask`` (batch, 1, rows, length) of the same dtype, added to
    the scores. Each kernel sums in float32 and rounds once to the dtype of its inputs. Returns
    (batch, heads, rows, size).
    """
    batch, heads, length, size = key.shape
    # A batch of one is added to all heads without a copy for each.
    added = mask[0] if batch == 1 else mask.expand(-1, heads, -1, -1).flatten(0, 1)
    scores = torch.baddbmm(added, query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=scaling)
    weights = scores.softmax(dim=-1)
    # Sums over parts of the keys in parallel, then over the parts (flash decoding, Dao et al. 2023).
    split_weights = weights.view(batch * heads, -1, length // SPLIT_KEYS, SPLIT_KEYS).transpose(1, 2)
    parts = torch.matmul(split_weights, value.view(batch * heads, length // SPLIT_KEYS, SPLIT_KEYS, size))
    return parts.sum(dim=1).unflatten(0, (batch, heads))


def packed_mask(allowed: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """The mask that :func:`packed_attention` adds to its scores, made once for all layers of a pass.

    ``allowed``: bool (rows, length), True if the row may attend to the key; ``groups``: query heads a key
    head. Returns (1, 1, groups * rows, length).
    """
    added = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return added.masked_fill_(~allowed, float("-inf")).repeat(groups, 1)[None, None]


def causal(start: int, rows: int, device: torch.device) -> Tensor:
    """The causal mask of ``rows`` rows after ``start`` earlier ones: bool (rows, start + rows)."""
    keys = torch.arange(start + rows, device=device)
    return keys <= keys.narrow(0, start, rows).unsqueeze(1)


def register() -> str:
    """Register the attention with transformers, with the masks of its sdpa. Returns its name."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
