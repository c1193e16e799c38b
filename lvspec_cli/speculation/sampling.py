"""Lossless speculative sampling: a draft changes the speed of an answer, not its distribution.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", algorithm 1;
Chen et al. 2023, "Accelerating Large Language Model Decoding with Speculative Sampling", theorem 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def distribution(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities of logits (rows, vocabulary) at a temperature above 0.

    A row that is not finite gives every token the same chance: to draw from NaN ends the process's use of
    a GPU. Of the target it is found out by ``is_sound``, of a draft it costs speed and no more.
    """
    sound = logits.amax(dim=-1, keepdim=True).isfinite()
    return torch.softmax(torch.where(sound, logits, 0.0) / temperature, dim=-1)


def is_sound(logits: Tensor) -> Tensor:
    """1 for each row of logits that is finite, else 0, long (rows,). Minus infinity is a token left out."""
    return logits.amax(dim=-1).isfinite().long()  # the maximum of a row with a NaN is NaN


def draw(chances: Tensor, generator: torch.Generator) -> Tensor:
    """One token a row, long (rows,)."""
    return torch.multinomial(chances, 1, generator=generator).squeeze(1)


def accept(drafted: Tensor, proposed: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
    """Decide on a proposal; gives long (2,): how many are accepted, and the target's token behind them.

    ``drafted``: long (gamma,), drawn from ``proposed`` (gamma, up to vocabulary), whose missing ids
    count as never proposed. ``wanted``: the target's probabilities (gamma + 1, vocabulary). Token i
    is kept with probability min(1, wanted / proposed); behind the first that is not, a token is
    drawn from what the target wants beyond the proposal, behind a full acceptance from the last row.
    """
    gamma = drafted.shape[0]
    place = drafted.unsqueeze(1)
    luck = torch.rand(gamma, generator=generator, device=drafted.device)
    kept = luck * proposed.gather(1, place).squeeze(1) < wanted[:gamma].gather(1, place).squeeze(1)
    count = kept.long().cumprod(dim=0).sum()
    rest = wanted.clone()
    rest[:gamma, : proposed.shape[1]] -= proposed
    row = rest.index_select(0, count.view(1)).clamp_min(0)
    # Rounding can leave nothing where both agree; then the target's own row is the limit.
    row = torch.where(row.sum() > 0, row, wanted.index_select(0, count.view(1)))
    return torch.stack((count, draw(row, generator)[0]))
