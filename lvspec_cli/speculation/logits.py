"""Rules of generation_config for several rows of logits at once, as ``generate()`` applies them to one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable

import torch
from torch import Tensor

from lvspec_cli.models.generation import GenerationRules


class LogitsRules:
    """Applies the target's rules to the logits of the next tokens.

    Row i of a verification predicts the token after the answer so far and the first i drafted tokens. Its
    repetition penalty counts the prompt, the answer and these i tokens: positive logits are divided by the
    penalty, negative ones multiplied by it (Keskar et al. 2019, CTRL, section 4.1).
    """

    def __init__(self, rules: GenerationRules, vocabulary: int, device: torch.device) -> None:
        self._rules = rules
        self._penalised = rules.repetition_penalty != 1.0
        self._seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self._ends = torch.tensor(rules.end_ids, dtype=torch.long, device=device)
        self._suppressed = sorted(rules.suppressed)
        self._never = torch.tensor(self._suppressed, dtype=torch.long, device=device)
        self._not_first = torch.tensor(rules.suppressed_first, dtype=torch.long, device=device)

    def add(self, tokens: Tensor) -> None:
        """Mark tokens of the prompt or the answer, long (n,), as seen."""
        if self._penalised:
            self._seen[tokens] = True

    def apply(self, logits: Tensor, drafted: Tensor, produced: int) -> Tensor:
        """Apply the rules to logits (rows, vocabulary), which may be changed in place.

        :param drafted: long (rows - 1,), the drafted tokens before the rows after the first.
        :param produced: number of the answer's tokens before the first row.
        """
        if self._penalised:
            logits = penalise(logits, self._seen_by_row(drafted), self._rules.repetition_penalty)
        if self._never.numel():
            logits[:, self._never] = -torch.inf
        if produced == 0 and self._not_first.numel():
            logits[0, self._not_first] = -torch.inf
        early = self._rules.min_new_tokens - produced
        if early > 0:
            logits[:early, self._ends] = -torch.inf
        return logits

    def drafting(self, vocabulary: int) -> DraftRules:
        """The rules for the draft during one round, over the first ``vocabulary`` ids."""
        return DraftRules(
            self._seen[:vocabulary].clone() if self._penalised else None,
            self._rules.repetition_penalty,
            self._never[: bisect_left(self._suppressed, vocabulary)],
            kind=(self._rules, vocabulary),
        )

    def _seen_by_row(self, drafted: Tensor) -> Tensor:
        count = drafted.shape[0]
        if not count:
            return self._seen.unsqueeze(0)
        # Counts, not flags: the second row of a token that is drafted twice must not clear its first.
        earlier = torch.ones(count + 1, count, dtype=torch.int32, device=drafted.device).tril(-1)
        counts = torch.zeros(count + 1, self._seen.shape[0], dtype=torch.int32, device=drafted.device)
        counts.scatter_add_(1, drafted.expand(count + 1, -1), earlier)
        return self._seen | (counts > 0)


class DraftRules:
    """The target's rules, applied to the draft in one round. The target would reject tokens against them."""

    def __init__(self, seen: Tensor | None, penalty: float, never: Tensor, kind: Hashable) -> None:
        """
        :param kind: rules of one kind differ in the tokens that were seen alone.
        """
        self.kind = kind
        self._seen = seen
        self._penalty = penalty
        self._never = never

    def apply(self, logits: Tensor) -> Tensor:
        """Apply the rules to logits (1, vocabulary) of the next token, which may be changed in place."""
        if self._seen is not None:
            logits = penalise(logits, self._seen, self._penalty)
        if self._never.numel():
            logits.index_fill_(1, self._never, -torch.inf)
        return logits

    def add(self, token: Tensor) -> None:
        """Mark one drafted token, long (1,), as seen."""
        if self._seen is not None:
            self._seen.index_fill_(0, token, True)

    def copied(self) -> DraftRules:
        """The same rules in memory of their own."""
        seen = None if self._seen is None else self._seen.clone()
        return DraftRules(seen, self._penalty, self._never.clone(), self.kind)

    def load(self, other: DraftRules) -> None:
        """See the tokens as seen that rules of the same kind do."""
        if self._seen is not None and other._seen is not None:
            self._seen.copy_(other._seen)


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Apply the repetition penalty (Keskar et al. 2019). ``seen``: bool by token, broadcast over rows."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
