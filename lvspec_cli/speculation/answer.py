"""One answer while it is decoded: its state, and what one round does to it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from lvspec_cli.models.constraint import Guide
from lvspec_cli.models.decoder import QUESTION_ROWS, Decoder, Pass
from lvspec_cli.models.load import LoadedModel, proposed_vocabulary, shared_vocabulary
from lvspec_cli.models.probe import attention_by_video_token
from lvspec_cli.models.together import Step, run_together
from lvspec_cli.models.words import TokenSets
from lvspec_cli.speculation.draft import Drafting, Proposal, propose
from lvspec_cli.speculation.draft_length import policy_for
from lvspec_cli.speculation.logits import LogitsRules
from lvspec_cli.speculation.near_ties import first_near_tie, is_near_tie, is_steady
from lvspec_cli.speculation.relevance import Relevance
from lvspec_cli.speculation.repetition import is_looping
from lvspec_cli.speculation.sampling import accept, distribution, draw, is_sound
from lvspec_cli.speculation.verify import (
    Evidence,
    History,
    Verdict,
    Verification,
    check_sound,
    is_exact,
    judge,
    may_vary,
    read,
    reduce,
)
from lvspec_cli.types import (
    Constraint,
    DecodeSettings,
    DecodeStats,
    FinishReason,
    Mode,
    PairPrompts,
    Round,
    RuleSettings,
    TokenKind,
)

# Exact mode, written as settings of the rule.
EXACT_RULE = RuleSettings(anchor_margin=0.0, filler_margin=0.0, shift_window=0)


class Answer:
    """One answer, by decoders whose caches hold the prefixes of the prompts.

    Between rounds, the target's cache holds all tokens of the answer but the last one. The draft's cache may
    hold fewer. The missing (pending) tokens are run at the start of the next round. So mode ar is the same
    loop without a draft; and after a full acceptance the draft has to run one token more.
    """

    def __init__(
        self,
        target: Decoder,
        draft: Decoder | None,
        words: TokenSets,
        settings: DecodeSettings,
        relevance: Relevance | None,
        *,
        slots: int = 1,
    ) -> None:
        """
        :param slots: how many answers are decoded at the same time.
        """
        self._words, self._settings, self._relevance = words, settings, relevance
        self._target, self._draft = target, draft if settings.mode != Mode.AR else None
        loaded, drafting = target.loaded, self._draft.loaded if self._draft else None
        shared = shared_vocabulary(loaded, drafting)
        self._proposed_vocabulary = proposed_vocabulary(loaded, drafting)
        self.device = loaded.device
        self._rule = settings.rule if settings.is_loose else EXACT_RULE
        self._is_exact = is_exact(self._rule)
        constraint = settings.constraint
        self._guide = None if constraint is None else _guide(loaded, constraint, shared)
        self._generator = torch.Generator(self.device).manual_seed(settings.seed)
        self._history = History()
        # A constrained answer ends where its grammar does.
        rules = replace(loaded.generation, min_new_tokens=0) if constraint else loaded.generation
        self._logits = LogitsRules(rules, loaded.vocabulary, self.device)
        self._policy = policy_for(settings, self._rule, loaded, drafting, slots)
        self.settles_near_ties = self._settles(settings, loaded, drafting)
        self._is_by_itself = False  # the round that is being decoded
        self.fallback = False
        self.tokens: list[int] = []
        self.kinds: list[TokenKind] = []
        self._newest, self._told = self.no_tokens, 0  # the last of them, on the device, and how many it knows
        self.tally = Tally()
        self.finish: FinishReason | None = None

    def _settles(self, settings: DecodeSettings, target: LoadedModel, draft: LoadedModel | None) -> bool:
        """Whether a choice that rounding may decide is made by numbers that no other answer can change."""
        models = [target] if draft is None or self._is_exact else [target, draft]
        is_drawn = settings.temperature > 0 or settings.vary > 0
        return not is_drawn and all(model.full_precision for model in models)

    @torch.inference_mode()
    def begin(self, prompts: PairPrompts) -> Round:
        """Run the question, and take the target's first token."""
        room = self._settings.max_new_tokens + self._settings.greatest_gamma + 1
        guided = self._draft is not None and self._settings.draft_is_guided
        watch = self._target.attention_layers if guided else ()
        reads = self._draft is not None and self._draft.reads_target
        follow = self._draft.follow if self._draft is not None and reads else None
        passed = self._target.begin(prompts.target, room, watch, follow)
        if self._draft is not None and prompts.draft is not None:
            if guided:
                scores = attention_by_video_token(self._target, passed)
                # Anew for each question, so the question is run with it.
                keep = self._settings.draft_keep
                self._draft.encode(prompts.draft, keep=keep, scores=scores, with_question=True)
            self._draft.begin(prompts.draft, room)
        self._logits.add(prompts.target.input_ids[0].to(self.device))
        logits = self._rules_applied(self._target.logits(passed, 1), self.no_tokens)
        token, sound = torch.cat((self._choose(logits), is_sound(logits))).tolist()
        check_sound((sound,))
        self._take(Verdict(0, (token,), (TokenKind.TARGET,), (0.0,)))
        _tell([self])
        return Round((token,), (TokenKind.TARGET,), target=(token,), prefill=True, fallback=self.fallback)

    @property
    def gamma(self) -> int:
        """Gamma of the settings; for ``auto`` the most tokens that a round has drafted; 0 in mode ar."""
        gamma = self._settings.gamma
        if self._settings.mode == Mode.AR:
            return 0
        return self.tally.widest if gamma == "auto" else gamma

    @property
    def speculates(self) -> bool:
        """Whether rounds are drafted, and not decoded by the target alone."""
        return self._draft is not None

    @property
    def captures(self) -> int:
        """How many times a pass of its models was captured so far."""
        loaded = [decoder.loaded for decoder in (self._target, self._draft) if decoder is not None]
        return sum(model.workspace.captures for model in loaded if model.workspace is not None)

    def fall_back(self) -> None:
        """Decode the rest of the answer without the draft."""
        self._draft, self.fallback = None, True

    @torch.inference_mode()
    def time_step(self) -> float:
        """Measure the seconds of one step of the target alone. The answer and the caches stay as they are."""
        began = time.perf_counter()
        passed = self._target.forward(self._pending(self._target))
        logits = self._target.logits(passed, 1)
        self._logits.apply(logits, self.no_tokens, produced=len(self.tokens)).argmax(dim=-1).item()
        self._target.rollback(len(self.tokens) - 1)
        return time.perf_counter() - began

    def round(self) -> Round:
        """One draft, one verification, one acceptance. With a fixed gamma, one transfer to the host."""
        return decode_rounds([self])[0]

    def drafting(self) -> Drafting | None:
        """What a round drafts; None: nothing."""
        # The target adds one token of its own in every round.
        room = self._settings.max_new_tokens - len(self.tokens) - 1
        most = min(self._settings.greatest_gamma, room)
        if self._draft is None or most < 1:
            return None
        return Drafting(
            self._draft,
            # The target may say an id of its untrained padding, which a smaller draft has no row for.
            self._pending(self._draft).clamp_max(self._draft.loaded.vocabulary - 1),
            most,
            self._proposed_vocabulary,
            self._logits.drafting(self._proposed_vocabulary),
            self._settings.temperature,
            self._generator,
            self._policy,
            self._guide,
            finds_near_ties=self.settles_near_ties and not self._is_exact,
            by_itself=self._is_by_itself,
        )

    def verification(self, proposal: Proposal) -> Step:
        """The target's pass of a round."""
        gamma = proposal.tokens.shape[0]
        watch = self._relevance.watch if self._relevance and gamma else ()
        pending = self._pending(self._target)
        tokens = torch.cat((pending, proposal.tokens)) if gamma else pending
        return Step(self._target, tokens, gamma + 1, watch, self._is_by_itself)

    def verified(self, proposal: Proposal, passed: Pass) -> tuple[Verification, Tensor | None]:
        """What a verification gives, and numbers of what is drawn at random or was drafted, float32 (n,)."""
        gamma = proposal.tokens.shape[0]
        if self._draft is not None:
            self._draft.follow(passed)
        logits = self._target.logits(passed, gamma + 1)
        logits = self._rules_applied(logits, proposal.tokens)
        if self._settings.temperature > 0:
            return Verification(logits, proposal.tokens), self._drawn(proposal, logits)
        scores = None
        if self._relevance and gamma:
            scores = self._relevance.score(passed, proposal.tokens, logits[:gamma])
        drawn = None if proposal.greatest is None else proposal.greatest.flatten()
        if self._settings.vary > 0:
            drawn = self._second_choice(logits)
        return Verification(logits, proposal.tokens, scores), drawn

    def take(self, proposal: Proposal, evidence: Evidence, drawn: Sequence[float]) -> Round:
        """Accept tokens by what :meth:`verified` gave.

        In float32 a round in which rounding may decide is decoded once more, by itself, after passes over the
        answer that nothing but its tokens decide. In exact modes that is the target's next token alone.
        """
        if self.settles_near_ties and not self._is_by_itself:
            if self._is_exact:
                evidence = self._with_own_choice(proposal, evidence)
            elif any(map(is_near_tie, drawn[::2], drawn[1::2])) or not self._is_steady(evidence):
                return self._by_itself()
        gamma = proposal.tokens.shape[0]
        if self._settings.temperature > 0:
            evidence, verdict = replace(evidence, gap=()), _sampled(evidence, *map(int, drawn))
        else:
            if self._guide is not None:
                evidence = replace(evidence, bound=self._guide.bound(evidence.target))
            verdict = judge(evidence, self._rule, self._words, self._history)
            if self._settings.vary > 0:
                second, gap, coin = drawn
                verdict = self._varied(verdict, int(second), gap, coin)
        check_sound(evidence.sound[: verdict.accepted + 1])
        added = self._take(verdict)
        loss = sum(verdict.losses[:added])
        self.tally.add(gamma, verdict.kinds[:added], loss)
        exact = verdict.kinds.count(TokenKind.EXACT)
        self._policy = self._policy.after(proposal.observed, verdict.accepted, exact, added)
        self.settle()
        return Round(
            tokens=verdict.tokens[:added],
            kinds=verdict.kinds[:added],
            drafted=evidence.drafted,
            target=evidence.target,
            relevance=evidence.relevance,
            gap=evidence.gap,
            loss=loss,
            fallback=self.fallback,
        )

    def _rules_applied(self, logits: Tensor, drafted: Tensor) -> Tensor:
        """The target's logits by the rules of its generation_config, and of the answer's constraint."""
        logits = self._logits.apply(logits, drafted, produced=len(self.tokens))
        return logits if self._guide is None else self._guide.apply(logits)

    def _is_steady(self, evidence: Evidence) -> bool:
        return is_steady(evidence, self._rule, self._words, self._history)

    def _with_own_choice(self, proposal: Proposal, evidence: Evidence) -> Evidence:
        """Exact evidence up to the first near tie that counts, where the target chooses by itself."""
        at = first_near_tie(evidence)
        if at is None or at >= len(judge(evidence, self._rule, self._words, self._history).tokens):
            return evidence
        self._target.restart()
        tokens = _sent([*self.tokens, *evidence.drafted[:at]], self.device)
        for piece in tokens.split(QUESTION_ROWS):
            passed = self._target.forward(piece, by_itself=True)
        rows = self._target.logits(passed, 1).repeat(len(evidence.target), 1)
        own = int(self._rules_applied(rows, proposal.tokens)[at].argmax().item())
        # What was drafted behind it is not looked at.
        return replace(
            evidence,
            drafted=evidence.drafted[:at],
            target=(*evidence.target[:at], own),
            gap=evidence.gap[:at],
        )

    def _by_itself(self) -> Round:
        """The round once more, where the caches hold the answer as passes of its own give it."""
        if self._guide is not None:
            self._guide.take(())  # which forgets what was drafted
        self._is_by_itself = True
        try:
            self._read_again()
            return decode_rounds([self])[0]
        finally:
            self._is_by_itself = False

    def _read_again(self) -> None:
        """Run the answer's tokens, all but the last, behind the prompt."""
        pieces = _sent(self.tokens[:-1], self.device).split(QUESTION_ROWS) if self.tokens[1:] else ()
        if self._draft is not None:
            self._draft.restart()
        self._target.restart()
        for piece in pieces:
            passed = self._target.forward(piece, by_itself=True)
            if self._draft is not None:
                self._draft.follow(passed)
        if self._draft is not None and not self._draft.reads_target:
            for piece in pieces:
                self._draft.forward(piece, by_itself=True)

    def settle(self) -> None:
        """Remove from the caches what is not part of the answer."""
        for decoder in (self._target, self._draft):
            if decoder is not None:
                decoder.rollback(len(self.tokens) - 1)

    def drop_round(self) -> bool:
        """Forget a round that failed. Whether the answer can go on: a prediction layer lost what it read."""
        self.settle()
        if self._guide is not None:
            self._guide.take(())  # which forgets what was drafted
        return self._draft is None or not self._draft.reads_target

    def _drawn(self, proposal: Proposal, logits: Tensor) -> Tensor:
        """Lossless speculative sampling: how many drafted tokens are accepted, and the target's own token."""
        target_probs = distribution(logits, self._settings.temperature)
        if proposal.draft_probs is None:
            token = draw(target_probs, self._generator)
            decision = torch.cat((torch.zeros_like(token), token))
        else:
            decision = accept(proposal.tokens, proposal.draft_probs, target_probs, self._generator)
        return decision.float()

    def _second_choice(self, logits: Tensor) -> Tensor:
        """For a step of the control: the target's second choice, its gap in nats, and a coin from 0 to 1."""
        best = logits[-1].topk(2)
        coin = torch.rand((), generator=self._generator, device=self.device)
        gap = best.values[0] - best.values[1]
        return torch.stack([part.float() for part in (best.indices[1], gap, coin)])

    def _varied(self, verdict: Verdict, second: int, gap: float, coin: float) -> Verdict:
        """A step of the control: by the coin the target's second choice, if it may be said."""
        (own,) = verdict.tokens
        if coin < 0.5 and may_vary(own, second, gap, self._settings.vary, self._words, self._history):
            return Verdict(0, (second,), (TokenKind.FILLER,), (gap,))
        return verdict

    def _choose(self, logits: Tensor) -> Tensor:
        temperature = self._settings.temperature
        if temperature > 0:
            return draw(distribution(logits, temperature), self._generator)
        return logits.argmax(dim=-1)

    def _take(self, verdict: Verdict) -> int:
        """Add tokens until one of them finishes the answer. Gives how many were added."""
        before = len(self.tokens)
        for token, kind in zip(verdict.tokens, verdict.kinds, strict=True):
            self.tokens.append(token)
            self.kinds.append(kind)
            self.finish = self._finish_at(token)
            if self.finish is not None:
                break
        added = len(self.tokens) - before
        if self._guide is not None:
            self._guide.take(verdict.tokens[:added])
        self._history = self._history.extended(
            verdict.tokens[:added], verdict.kinds[:added], verdict.losses[:added], self._rule
        )
        return added

    def _finish_at(self, token: int) -> FinishReason | None:
        if token in self._words.ends:
            return FinishReason.STOP
        if len(self.tokens) >= self._settings.max_new_tokens:
            return FinishReason.LENGTH
        if self._settings.repetition_guard and is_looping(self.tokens):
            return FinishReason.REPETITION
        return None

    @property
    def untold(self) -> list[int]:
        """The tokens of which the device has not been told yet."""
        return self.tokens[self._told :]

    def tell(self, newest: Tensor) -> None:
        """Tell the device of them: they are there, long (n,)."""
        self._newest, self._told = newest, len(self.tokens)
        self._logits.add(newest)

    @property
    def no_tokens(self) -> Tensor:
        """Long (0,)."""
        return torch.zeros(0, dtype=torch.long, device=self.device)

    def _pending(self, decoder: Decoder) -> Tensor:
        """The answer's tokens that are not in a decoder's cache yet."""
        first = decoder.answered - (self._told - len(self._newest))
        return self._newest[first:] if first >= 0 else _sent(self.tokens[decoder.answered :], self.device)


def _guide(target: LoadedModel, constraint: Constraint, vocabulary: int) -> Guide:
    return Guide(
        target.grammar_tokens,
        constraint,
        target.generation.end_ids,
        vocabulary=vocabulary,
        logits=target.vocabulary,
        device=target.device,
    )


@torch.inference_mode()
def decode_rounds(answers: Sequence[Answer]) -> list[Round]:
    """One round of each answer: their draft steps together, one verification and one transfer for all.

    An answer's round does not depend on the others, but for the rounding of passes with more rows.
    """
    drafting = [answer.drafting() for answer in answers]
    proposed = iter(propose([wanted for wanted in drafting if wanted is not None]))
    proposals = [
        Proposal(answer.no_tokens) if wanted is None else next(proposed)
        for answer, wanted in zip(answers, drafting, strict=True)
    ]
    passes = run_together(
        [answer.verification(proposal) for answer, proposal in zip(answers, proposals, strict=True)]
    )
    every = [
        (answer, proposal, *answer.verified(proposal, passed))
        for answer, proposal, passed in zip(answers, proposals, passes, strict=True)
    ]
    is_rounded = any(answer.settles_near_ties for answer in answers)
    found = _on_host(
        [verified for *_, verified, _ in every], [drawn for *_, drawn in every], is_rounded=is_rounded
    )
    try:
        return [
            answer.take(
                proposal,
                read(positions, is_scored=verified.relevance is not None, is_rounded=is_rounded),
                numbers,
            )
            for (answer, proposal, verified, _), (positions, numbers) in zip(every, found, strict=True)
        ]
    finally:  # also of what the others have taken where one fails
        _tell(answers)


def _tell(answers: Sequence[Answer]) -> None:
    """Tell the device, in one copy, of the tokens that answers have taken."""
    sent = _sent([token for answer in answers for token in answer.untold], answers[0].device)
    for answer, newest in zip(answers, sent.split([len(answer.untold) for answer in answers]), strict=True):
        answer.tell(newest)


def _sent(tokens: Sequence[int], device: torch.device) -> Tensor:
    """Long (n,), to a GPU from pinned memory: the host need not wait for what the GPU has to do before."""
    pinned = device.type == "cuda"
    return torch.tensor(tokens, dtype=torch.long, pin_memory=pinned).to(device, non_blocking=pinned)


def _on_host(
    verified: Sequence[Verification], drawn: Sequence[Tensor | None], *, is_rounded: bool
) -> Iterator[tuple[list[list[float]], list[float]]]:
    """The numbers of each verification's positions (:func:`reduce`), and those that were drawn for it, by one
    transfer."""
    table = reduce(verified, is_rounded=is_rounded)
    numbers = iter(torch.cat([table.flatten(), *(part for part in drawn if part is not None)]).tolist())
    positions = [list(islice(numbers, table.shape[1])) for _ in range(table.shape[0])]
    places = iter(positions)
    for one, part in zip(verified, drawn, strict=True):
        yield list(islice(places, one.positions)), list(islice(numbers, 0 if part is None else len(part)))


def _sampled(evidence: Evidence, count: int, own: int) -> Verdict:
    """The verdict of a round that was sampled.

    :param count: drafted tokens that are accepted.
    :param own: the target's token after them.
    """
    kinds = (TokenKind.EXACT,) * count
    # Tokens after an accepted end token are cut off later, in Answer._take.
    tokens = (*evidence.drafted[:count], own)
    return Verdict(count, tokens, (*kinds, TokenKind.TARGET), (0.0,) * (count + 1))


class Tally:
    """Counts rounds, drafted tokens, accepted tokens by kind, and what the loose ones gave up."""

    def __init__(self) -> None:
        self._rounds = 0
        self._drafted = 0
        self.widest = 0  # most drafted tokens of a round
        self._kinds: Counter[TokenKind] = Counter()
        self._loss = 0.0  # nats

    def add(self, drafted: int, kinds: Iterable[TokenKind], loss: float) -> None:
        """Count one round: its drafted tokens, the kinds of the tokens that it added, and their loss."""
        self._rounds += 1
        self.widest = max(self.widest, drafted)
        self._drafted += drafted
        self._kinds.update(kinds)
        self._loss += loss

    def stats(
        self, output_tokens: int, gamma: int, fallback: bool, prefill_seconds: float, decode_seconds: float
    ) -> DecodeStats:
        return DecodeStats(
            output_tokens=output_tokens,
            rounds=self._rounds,
            drafted=self._drafted,
            accepted_exact=self._kinds[TokenKind.EXACT],
            accepted_filler=self._kinds[TokenKind.FILLER],
            accepted_shift=self._kinds[TokenKind.SHIFT],
            loss=self._loss,
            gamma=gamma,
            fallback=fallback,
            prefill_seconds=prefill_seconds,
            decode_seconds=decode_seconds,
        )
