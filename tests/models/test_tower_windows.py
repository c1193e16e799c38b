"""Attention of video towers in one call for all windows of one length: the same bits as a call for each."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionAttention

from lvspec_cli.models.kernels import windows
from lvspec_cli.models.kernels.windows import WindowAttention, Windows, join_windows, windows_of
from tests.tiny_families import TINY, TinyShape

# Times, rows and columns of patches: whole windows, windows cut by the edge, one frame, one window.
GRIDS = ((4, 8, 8), (3, 10, 14), (1, 6, 8), (2, 2, 2))


def tower_of(family: str) -> Any:
    made = TINY[family]
    config = made.config(made.tokenizer(), TinyShape())
    config.vision_config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config).model.visual.eval()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe"])
def test_the_same_bits_in_few_calls(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*parts: Any, **options: Any) -> torch.Tensor:
        calls.append(parts[0].shape[0])
        return nn.functional.scaled_dot_product_attention(*parts, **options)

    monkeypatch.setattr(windows, "scaled_dot_product_attention", counted)
    for dtype in (torch.float32, torch.bfloat16):
        old = tower_of(family).to(dtype)
        new = deepcopy(old)
        names = [name for name, _ in new.named_parameters()]
        depth = len(new.blocks)
        assert join_windows(new) == depth
        assert join_windows(new) == 0
        assert [name for name, _ in new.named_parameters()] == names
        calls.clear()
        for grid in GRIDS:
            patches = torch.randn(grid[0] * grid[1] * grid[2], old.patch_embed.proj.weight[0].numel())
            inputs = (patches.to(dtype), torch.tensor([grid]))
            with torch.inference_mode():
                assert torch.equal(new(*inputs).pooler_output, old(*inputs).pooler_output)
        # Windows of 4 x 4 patches in one of two layers: 6 in each frame of the second grid, where the edges
        # cut windows of two other lengths, and in the third of one other. Else whole frames.
        is_windowed = family == "qwen2_5_vl"
        assert max(calls) == (18 if is_windowed else 4)
        assert len(calls) == depth * len(GRIDS) + (3 if is_windowed else 0)


def test_windows_are_told_apart_by_their_length() -> None:
    assert windows_of(torch.tensor([0, 4, 8, 12])) == (Windows(4),)
    assert windows_of(torch.tensor([0, 5])) == (Windows(5),)
    two, four = windows_of(torch.tensor([0, 4, 6, 6, 10], dtype=torch.int32))
    assert (two.length, four.length) == (2, 4)
    assert two.rows is not None and two.rows.tolist() == [4, 5]
    assert four.rows is not None and four.rows.tolist() == [0, 1, 2, 3, 6, 7, 8, 9]


class ScaledVisionAttention(Qwen3VLVisionAttention):
    """Another formula under a name that is known."""

    __module__ = Qwen3VLVisionAttention.__module__

    def forward(self, hidden_states: Any, cu_seqlens: Any, position_embeddings: Any = None, **_: Any) -> Any:
        return 2 * super().forward(hidden_states, cu_seqlens, position_embeddings)


def test_what_computes_something_else_stays() -> None:
    tower = tower_of("qwen3_vl")
    joined = deepcopy(tower)
    scaled = ScaledVisionAttention(tower.config).eval()
    tower.blocks[0].attn = scaled
    tower.blocks[1].attn.config = deepcopy(tower.config)
    tower.blocks[1].attn.config._attn_implementation = "flash_attention_2"
    assert join_windows(tower) == len(tower.blocks) - 2
    assert type(tower.blocks[0].attn) is ScaledVisionAttention
    assert type(tower.blocks[1].attn) is Qwen3VLVisionAttention
    assert type(tower.blocks[2].attn) is WindowAttention
    assert join_windows(joined) == len(joined.blocks)
