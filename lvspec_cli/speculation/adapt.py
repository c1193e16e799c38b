"""Gamma ``auto``: whether to draft one more token, from the draft's doubt and from what a round costs.

A round adds the drafted tokens that are kept and one of the target's own, so a token drafted behind others
adds the chance that all up to it are kept (Leviathan et al. 2023, "Fast Inference from Transformers via
Speculative Decoding", arXiv 2211.17192, section 3.1, who take the chance of each as the same). Here it is the
draft's own doubt that tells them apart: how much of it comes true is counted. Most tokens for what all rounds
cost come of drafting on while the next token's chance, for what it costs, is above the pace so far
(Dinkelbach 1967, "On Nonlinear Fractional Programming"). No clock is read: the same answer has the same
rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lvspec_cli.speculation.verify import is_exact
from lvspec_cli.types import DecodeSettings, RoundCosts, RuleSettings

if TYPE_CHECKING:
    from lvspec_cli.models.load import LoadedModel

# What is expected before anything was counted, and how much that weighs: as on the bundled pair.
EXACT_TRUTH, LOOSE_TRUTH = 1.0, 0.25  # share of the draft's doubt that comes true
DOUBT_WEIGHT = 2.0  # refusals
PACE = 1.5  # tokens a step
PACE_WEIGHT = 5.0  # steps
# On an H100, which reads 3.0 TB/s: 0.13 ms of small kernels a layer, 0.65 ms of the host (docs/real-size.md).
CAPTURED_LAYER, EAGER_LAYER = 0.4e9, 2.0e9  # bytes
FADING = 0.9  # what counts weigh when one more round is over


@dataclass(frozen=True)
class Guide:
    """What gamma ``auto`` goes by at one place of an answer. Counts fade from round to round.

    ``doubted``: the sum of the draft's doubts, one less its probability of a token, of the tokens that were
    judged; ``refused``: how many of those the target did not want. ``steps``: what the rounds cost, and
    ``tokens`` what they added.
    """

    costs: RoundCosts
    most: int  # tokens a round
    truth: float = EXACT_TRUTH
    refused: float = 0.0
    doubted: float = 0.0
    tokens: float = 0.0
    steps: float = 0.0

    def kept(self, likely: float) -> float:
        """Chance that a drafted token is kept, of the probability that the draft gives it."""
        share = (DOUBT_WEIGHT * self.truth + self.refused) / (DOUBT_WEIGHT + self.doubted)
        return max(0.0, 1.0 - share * (1.0 - likely))

    @property
    def pace(self) -> float:
        """Tokens for what a step of the target alone costs."""
        return (PACE_WEIGHT * PACE + self.tokens) / (PACE_WEIGHT + self.steps)

    def goes_on(self, likely: Sequence[float]) -> bool:
        """Whether to draft another token behind those that the draft gave these probabilities."""
        if len(likely) >= self.most:
            return False
        chance = 1.0
        for each in likely:
            chance *= self.kept(each)
        return chance > self.pace * (self.costs.draft + self.costs.row)

    def after(self, likely: Sequence[float], kept: int, tokens: int) -> Guide:
        """The guide after a round that kept so many of its drafted tokens and added ``tokens``.

        Those behind a refused one were not judged and do not count.
        """
        doubts = [1.0 - each for each in likely[: kept + 1]]
        return replace(
            self,
            refused=FADING * self.refused + (1.0 if kept < len(likely) else 0.0),
            doubted=FADING * self.doubted + sum(doubts),
            tokens=FADING * self.tokens + tokens,
            steps=FADING * self.steps + round_cost(len(likely), self.costs),
        )


def round_cost(gamma: int, costs: RoundCosts) -> float:
    """A round of ``gamma`` drafted tokens, in steps of the target (docs/design.md, "What a round costs")."""
    return gamma * costs.draft + costs.verification + costs.row * (gamma + 1) + costs.overhead


def costs_of_sizes(target_bytes: float, draft_bytes: float) -> RoundCosts:
    """Where nothing was measured: a step takes as long as reading the weights of its decoder layers, and on a
    GPU what stands for its small kernels."""
    return RoundCosts(draft=draft_bytes / target_bytes)


def guide_for(
    settings: DecodeSettings, rule: RuleSettings, target: LoadedModel, draft: LoadedModel | None
) -> Guide | None:
    """The guide of an answer's first round, by the rule in force; None where gamma is fixed."""
    if settings.gamma != "auto" or draft is None:
        return None
    adaptation = settings.adaptation
    costs = adaptation.costs or costs_of_sizes(_step_bytes(target), _step_bytes(draft))
    return Guide(costs, adaptation.most, EXACT_TRUTH if is_exact(rule) else LOOSE_TRUTH)


def _step_bytes(loaded: LoadedModel) -> float:
    """Bytes of the decoder layers, as they are kept, and what a step costs beside in such bytes."""
    layers = loaded.family.layers(loaded.model)
    weights = sum(weight.numel() * weight.element_size() for layer in layers for weight in layer.parameters())
    return weights + len(layers) * beside_weights(loaded.device.type, captured=loaded.workspace is not None)


def beside_weights(device: str, *, captured: bool) -> float:
    """What a layer costs beside its weights, in bytes that are read in that time."""
    if device != "cuda":
        return 0.0
    return CAPTURED_LAYER if captured else EAGER_LAYER
