"""The draft's part of a round: propose tokens, without waiting for the host where their number is fixed.

Where passes are captured, the draft runs ahead of what the host knows: several steps are launched, then the
host looks at what came of them, and what it would not have drafted is cut. So a round is what it is where the
host looks at every token.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lvspec_cli.models.constraint import Guide
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.steps import CHAIN_LENGTHS
from lvspec_cli.models.together import Step, run_together
from lvspec_cli.speculation.draft_length import DraftLengthPolicy, taken
from lvspec_cli.speculation.logits import DraftRules
from lvspec_cli.speculation.sampling import distribution, draw


@dataclass(frozen=True)
class Proposal:
    """The drafted tokens of one round."""

    tokens: Tensor  # long (gamma,)
    draft_probs: Tensor | None = None  # (gamma, vocabulary), what they were drawn from; None: greedy
    observed: tuple[Any, ...] = ()  # what the length's policy keeps of each token
    greatest: Tensor | None = None  # (gamma, 2), the two greatest logits at each token; None: unknown


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
    finds_near_ties: bool = False  # then what is drafted tells how near its second choices were
    by_itself: bool = False  # see ``Step``
    _tokens: list[Tensor] = field(default_factory=list)
    greatest: list[Tensor] = field(default_factory=list)  # logits of each token, (1, 2), if so
    _probs: list[Tensor] = field(default_factory=list)
    _observed: list[Any] = field(default_factory=list)

    @property
    def runs_ahead(self) -> bool:
        """Whether steps are launched before the host knows what came of the last ones."""
        is_greedy = self.guide is None and self.temperature == 0
        # Of the layers, not as it was named: cuda is not equal to cuda:0.
        return is_greedy and self.draft.runs_ahead and self.draft.layer_devices[0] == self.pending.device

    @property
    def next_step(self) -> Step:
        """The last drafted token is not run; after a full acceptance it is pending in the next round."""
        tokens = self._tokens[-1] if self._tokens else self.pending
        return Step(self.draft, tokens, by_itself=self.by_itself)

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

    def ahead(self, answers: int) -> int:
        """How many more tokens to draft, in the steps of so many answers, before the host looks at them."""
        return self.policy.ahead(self._observed, self.most - len(self._observed), answers)

    def add(self, token: Tensor) -> None:
        """Take a token, long (1,), before the host has looked at it."""
        self._tokens.append(token)
        self.rules.add(token)

    def take_observed(self, more: Sequence[Any]) -> bool:
        """Take what was observed of the tokens that were added. Whether more are to be drafted."""
        observed, goes_on = taken(self.policy, self._observed, more, self.most)
        self._observed[:] = observed
        return goes_on

    @property
    def proposal(self) -> Proposal:
        """The tokens that were observed; others were added in vain."""
        count = len(self._observed)
        probs = torch.cat(self._probs) if self._probs else None
        greatest = torch.cat(self.greatest)[:count] if self.greatest else None
        return Proposal(torch.cat(self._tokens)[:count], probs, tuple(self._observed), greatest)


@dataclass(frozen=True)
class Likeliest:
    """Chooses the draft's likeliest next token by the target's rules, on the device (``steps.Chooser``)."""

    rules: DraftRules
    vocabulary: int
    measure: Callable[[Tensor], Tensor]

    @property
    def kind(self) -> Hashable:
        return self.rules.kind, self.vocabulary, self.measure

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.rules.apply(logits[:, : self.vocabulary])
        token = logits.argmax(dim=-1)
        self.rules.add(token)
        return token, self.measure(logits)

    def copied(self) -> Likeliest:
        return replace(self, rules=self.rules.copied())

    def load(self, other: Likeliest) -> None:
        self.rules.load(other.rules)


def propose(wanted: Sequence[Drafting]) -> list[Proposal]:
    """Draft for several answers, which have the same kind of policy and the same vocabulary.

    Each step is one pass of the draft for all of them that go on.
    """
    if all(drafting.runs_ahead for drafting in wanted):
        # A chain of steps does not tell how near second choices were.
        if any(drafting.draft.is_captured_with_others or drafting.finds_near_ties for drafting in wanted):
            return _run_ahead_together(wanted)
        return [_run_ahead(drafting) for drafting in wanted]
    going = list(wanted)
    while going:
        passes = run_together([drafting.next_step for drafting in going])
        ruled = [
            drafting.ruled(drafting.draft.logits(passed, 1))
            for drafting, passed in zip(going, passes, strict=True)
        ]
        rows, policy = torch.cat(ruled) if len(ruled) > 1 else ruled[0], going[0].policy
        observed = policy.observe(policy.measure(rows))
        parts = zip(going, ruled, _likeliest(going, rows), observed, strict=True)
        going = [drafting for drafting, *part in parts if drafting.take(*part)]
    return [drafting.proposal for drafting in wanted]


def _run_ahead(wanted: Drafting) -> Proposal:
    """The same proposal for one answer, with as few waits and launches as its policy allows."""
    draft, policy, behind = wanted.draft, wanted.policy, wanted.pending
    choose = Likeliest(wanted.rules, wanted.vocabulary, policy.measure)
    known = draft.answered + len(behind)
    tokens: list[Tensor] = []
    observed, goes_on = tuple[Any, ...](), True
    while goes_on:
        count, measured = policy.ahead(observed, wanted.most - len(observed)), list[Tensor]()
        for chosen, numbers in _steps(draft, behind, count, choose):
            tokens.append(chosen)
            measured.append(numbers)
        behind = tokens[-1][-1:]
        observed, goes_on = taken(policy, observed, policy.observe(torch.cat(measured)), wanted.most)
    # Also of a proposal that is accepted as a whole: the next round's first pass has the rows that it had.
    draft.rollback(known + len(observed) - 1)
    return Proposal(torch.cat(tokens)[: len(observed)], None, observed)


def _run_ahead_together(wanted: Sequence[Drafting]) -> list[Proposal]:
    """The same of several answers, for which the host looks at the tokens of all of them together."""
    known = [drafting.draft.answered + len(drafting.pending) for drafting in wanted]
    going = list(wanted)
    while going:
        # Also for those that may not want so many: beside the others' rows, theirs cost next to nothing.
        count = max(drafting.ahead(len(going)) for drafting in going)
        measured = torch.stack([_step_together(going) for _ in range(count)], dim=1)
        numbers = going[0].policy.observe(measured.flatten())
        parts = [numbers[first : first + count] for first in range(0, len(numbers), count)]
        going = [
            drafting for drafting, part in zip(going, parts, strict=True) if drafting.take_observed(part)
        ]
    for drafting, rows in zip(wanted, known, strict=True):
        drafting.draft.rollback(rows + len(drafting.proposal.tokens) - 1)
    return [drafting.proposal for drafting in wanted]


def _step_together(going: Sequence[Drafting]) -> Tensor:
    """One more token of each answer. Returns what is measured of them, (answers,)."""
    passes = run_together([drafting.next_step for drafting in going])
    ruled = [
        drafting.ruled(drafting.draft.logits(passed, 1))
        for drafting, passed in zip(going, passes, strict=True)
    ]
    rows = torch.cat(ruled)
    for drafting, token in zip(going, _likeliest(going, rows), strict=True):
        drafting.add(token)
    return going[0].policy.measure(rows)


def _likeliest(going: Sequence[Drafting], rows: Tensor) -> Sequence[Tensor]:
    """Each answer's likeliest next token, long (1,), by its row of logits, (answers, vocabulary).

    Where near ties are to be found, an answer keeps the row's two greatest logits.
    """
    if not any(drafting.finds_near_ties for drafting in going):
        return rows.argmax(dim=-1).split(1)
    two = rows.topk(2, dim=-1)
    for drafting, greatest in zip(going, two.values.split(1), strict=True):
        drafting.greatest.append(greatest)
    return two.indices[:, 0].split(1)


def _steps(draft: Decoder, behind: Tensor, count: int, choose: Likeliest) -> Iterator[tuple[Tensor, Tensor]]:
    """Launch so many steps of the draft behind tokens: several at once where such a chain is captured.

    Gives the tokens that it chooses, and what is measured of them.
    """
    while count:
        lengths = (length for length in CHAIN_LENGTHS if length <= count and len(behind) == 1)
        length = max(lengths, default=1)
        chain = draft.chain(behind, length, choose) if length > 1 else None
        for _ in range(1 if chain else length):
            chosen, measured = chain or choose(draft.logits(draft.forward(behind), 1))
            behind = chosen[-1:]
            yield chosen, measured
        count -= length
