"""Attention for few rows over a long cache, without copying the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "lvspec"
STRETCH = 128  # keys that are summed over at once, where attention is spread


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    spread: bool = False,
    **_: Any,
) -> tuple[Tensor, None]:
    """Grouped-query attention by the heads of keys and values, as transformers calls it.

    Query heads that share a key head become rows of it, so that keys and values are read once and
    not written out once a query head, which for a verification of a few rows costs more than the
    attention itself. ``query`` (batch, heads, rows, size), ``key`` and ``value`` (batch, key heads,
    length, size), ``attention_mask`` (batch, 1, rows, length), the same packed already by
    :func:`packed_mask`, or None: all of it for one row, causal from an empty cache for several. ``spread``:
    :func:`spread_attention`. Gives (batch, rows, heads, size).
    """
    batch, heads, rows, size = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None and rows > 1:
        output = scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=groups > 1
        )
        return output.transpose(1, 2).contiguous(), None
    packed = query.reshape(batch, key.shape[1], groups * rows, size)
    mask = attention_mask
    if mask is not None and mask.shape[2] == rows:
        mask = mask.repeat(1, 1, groups, 1)
    if spread and mask is not None:
        output = spread_attention(packed, key, value, mask, scaling or size**-0.5)
    else:
        output = scaled_dot_product_attention(
            packed, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
        )
    return output.reshape(batch, heads, rows, size).transpose(1, 2).contiguous(), None


def spread_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention by plain products that use a whole GPU for few rows and heads over many keys.

    A fused kernel gives a head's rows to one multiprocessor, which then reads all keys alone. ``query``
    (1, heads, rows, size), ``key`` and ``value`` (1, heads, length, size), whole and a multiple of
    :data:`STRETCH` long, ``mask`` (1, 1, rows, length) of their type, added. Each of the few kernels sums in
    float32 and rounds once, to the type of its inputs. Gives (1, heads, rows, size).
    """
    heads, length = key.shape[1], key.shape[2]
    scores = torch.baddbmm(mask[0], query[0], key[0].transpose(1, 2), alpha=scaling)
    weights = scores.softmax(dim=-1)
    # The sum over keys in stretches side by side, then over the stretches (flash decoding, Dao et al. 2023).
    stretches = weights.view(heads, -1, length // STRETCH, STRETCH).transpose(1, 2)
    parts = torch.matmul(stretches, value.view(heads, length // STRETCH, STRETCH, -1))
    return parts.sum(dim=1)[None]


def packed_mask(allowed: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """What :func:`packed_attention` adds to its scores, made once for all layers of a pass.

    ``allowed``: bool (rows, length), True where a row may look; ``groups``: query heads a key head. Gives
    (1, 1, groups * rows, length), which each layer would else make again of the bool mask.
    """
    added = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return added.masked_fill_(~allowed, float("-inf")).repeat(groups, 1)[None, None]


def causal(start: int, rows: int, device: torch.device) -> Tensor:
    """True where a row may look: bool (rows, start + rows), for rows behind ``start`` others."""
    keys = torch.arange(start + rows, device=device)
    return keys <= keys.narrow(0, start, rows).unsqueeze(1)


def register() -> str:
    """Make the attention known to transformers, masks as for its own sdpa; gives its name."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
