"""SmolVLM2: each frame is an image after its time as text. Positions are plain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lvspec_cli.models.families.base import Family, VideoFeatures
from lvspec_cli.types import VisionSize


class SmolVLM(Family):
    model_type = "smolvlm"

    def video_token(self, model: Any) -> int:
        return int(model.config.image_token_id)

    def language(self, model: Any) -> Any:
        return model.model.text_model

    def vision_size(self, config: Any) -> VisionSize:
        vision, merge = super().vision_size(config), config.scale_factor
        tokens = vision.patches(1, 0) // merge**2
        # The text of each frame is its time and two marks.
        return replace(vision, merge=merge, tokens_a_frame=tokens, text_a_frame=16)

    def video_features(self, model: Any, video_inputs: Mapping[str, Tensor], count: int) -> VideoFeatures:
        outputs = model.model.get_image_features(
            video_inputs["pixel_values"], video_inputs.get("pixel_attention_mask"), return_dict=True
        )
        # One tensor (frames, tokens, width) in early releases of transformers 5; later one for each clip.
        frames = outputs.pooler_output
        return VideoFeatures(frames.flatten(0, 1) if isinstance(frames, Tensor) else torch.cat(frames))
