"""InternVL: each frame is an image after its number as text. Positions are plain; there are no times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from lvspec_cli.models.families.base import Family, VideoFeatures
from lvspec_cli.types import VisionSize


class InternVL(Family):
    model_type = "internvl"

    def video_token(self, model: Any) -> int:
        return int(model.config.image_token_id)

    def vision_size(self, config: Any) -> VisionSize:
        vision, merge = super().vision_size(config), round(1 / config.downsample_ratio)
        tokens = vision.patches(1, 0) // merge**2
        # The text of each frame is its number and two marks.
        return replace(vision, merge=merge, tokens_a_frame=tokens, text_a_frame=8)

    def video_features(self, model: Any, video_inputs: Mapping[str, Tensor], count: int) -> VideoFeatures:
        outputs = model.model.get_image_features(
            video_inputs["pixel_values"],
            vision_feature_layer=model.config.vision_feature_layer,
            vision_feature_select_strategy=model.config.vision_feature_select_strategy,
            return_dict=True,
        )
        return VideoFeatures(outputs.pooler_output.flatten(0, 1))
