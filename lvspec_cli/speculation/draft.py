"""The draft's side of a round: propose tokens without waiting for the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lvspec_cli.models.decoder import Decoder
from lvspec_cli.speculation.logits import DraftRules
from lvspec_cli.speculation.sampling import distribution, draw


@dataclass(frozen=True)
class Proposal:
    """Drafted tokens, long (gamma,), and when sampling what they were drawn from, (gamma, vocabulary)."""

    tokens: Tensor
    chances: Tensor | None = None


def propose(
    draft: Decoder,
    pending: Tensor,
    gamma: int,
    vocabulary: int,
    rules: DraftRules,
    temperature: float,
    generator: torch.Generator,
) -> Proposal:
    """Draft ``gamma`` tokens (1 or more) behind ``pending``, the answer's tokens not yet in the cache.

    Only ids below ``vocabulary``, which the target has too, are proposed. Tokens stay on the device.
    The last drafted token is not run: after a full acceptance it is pending in the next round.
    """
    tokens: list[Tensor] = []
    chances: list[Tensor] = []
    step = pending
    while True:
        # The rules and the random numbers are on the target's device, where the draft may not be.
        logits = rules.apply(draft.logits(draft.forward(step), 1)[:, :vocabulary].to(step.device))
        if temperature > 0:
            chances.append(distribution(logits, temperature))
            step = draw(chances[-1], generator)
        else:
            step = logits.argmax(dim=-1)
        tokens.append(step)
        if len(tokens) == gamma:
            return Proposal(torch.cat(tokens), torch.cat(chances) if chances else None)
        rules.add(step)
