"""How much a token depends on the video: anchors do, fillers do not.

Every scheme gives each drafted token a score from 0 (filler) to 1 (anchor), as a tensor on the target's
device. The scores come from what prefill and verification compute anyway: no scheme needs a forward pass of
its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lvspec_cli.errors import UsageError
from lvspec_cli.models.decoder import Decoder, Pass
from lvspec_cli.models.probe import hidden_states, lens, video_attention
from lvspec_cli.models.words import TokenSets
from lvspec_cli.types import RelevanceName, RuleSettings

# Schemes that read attention, and all that read layers of the target.
ATTENDING = (RelevanceName.ATTENTION, RelevanceName.RANK_ATTENTION)
LAYERED = (*ATTENDING, RelevanceName.SIMILARITY, RelevanceName.PAPER, RelevanceName.LENS)
NEAREST = 10  # of the video's tokens, in the scheme of LVSpec's paper


@dataclass(frozen=True)
class VideoStates:
    """Hidden states of the video's tokens after prefill, (video tokens, width) for each layer, from 0."""

    by_layer: Mapping[int, Tensor]


class Relevance(Protocol):
    """Scores the drafted tokens of a verification."""

    watch: frozenset[int]  # layers whose inputs the verification must keep

    def score(self, passed: Pass, drafted: Tensor, logits: Tensor) -> Tensor | None:
        """Scores (gamma,) of drafted tokens, long (gamma,). None: no token is an anchor.

        :param passed: the verification. Its row i is the position that predicts token i.
        :param logits: the target's at these positions, (gamma, vocabulary).
        """


class Attention:
    """Share of attention that the position that predicts a token gives to the video.

    The mean over the heads of a layer, and over the chosen layers.
    """

    def __init__(self, target: Decoder, layers: tuple[int, ...]) -> None:
        self._target = target
        self.watch = frozenset(layers)

    def score(self, passed: Pass, drafted: Tensor, logits: Tensor) -> Tensor:
        rows = drafted.shape[0]
        shares = [
            video_attention(self._target, passed, layer, rows).mean(dim=0) for layer in sorted(self.watch)
        ]
        return torch.stack(shares).mean(dim=0)


class Similarity:
    """Highest cosine similarity of the predicting position's hidden state to those of the video's tokens.

    A similarity below 0 counts as 0. The mean over the chosen layers.

    :param nearest: the mean of so many of the highest similarities, instead of the highest.
    """

    def __init__(
        self, target: Decoder, layers: tuple[int, ...], video: VideoStates, nearest: int = 1
    ) -> None:
        self._target, self._nearest = target, nearest
        self._video = {layer: _unit(video.by_layer[layer]) for layer in layers}
        self.watch = frozenset(layer + 1 for layer in layers)

    def score(self, passed: Pass, drafted: Tensor, logits: Tensor) -> Tensor:
        rows = drafted.shape[0]
        cosines = [
            (_unit(hidden_states(self._target, passed, layer)[0, :rows]) @ video.T)
            .topk(min(self._nearest, video.shape[0]), dim=1)
            .values.mean(dim=1)
            for layer, video in self._video.items()
        ]
        return torch.stack(cosines).mean(dim=0).float().clamp(0, 1)


class Paper:
    """LVSpec's scheme (arXiv 2604.05650): the order of a proposal's tokens by their similarity to the video.

    The similarity of a token is the mean of its ten highest cosines. Its score is the share of the proposal's
    tokens that are less similar, so that a threshold of .7 relaxes 70 % of them.
    """

    def __init__(self, target: Decoder, layers: tuple[int, ...], video: VideoStates) -> None:
        self._similarity = Similarity(target, layers, video, NEAREST)
        self.watch = self._similarity.watch

    def score(self, passed: Pass, drafted: Tensor, logits: Tensor) -> Tensor:
        return shares_below(self._similarity.score(passed, drafted, logits))


def shares_below(scores: Tensor) -> Tensor:
    """For each of the scores (n,) the share of them that are lower."""
    return (scores.unsqueeze(0) < scores.unsqueeze(1)).float().mean(dim=1)


class Rank:
    """How rare the token is: the later a tokenizer's training (BPE) made it, the higher its id.

    Rare words are what a text says, frequent ones how it says it, in any language that the tokenizer knows.
    The logarithm of the greater id of the drafted token and of the target's own, by that of the largest id.
    """

    watch: frozenset[int] = frozenset()

    def score(self, passed: Pass, drafted: Tensor, logits: Tensor) -> Tensor:
        greater = torch.maximum(drafted, logits.argmax(dim=-1)).float()
        return greater.log1p() / math.log(logits.shape[-1])


class RankAttention:
    """The mean of :class:`Rank` and of the attention to the video, in units of ``scale`` and at most 1."""

    def __init__(self, attention: Relevance, scale: float) -> None:
        self._attention, self._scale, self._rank = attention, scale, Rank()
        self.watch = attention.watch

    def score(self, passed: Pass, drafted: Tensor, logits: Tensor) -> Tensor:
        shares = self._attention.score(passed, drafted, logits)
        assert shares is not None
        return rank_and_attention(self._rank.score(passed, drafted, logits), shares, self._scale)


def rank_and_attention(rank: Tensor, shares: Tensor, scale: float) -> Tensor:
    """The scores of :class:`RankAttention`, (n,), from those of its two parts, (n,) each."""
    return (rank + (shares / scale).clamp(max=1.0)) / 2


class Lens:
    """How strongly the video's own hidden states, read through the target's head, predict the token.

    The highest probability over the video's tokens, and the mean over the chosen layers.
    """

    watch: frozenset[int] = frozenset()

    def __init__(self, target: Decoder, layers: tuple[int, ...], video: VideoStates) -> None:
        last = target.layer_count - 1
        read = [lens(target, video.by_layer[layer], normalise=layer != last) for layer in layers]
        self._probs = torch.stack(read).mean(dim=0)

    def score(self, passed: Pass, drafted: Tensor, logits: Tensor) -> Tensor:
        return self._probs[drafted]


class Lexicon:
    """A fixed list of words: function words are fillers, all other tokens are anchors."""

    watch: frozenset[int] = frozenset()

    def __init__(self, words: TokenSets, vocabulary: int, device: torch.device) -> None:
        self._anchors = torch.ones(vocabulary, device=device)
        self._anchors[torch.tensor(sorted(words.function), dtype=torch.long, device=device)] = 0.0

    def score(self, passed: Pass, drafted: Tensor, logits: Tensor) -> Tensor:
        return self._anchors[drafted]


class Random:
    """A control: each token is a filler with probability ``rate``, whatever it says."""

    watch: frozenset[int] = frozenset()

    def __init__(self, rate: float, seed: int, device: torch.device) -> None:
        self._rate = rate
        self._generator = torch.Generator(device).manual_seed(seed)

    def score(self, passed: Pass, drafted: Tensor, logits: Tensor) -> Tensor:
        uniform = torch.rand(drafted.shape[0], generator=self._generator, device=drafted.device)
        return (uniform >= self._rate).float()


class Plausible:
    """A control: no token is an anchor, so that only the margin decides."""

    watch: frozenset[int] = frozenset()

    def score(self, passed: Pass, drafted: Tensor, logits: Tensor) -> None:
        return None


def relevance_for(
    rule: RuleSettings, target: Decoder, words: TokenSets, video: VideoStates, seed: int
) -> Relevance:
    """The scheme that a rule names, prepared for one clip."""
    layers = layers_of(rule, target.layer_count, target.attention_layers)
    loaded = target.loaded
    match rule.relevance:
        case RelevanceName.ATTENTION:
            return Attention(target, layers)
        case RelevanceName.RANK_ATTENTION:
            return RankAttention(Attention(target, layers), rule.attention_scale)
        case RelevanceName.SIMILARITY:
            return Similarity(target, layers, video)
        case RelevanceName.PAPER:
            return Paper(target, layers, video)
        case RelevanceName.RANK:
            return Rank()
        case RelevanceName.LENS:
            return Lens(target, layers, video)
        case RelevanceName.LEXICON:
            return Lexicon(words, loaded.vocabulary, loaded.device)
        case RelevanceName.RANDOM:
            return Random(rule.random_rate, seed, loaded.device)
        case RelevanceName.PLAUSIBLE | RelevanceName.NONE:
            return Plausible()


def video_layers(rule: RuleSettings, layer_count: int) -> tuple[int, ...]:
    """Layers whose hidden states of the video must be kept at prefill for a rule."""
    if rule.relevance in LAYERED and rule.relevance not in ATTENDING:
        return layers_of(rule, layer_count)
    return ()


def layers_of(
    rule: RuleSettings, layer_count: int, attention_layers: Collection[int] | None = None
) -> tuple[int, ...]:
    """The rule's layers, counted from 0, ascending and without duplicates.

    :param attention_layers: those that attend, which relevance ``attention`` can read; None: all do.
    :raises UsageError: the target has no such layer, it does not attend, or the rule names none.
    """
    for layer in rule.layers:
        if not -layer_count <= layer < layer_count:
            raise UsageError(
                f"the target has {layer_count} layers, no layer {layer}", "choose others with --layer"
            )
    if not rule.layers:
        raise UsageError("relevance needs at least one layer", "name one with --layer, -1 for the last")
    layers = tuple(sorted({layer % layer_count for layer in rule.layers}))
    if rule.relevance in ATTENDING and attention_layers is not None:
        for layer in layers:
            if layer not in attention_layers:
                known = ", ".join(map(str, attention_layers))
                raise UsageError(
                    f"layer {layer} of the target attends to nothing: it keeps a state",
                    f"choose among {known} with --layer",
                )
    return layers


def _unit(states: Tensor) -> Tensor:
    return torch.nn.functional.normalize(states.float(), dim=-1)
