"""The draft's part of a round: propose tokens, without waiting for the host where their number is fixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvspec_cli.models.constraint import Guide
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.speculation.draft_length import DraftLengthPolicy
from lvspec_cli.speculation.logits import DraftRules
from lvspec_cli.speculation.sampling import distribution, draw


@dataclass(frozen=True)
class Proposal:
    """The drafted tokens of one round."""

    tokens: Tensor  # long (gamma,)
    draft_probs: Tensor | None = None  # (gamma, vocabulary), what they were drawn from; None: greedy
    observed: tuple[Any, ...] = ()  # what the length's policy keeps of each token


def propose(
    draft: Decoder,
    pending: Tensor,
    most: int,
    vocabulary: int,
    rules: DraftRules,
    temperature: float,
    generator: torch.Generator,
    policy: DraftLengthPolicy[Any],
    guide: Guide | None = None,
) -> Proposal:
    """Draft tokens: one at least, ``most`` at most, and fewer if ``policy`` says so.

    The last drafted token is not run; after a full acceptance it is pending in the next round.

    :param pending: tokens of the answer that the draft's cache does not have yet, long (n,).
    :param vocabulary: only ids below it, which the target has too, are proposed.
    :param guide: of a constrained answer. It gets every drafted token, so that the host waits for each.
    """
    tokens: list[Tensor] = []
    draft_probs: list[Tensor] = []
    observed: list[Any] = []
    step = pending
    while True:
        # The rules and the random numbers are on the target's device, where the draft may not be.
        logits = rules.apply(draft.logits(draft.forward(step), 1)[:, :vocabulary].to(step.device))
        if guide is not None:
            logits = guide.apply(logits)
        if temperature > 0:
            draft_probs.append(distribution(logits, temperature))
            step = draw(draft_probs[-1], generator)
        else:
            step = logits.argmax(dim=-1)
        tokens.append(step)
        observed.append(policy.observe(logits))
        can_go_on = guide is None or guide.draft(int(step.item()))
        if len(tokens) == most or not can_go_on or not policy.should_continue(observed):
            probs = torch.cat(draft_probs) if draft_probs else None
            return Proposal(torch.cat(tokens), probs, tuple(observed))
        rules.add(step)
