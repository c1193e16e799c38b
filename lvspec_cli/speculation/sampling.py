"""Lossless speculative sampling: the draft changes the speed of an answer, not its distribution.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", algorithm 1;
Chen et al. 2023, "Accelerating Large Language Model Decoding with Speculative Sampling", theorem 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def distribution(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities (rows, vocabulary) of logits at a temperature above 0.

    A row that is not finite gives every token the same probability, because drawing from NaN makes a GPU
    unusable for the process. For the target, ``is_sound`` reports such a row.
    For a draft it only costs speed.
    """
    sound = logits.amax(dim=-1, keepdim=True).isfinite()
    return torch.softmax(torch.where(sound, logits, 0.0) / temperature, dim=-1)


def is_sound(logits: Tensor) -> Tensor:
    """1 for each row of logits that is finite, else 0, long (rows,). Single tokens at minus infinity are
    allowed: they are excluded ones."""
    return logits.amax(dim=-1).isfinite().long()  # the maximum of a row with a NaN is NaN


def draw(probs: Tensor, generator: torch.Generator) -> Tensor:
    """One token a row, long (rows,), by its probabilities (rows, vocabulary)."""
    return torch.multinomial(probs, 1, generator=generator).squeeze(1)


def accept(drafted: Tensor, draft_probs: Tensor, target_probs: Tensor, generator: torch.Generator) -> Tensor:
    """Decide on a proposal. Gives long (2,): how many drafted tokens are accepted, and the target's own token
    after them.

    Drafted token i is accepted with probability min(1, target_probs / draft_probs). After the first one that
    is not, the target's token is drawn from the residual, what the target's probabilities have beyond the
    draft's; after a full acceptance from the last row.

    :param drafted: long (gamma,), drawn from ``draft_probs``.
    :param draft_probs: (gamma, n), n up to the vocabulary; the draft never proposes the ids that are missing.
    :param target_probs: (gamma + 1, vocabulary).
    """
    gamma = drafted.shape[0]
    index = drafted.unsqueeze(1)
    uniform = torch.rand(gamma, generator=generator, device=drafted.device)
    draft_prob = draft_probs.gather(1, index).squeeze(1)
    target_prob = target_probs[:gamma].gather(1, index).squeeze(1)
    accepted = uniform * draft_prob < target_prob
    count = accepted.long().cumprod(dim=0).sum()
    residual = target_probs.clone()
    residual[:gamma, : draft_probs.shape[1]] -= draft_probs
    row = residual.index_select(0, count.view(1)).clamp_min(0)
    # Rounding can leave nothing where both agree; then the target's own row is the limit.
    row = torch.where(row.sum() > 0, row, target_probs.index_select(0, count.view(1)))
    return torch.stack((count, draw(row, generator)[0]))
