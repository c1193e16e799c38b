"""How a model scores a text: one teacher-forced pass behind the clip and the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lvspec_cli.models.decoder import Decoder
from lvspec_cli.types import Prompt

_ROWS = 128  # rows of logits over the vocabulary at a time


@dataclass(frozen=True)
class TextScore:
    """What the target thinks of a text, the end token included where there is one."""

    log_probability: float  # nats, summed over the tokens
    tokens: int
    own: int  # tokens that the target itself finds likeliest where they stand

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.log_probability / self.tokens


@torch.inference_mode()
def score_text(decoder: Decoder, prompt: Prompt, text: Sequence[int]) -> TextScore | None:
    """The score of one text, as token ids, behind a prompt whose clip the decoder has encoded.

    The model's own distribution counts: temperature 1, and no rule of a generation_config. An empty text has
    no score.
    """
    if not text:
        return None
    tokens = torch.tensor(text, dtype=torch.long, device=decoder.loaded.device)
    logits = decoder.logits(decoder.begin(prompt, len(text)), 1)
    total, own = _weigh(logits, tokens[:1])
    for rows in tokens.split(_ROWS):
        place = decoder.answered
        wanted = tokens[place + 1 : place + 1 + len(rows)]
        if len(wanted):
            passed = decoder.forward(rows[: len(wanted)])
            part = _weigh(decoder.logits(passed, len(wanted)), wanted)
            total, own = total + part[0], own + part[1]
    return TextScore(total, len(text), own)


def _weigh(logits: Tensor, wanted: Tensor) -> tuple[float, int]:
    """Log probability of tokens (n,) under logits (n, vocabulary), and how many are the likeliest."""
    chosen = logits.gather(1, wanted.unsqueeze(1)).squeeze(1)
    nats = (chosen - logits.logsumexp(dim=-1)).double().sum()
    return float(nats), int((chosen >= logits.amax(dim=-1)).sum())
