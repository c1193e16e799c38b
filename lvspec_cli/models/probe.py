"""Values read from a model besides its next token: attention to the video and hidden states, for relevance,
and the log probability of a whole text.

Relevance runs no layer again: it uses the inputs of watched layers, which a pass keeps. Like a decoder's
methods, these functions expect :func:`torch.inference_mode` and return tensors on the model's own device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lvspec_cli.models.attention import causal
from lvspec_cli.models.decoder import Decoder, Pass
from lvspec_cli.types import Prompt

_ROWS = 128  # rows of logits over the vocabulary at a time


def video_attention(decoder: Decoder, passed: Pass, layer: int, rows: int) -> Tensor:
    """Share of attention that the first ``rows`` of a pass give to the video: (heads, rows), 0 to 1.

    The pass must have watched ``layer``. Where it did not tell the share, queries are computed again.
    """
    if (share := passed.shares.get(layer)) is not None:
        return share[:, :rows]
    weights, video = _attention(decoder, passed, layer, rows)
    return (weights @ video.float()).to(decoder.loaded.device)


def attention_by_video_token(decoder: Decoder, passed: Pass) -> Tensor:
    """Attention that a pass gives to each of the video's tokens, (video tokens,).

    The mean over the pass's rows, over the heads and over all layers that attend. The pass must have watched
    these.
    """
    by_layer = []
    for layer in decoder.attention_layers:
        weights, video = _attention(decoder, passed, layer, passed.rows)
        by_layer.append(weights[..., video].mean(dim=(0, 1)).to(decoder.loaded.device))
    return torch.stack(by_layer).mean(dim=0)


def hidden_states(decoder: Decoder, passed: Pass, layer: int) -> Tensor:
    """Hidden states after ``layer``, (1, rows, width). Those of the last layer are normalised for the head.

    The pass must have watched the next layer, because they are its inputs. The last layer needs no watching.
    """
    states = passed.hidden if layer == decoder.layer_count - 1 else passed.inputs[layer + 1]
    return states.to(decoder.loaded.device)


def video_states(decoder: Decoder, passed: Pass, layer: int) -> Tensor:
    """Hidden states of the video's tokens after ``layer``, (video tokens, width).

    :param passed: the result of :meth:`Decoder.encode`.
    """
    if decoder.video is None:
        raise RuntimeError("encode() comes before the video's states are asked for")
    return hidden_states(decoder, passed, layer)[0, : len(decoder.video)][decoder.video]


def lens(decoder: Decoder, states: Tensor, *, normalise: bool) -> Tensor:
    """The logit lens: the highest probability of each token over states (n, width), (vocabulary,).

    :param normalise: the states still have to be normalised.
    """
    family, model = decoder.loaded.family, decoder.loaded.model
    highest = torch.zeros(decoder.loaded.vocabulary, device=states.device)
    for rows in states.split(_ROWS):
        normalised = family.norm(model, rows) if normalise else rows
        probs = family.head(model, normalised).float().softmax(dim=-1)
        highest = torch.maximum(highest, probs.amax(dim=0))
    return highest


def _attention(decoder: Decoder, passed: Pass, layer: int, rows: int) -> tuple[Tensor, Tensor]:
    """Attention of a layer from the first rows of a pass to the prefix, (heads, rows, prefix), and where the
    video is in the prefix, bool (prefix,), both on the layer's device.

    It is computed from the layer's queries and the cached keys. The softmax covers all keys, as in a layer.
    """
    if decoder.video is None:
        raise RuntimeError("encode() comes before attention is asked for")
    family, model = decoder.loaded.family, decoder.loaded.model
    cosines, sines = passed.rotary
    device = decoder.layer_devices[layer]
    rotary = (cosines.narrow(1, 0, rows).to(device), sines.narrow(1, 0, rows).to(device))
    queries = family.queries(model, layer, passed.inputs[layer].narrow(1, 0, rows), rotary)[0]
    keys = decoder.cache.keys(layer, passed.start + rows)[0]
    groups = queries.shape[0] // keys.shape[0]
    grouped = queries.reshape(keys.shape[0], groups * rows, -1)
    scores = grouped @ keys.transpose(1, 2) * family.attention_scale(model, layer)
    scores = scores.view(-1, rows, keys.shape[1]).float()
    if rows > 1:
        scores = scores.masked_fill(~causal(passed.start, rows, scores.device), float("-inf"))
    return scores.softmax(dim=-1).narrow(2, 0, decoder.video.shape[0]), decoder.video.to(device)


@dataclass(frozen=True)
class TextScore:
    """The target's score of a text, including its end token if it has one."""

    log_probability: float  # nats, summed over the tokens
    tokens: int
    own: int  # tokens that are the target's most likely ones at their positions

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.log_probability / self.tokens


@torch.inference_mode()
def score_text(decoder: Decoder, prompt: Prompt, text: Sequence[int]) -> TextScore | None:
    """The score of one text, as token ids, after a prompt whose clip the decoder has encoded.

    It is by the model's own distribution: temperature 1, without the rules of the generation_config. An empty
    text has no score.
    """
    if not text:
        return None
    tokens = torch.tensor(text, dtype=torch.long, device=decoder.loaded.device)
    logits = decoder.logits(decoder.begin(prompt, len(text)), 1)
    total, own = _score(logits, tokens[:1])
    for rows in tokens.split(_ROWS):
        start = decoder.answered + 1
        next_tokens = tokens[start : start + len(rows)]
        if len(next_tokens):
            passed = decoder.forward(rows[: len(next_tokens)])
            part = _score(decoder.logits(passed, len(next_tokens)), next_tokens)
            total, own = total + part[0], own + part[1]
    return TextScore(total, len(text), own)


def _score(logits: Tensor, tokens: Tensor) -> tuple[float, int]:
    """Log probability of tokens (n,) under logits (n, vocabulary), and how many are the most likely ones."""
    chosen = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
    nats = (chosen - logits.logsumexp(dim=-1)).cpu().double().sum()  # devices of Macs have no doubles
    return float(nats), int((chosen >= logits.amax(dim=-1)).sum())
