"""What the engine has to know of a family of Video-LLMs, and what most of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lvspec_cli.types import VisionSize

Rotary = tuple[Tensor, Tensor]  # cosines and sines, each (1, rows, head size)


@dataclass(frozen=True)
class VideoFeatures:
    """A video's features for the language model. Each tensor is (video tokens, width)."""

    embeddings: Tensor  # replace the embeddings of the video tokens
    deeper: tuple[Tensor, ...] = ()  # added to the tokens' hidden states after the first layers, in order


class Family:
    """All that differs between families of models. The engine does not know families.

    The defaults fit models with a video tower and a language model like Llama's
    (``model.model.language_model`` with ``layers``, ``norm`` and ``rotary_emb``, and ``lm_head``).
    A family must define :meth:`video_features`. Models with windowed attention are rejected when they are
    loaded.
    """

    model_type: str
    float16_is_safe = False  # no value exceeds 65504, the largest number of float16
    has_states = False  # some layers keep a state instead of the keys and values of every row
    waits_for_host = False  # during a pass, so that it cannot be captured

    def active_experts(self, config: Any) -> float:
        """The share of a layer's experts that one row reads; 1.0 where layers have none."""
        return 1.0

    def mlp_width(self, config: Any) -> int:
        """Values of a row in a decoder layer's MLP, to plan memory with."""
        return int(config.get_text_config().intermediate_size)

    def prepare(self, model: Any) -> None:
        """Change a loaded model, in place, into one that the engine can run."""

    def attention_layers(self, config: Any) -> tuple[int, ...]:
        """Indices of the language model's layers that have keys and values, ascending."""
        return tuple(range(config.get_text_config().num_hidden_layers))

    def prediction_parts(self, text: Any) -> tuple[nn.Module, Callable[[], nn.Module]] | None:
        """The decoder layer of a checkpoint's prediction layer (``models.mtp``), and what makes one of its
        normalisations, with weights that mean nothing yet; None: checkpoints carry none.

        :param text: the text config, with a single layer, which attends.
        """
        return None

    # --- prompt -------------------------------------------------------------------------

    def video_token(self, model: Any) -> int:
        """Id of the placeholder token for the video's embeddings."""
        return int(model.config.video_token_id)

    def position_ids(self, model: Any, input_ids: Tensor, video_inputs: Mapping[str, Tensor]) -> Tensor:
        """Positions of a whole prompt: long, (..., 1, length), with the family's leading axes."""
        return torch.arange(input_ids.shape[1]).view(1, -1)

    def answer_positions(self, start: int, count: int, device: torch.device) -> Tensor:
        """Positions of ``count`` answer tokens from ``start`` on, with the family's leading axes."""
        return torch.arange(start, start + count, device=device).view(1, -1)

    # --- memory -------------------------------------------------------------------------

    def vision_size(self, config: Any) -> VisionSize:
        """Patches and tokens of a frame, from the config alone, for planning memory.

        The default: frames are scaled to one size, and every patch becomes a token.
        """
        vision = config.vision_config
        side, patch = (
            size if isinstance(size, int) else size[0] for size in (vision.image_size, vision.patch_size)
        )
        patches = (side // patch) ** 2
        return VisionSize(vision.hidden_size, vision.intermediate_size, patch, 1, 1, patches, patches)

    def state_bytes(self, config: Any) -> int:
        """Bytes of what layers without keys and values keep of one clip."""
        return 0

    # --- prefill ------------------------------------------------------------------------

    def video_features(self, model: Any, video_inputs: Mapping[str, Tensor], count: int) -> VideoFeatures:
        """The video of a prompt that has ``count`` video tokens."""
        raise NotImplementedError

    def embed(self, model: Any, input_ids: Tensor) -> Tensor:
        """Embeddings of tokens, (1, rows) -> (1, rows, width)."""
        return self.language(model).embed_tokens(input_ids)

    # --- decoding -----------------------------------------------------------------------

    def language(self, model: Any) -> Any:
        """The language model inside."""
        return model.model.language_model

    def layers(self, model: Any) -> Any:
        """The language model's decoder layers, in order."""
        return self.language(model).layers

    def rotary(self, model: Any, embeddings: Tensor, position_ids: Tensor) -> Rotary:
        """Cosines and sines at positions, in the embeddings' type."""
        return self.language(model).rotary_emb(embeddings, position_ids)

    def norm(self, model: Any, hidden: Tensor) -> Tensor:
        """The language model's last normalisation."""
        return self.language(model).norm(hidden)

    def head(self, model: Any, hidden: Tensor) -> Tensor:
        """Logits of normalised hidden states, (..., width) -> (..., vocabulary)."""
        return model.lm_head(hidden)

    def queries(self, model: Any, layer: int, hidden: Tensor, rotary: Rotary) -> Tensor:
        """Queries of a layer from its input (1, rows, width): (1, heads, rows, head size), rotated."""
        block = self.layers(model)[layer]
        attention = block.self_attn
        rows = attention.q_proj(block.input_layernorm(hidden))
        rows = rows.view(1, hidden.shape[1], -1, attention.head_dim)
        if hasattr(attention, "q_norm"):  # Qwen3 normalises each head
            rows = attention.q_norm(rows)
        return rotated(rows.transpose(1, 2), rotary)

    def attention_scale(self, model: Any, layer: int) -> float:
        """The factor of a layer's attention scores."""
        return float(self.layers(model)[layer].self_attn.scaling)


def rotated(rows: Tensor, rotary: Rotary) -> Tensor:
    """Queries (1, heads, rows, head size) at their positions; where there are fewer factors than numbers of a
    head, the further numbers stay (partial rotary embedding)."""
    cosines, sines = (part.unsqueeze(1) for part in rotary)
    size = cosines.shape[-1]
    turning, staying = rows[..., :size], rows[..., size:]
    half = size // 2
    turned = torch.cat((-turning[..., half:], turning[..., :half]), dim=-1)
    return torch.cat((turning * cosines + turned * sines, staying), dim=-1)
