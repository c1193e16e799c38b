"""Qwen2.5-VL: positions on three axes (time, height, width), time in seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor

from lvspec_cli.models.families.base import Family, VideoFeatures
from lvspec_cli.types import VisionSize


class Qwen2_5VL(Family):  # noqa: N801 - the family's own name
    model_type = "qwen2_5_vl"

    def prepare(self, model: Any) -> None:
        count_fractions(model)

    def position_ids(self, model: Any, input_ids: Tensor, video_inputs: Mapping[str, Tensor]) -> Tensor:
        """Positions (3, 1, length) of a prompt with one video, as the model's ``get_rope_index`` has them."""
        is_video = input_ids[0] == self.video_token(model)
        before = int(is_video.nonzero()[0])
        count = int(is_video.sum())
        vision: Any = model.config.vision_config
        merge = vision.spatial_merge_size
        grid = video_inputs["video_grid_thw"][0].tolist()
        times, rows, columns = grid[0], grid[1] // merge, grid[2] // merge
        interval = vision.tokens_per_second * video_inputs["second_per_grid_ts"][0]
        axes = torch.meshgrid(
            (torch.arange(times) * interval.cpu()).long(),
            torch.arange(rows),
            torch.arange(columns),
            indexing="ij",
        )
        video = torch.stack(axes).reshape(3, -1) + before
        # The text continues after the larger side of a frame, whatever the video's length.
        text = torch.arange(input_ids.shape[1] - before - count) + before + max(rows, columns)
        head = torch.arange(before)
        return torch.cat((head.expand(3, -1), video, text.expand(3, -1)), dim=1).unsqueeze(1)

    def answer_positions(self, start: int, count: int, device: torch.device) -> Tensor:
        return torch.arange(start, start + count, device=device).expand(3, 1, -1)

    def vision_size(self, config: Any) -> VisionSize:
        vision = config.vision_config
        sizes = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        return VisionSize(vision.hidden_size, vision.intermediate_size, *sizes, rotates=True)

    def video_features(self, model: Any, video_inputs: Mapping[str, Tensor], count: int) -> VideoFeatures:
        outputs = model.model.get_video_features(
            video_inputs["pixel_values_videos"], video_inputs["video_grid_thw"], return_dict=True
        )
        return VideoFeatures(torch.cat(tuple(outputs.pooler_output)))


def count_fractions(model: Any) -> None:
    """Make ``generate`` of a model count fractions of a second, in place, as transformers does from 5.23 on.

    Before, it cuts the seconds per grid to a whole number, so that half a second becomes 0.
    """
    if Version(transformers.__version__) < Version("5.23"):
        model.model.get_rope_index = partial(_rope_index, model, model.model.get_rope_index)


def _rope_index(
    model: Any, cut: Callable[..., tuple[Tensor, Tensor]], input_ids: Tensor, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """Positions (3, batch, length) and what they are ahead of the tokens' numbers, (batch, 1).

    :param cut: gives them with whole seconds.
    """
    positions, ahead = cut(input_ids, **inputs)
    grids, seconds = inputs.get("video_grid_thw"), inputs.get("second_per_grid_ts")
    if grids is None or seconds is None or len(grids) != len(input_ids):
        return positions, ahead  # not a video in each row
    mask = inputs.get("attention_mask")
    is_read = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    for row, (ids, reads) in enumerate(zip(input_ids, is_read, strict=True)):
        video = {"video_grid_thw": grids[row : row + 1], "second_per_grid_ts": seconds[row : row + 1]}
        own = Qwen2_5VL().position_ids(model, ids[reads].cpu()[None], video)[:, 0].to(positions)
        positions[:, row, reads] = own
        ahead[row] = own.max() + 1 - own.shape[1]
    return positions, ahead
