"""The draft's side of a round: propose tokens, without waiting for the host where gamma is fixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lvspec_cli.models.decoder import Decoder
from lvspec_cli.speculation.adapt import Guide
from lvspec_cli.speculation.logits import DraftRules
from lvspec_cli.speculation.sampling import distribution, draw


@dataclass(frozen=True)
class Proposal:
    """Drafted tokens, long (gamma,), and when sampling what they were drawn from, (gamma, vocabulary).

    ``likely``: the draft's highest probability at each, where a guide asked for it.
    """

    tokens: Tensor
    chances: Tensor | None = None
    likely: tuple[float, ...] = ()


def propose(
    draft: Decoder,
    pending: Tensor,
    gamma: int,
    vocabulary: int,
    rules: DraftRules,
    temperature: float,
    generator: torch.Generator,
    guide: Guide | None = None,
) -> Proposal:
    """Draft ``gamma`` tokens (1 or more) behind ``pending``, the answer's tokens not yet in the cache.

    With a ``guide`` they may be fewer, and each takes a transfer to the host. Only ids below
    ``vocabulary``, which the target has too, are proposed. Tokens stay on the device. The last drafted
    token is not run: after a full acceptance it is pending in the next round.
    """
    tokens: list[Tensor] = []
    chances: list[Tensor] = []
    likely: list[float] = []
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
        if guide is not None:
            likely.append(logits.softmax(dim=-1).max().item())
        if len(tokens) == gamma or (guide is not None and not guide.goes_on(likely)):
            return Proposal(torch.cat(tokens), torch.cat(chances) if chances else None, tuple(likely))
        rules.add(step)
