"""The draft's part of a round: propose tokens, without waiting for the host where their number is fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lvspec_cli.models.constraint import Guide
from lvspec_cli.models.decoder import Decoder, Step, run_together
from lvspec_cli.speculation.draft_length import DraftLengthPolicy
from lvspec_cli.speculation.logits import DraftRules
from lvspec_cli.speculation.sampling import distribution, draw


@dataclass(frozen=True)
class Proposal:
    """The drafted tokens of one round."""

    tokens: Tensor  # long (gamma,)
    draft_probs: Tensor | None = None  # (gamma, vocabulary), what they were drawn from; None: greedy
    observed: tuple[Any, ...] = ()  # what the length's policy keeps of each token


@dataclass
class Drafting:
    """What an answer drafts in a round: one token at least, ``most`` at most, fewer if ``policy`` says so."""

    draft: Decoder
    pending: Tensor  # tokens of the answer that the draft's cache does not have yet, long (n,)
    most: int
    vocabulary: int  # only ids below it, which the target has too, are proposed
    rules: DraftRules
    temperature: float
    generator: torch.Generator
    policy: DraftLengthPolicy[Any]
    guide: Guide | None = (
        None  # of a constrained answer: it gets every drafted token, for which the host waits
    )
    _tokens: list[Tensor] = field(default_factory=list)
    _probs: list[Tensor] = field(default_factory=list)
    _observed: list[Any] = field(default_factory=list)

    @property
    def next_step(self) -> Step:
        """The last drafted token is not run; after a full acceptance it is pending in the next round."""
        return Step(self.draft, self._tokens[-1] if self._tokens else self.pending)

    def ruled(self, logits: Tensor) -> Tensor:
        """The draft's logits of the next token by the target's rules, (1, vocabulary).

        The rules and the random numbers are on the target's device, where the draft may not be.
        """
        logits = self.rules.apply(logits[-1:, : self.vocabulary].to(self.pending.device))
        return logits if self.guide is None else self.guide.apply(logits)

    def take(self, logits: Tensor, likeliest: Tensor, observed: Any) -> bool:
        """Take the next token, by its logits (1, vocabulary). Whether another one is to be drafted."""
        if self.temperature > 0:
            self._probs.append(distribution(logits, self.temperature))
            likeliest = draw(self._probs[-1], self.generator)
        self._tokens.append(likeliest)
        self._observed.append(observed)
        can_go_on = self.guide is None or self.guide.draft(int(likeliest.item()))
        if len(self._tokens) == self.most or not can_go_on:
            return False
        if not self.policy.should_continue(self._observed):
            return False
        self.rules.add(likeliest)
        return True

    @property
    def proposal(self) -> Proposal:
        probs = torch.cat(self._probs) if self._probs else None
        return Proposal(torch.cat(self._tokens), probs, tuple(self._observed))


def propose(wanted: Sequence[Drafting]) -> list[Proposal]:
    """Draft for several answers, which have the same kind of policy and the same vocabulary.

    Each step is one pass of the draft for all of them that go on.
    """
    going = list(wanted)
    while going:
        passes = run_together([drafting.next_step for drafting in going])
        ruled = [
            drafting.ruled(drafting.draft.logits(passed, 1))
            for drafting, passed in zip(going, passes, strict=True)
        ]
        rows = torch.cat(ruled) if len(ruled) > 1 else ruled[0]
        parts = zip(going, ruled, rows.argmax(dim=-1).split(1), going[0].policy.observe(rows), strict=True)
        going = [drafting for drafting, *part in parts if drafting.take(*part)]
    return [drafting.proposal for drafting in wanted]
