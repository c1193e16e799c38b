"""The rule that accepts or rejects drafted tokens (docs/design.md, "The rule"): numbers in, a verdict out.

:func:`reduce` makes a few numbers of the logits for each position, on their device. :func:`judge` decides by
these numbers, which one transfer takes to the host. Neither knows models, tokenizers or terminals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import sub

import torch
from torch import Tensor

from lvspec_cli.errors import NotFiniteError
from lvspec_cli.models.words import TokenSets
from lvspec_cli.speculation.repetition import LOOSE_PERIOD, starts_loop
from lvspec_cli.types import RelevanceName, RuleSettings, TokenKind

# How much of a difference of two logits may be rounding of float32, in units of the greatest. Between passes
# of one and of several answers by the bundled pair it is 3e-7 on average, and more than this at fewer than
# one position in 1,000 (``tools.near_ties``).
ROUNDING = 5e-6
LOSS_RESERVE = 32  # tokens whose budget is there from the beginning: an early loose token is possible, too


@dataclass(frozen=True)
class Evidence:
    """The drafted tokens of one round, and what the target says about them."""

    drafted: tuple[int, ...]  # gamma tokens
    target: tuple[int, ...]  # the target's own token at each of gamma + 1 positions
    gap: tuple[float, ...]  # gamma; log probability of the target's token minus that of the drafted one, nats
    relevance: tuple[float, ...]  # gamma, 0 to 1; empty: the rule reads no relevance
    sound: tuple[bool, ...] = ()  # whether the target's logits at a position are finite; empty: all are
    bound: tuple[bool, ...] = ()  # gamma; whether a grammar leaves no room for loose tokens; empty: nowhere
    lead: tuple[float, ...] = ()  # gamma + 1; nats from the target's token to its second choice, if asked for
    rounding: tuple[float, ...] = ()  # gamma + 1; nats of a gap or lead that may be rounding, if asked for


@dataclass(frozen=True)
class History:
    """The end of the answer so far, as far back as the rule looks."""

    tokens: tuple[int, ...] = ()
    loose: tuple[bool, ...] = ()  # for each token, whether it was accepted and is not the target's own
    count: int = 0  # tokens of the whole answer so far
    loss: float = 0.0  # nats that its loose tokens gave up

    def extended(
        self, tokens: Sequence[int], kinds: Sequence[TokenKind], losses: Sequence[float], rule: RuleSettings
    ) -> History:
        """The history with further tokens, cut to what ``rule`` needs. ``losses``: nats, one a token."""
        loose = (*self.loose, *(kind in (TokenKind.FILLER, TokenKind.SHIFT) for kind in kinds))
        reach = max(rule.loose_window, rule.max_loose_run)
        return History(
            (*self.tokens, *tokens)[-2 * LOOSE_PERIOD :],
            loose[-reach:] if reach else (),
            self.count + len(tokens),
            self.loss + sum(losses),
        )


@dataclass(frozen=True)
class Verdict:
    """The tokens that a round adds: the accepted ones, then the target's own, unless the answer ended."""

    accepted: int  # drafted tokens that are accepted
    tokens: tuple[int, ...]
    kinds: tuple[TokenKind, ...]
    losses: tuple[float, ...]  # nats that each token gave up: the gap of a loose one, 0 for all others


@dataclass(frozen=True)
class Verification:
    """What a pass of the target gives for a proposal, on its device."""

    logits: Tensor  # (gamma + 1, vocabulary)
    drafted: Tensor  # long (gamma,)
    relevance: Tensor | None = None  # (gamma,), if the rule reads it

    @property
    def positions(self) -> int:
        return self.logits.shape[0]


def reduce(several: Sequence[Verification], *, is_rounded: bool = False) -> Tensor:
    """Verifications by one target as few numbers on its device, float32 (positions of all, 4 to 7).

    Of each position: the target's token, whether its logits are finite, the drafted token, the gap between
    the two, with ``is_rounded`` the two greatest logits, and its relevance if any of them has some. The last
    position of each has no drafted token: what stands there means nothing. The gap is a difference of logits,
    which equals the difference of log probabilities within a row. Float32 holds ids below 2 ** 24 exactly,
    which all are.
    """
    none, is_scored = several[0].drafted.new_zeros(1), any(one.relevance is not None for one in several)
    logits = _joined([one.logits for one in several])
    drafted = torch.cat([part for one in several for part in (one.drafted, none)])
    best, target = logits.max(dim=-1)  # a row that has a NaN anywhere has it as its maximum
    gap = best - logits.gather(1, drafted.unsqueeze(1)).squeeze(1)
    columns = [target, best.isfinite(), drafted, gap]
    if is_rounded:
        columns += [best, logits.topk(2, dim=-1).values[:, 1]]
    if is_scored:
        scores = [one.drafted if one.relevance is None else one.relevance for one in several]
        columns.append(torch.cat([part.float() for each in scores for part in (each, none)]))
    return torch.stack([column.float() for column in columns], dim=1)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def rounding_of(best: float) -> float:
    """How many nats of a difference between two logits may be rounding, by the greatest of their row."""
    return ROUNDING * max(1.0, abs(best))


def read(positions: Sequence[Sequence[float]], *, is_scored: bool, is_rounded: bool = False) -> Evidence:
    """The evidence in the numbers of :func:`reduce` for one verification.

    :param is_scored: it has relevance.
    """
    target, sound, drafted, gap, *more = zip(*positions, strict=True)
    best, second, scores = (*more[:2], more[2:]) if is_rounded else ((), (), more)
    return Evidence(
        drafted=tuple(map(int, drafted[:-1])),
        target=tuple(map(int, target)),
        gap=gap[:-1],
        relevance=scores[0][:-1] if is_scored else (),
        sound=tuple(map(bool, sound)),
        lead=tuple(map(sub, best, second)),
        rounding=tuple(map(rounding_of, best)),
    )


def check_sound(sound: Sequence[bool]) -> None:
    """Check that the target's logits are finite.

    :param sound: whether they are, at each position whose token is used.
    :raises NotFiniteError: at one of them they are not.
    """
    if not all(sound):
        raise NotFiniteError(
            "the target's numbers are not finite (NaN)",
            "--dtype float32 or bfloat16, or check the weights: lvspec models verify PAIR",
        )


def judge(evidence: Evidence, rule: RuleSettings, words: TokenSets, history: History) -> Verdict:
    """Accept the longest prefix of the drafted tokens that the rule allows.

    Whether token i is accepted depends on the proposal's length and on its tokens up to
    i + max(``shift_window``, ``defer``) at most. A higher relevance, a larger ``defer`` and a smaller
    ``max_loss`` never make the prefix longer. Without margins and shift, only the target's own tokens are
    accepted. The first token of an answer is not judged: it comes from prefill, and is the target's own.
    """
    rule = effective(rule)
    tokens: list[int] = []
    kinds: list[TokenKind] = []
    losses: list[float] = []
    for index, (token, own) in enumerate(zip(evidence.drafted, evidence.target, strict=False)):
        if token == own:
            kind: TokenKind | None = TokenKind.EXACT
        else:
            before = history.extended(tokens, kinds, losses, rule)
            kind = _loose_kind(index, evidence, rule, words, before)
        if kind is None:
            break
        tokens.append(token)
        kinds.append(kind)
        losses.append(0.0 if token == own else evidence.gap[index])
        if token in words.ends:
            return Verdict(len(tokens), tuple(tokens), tuple(kinds), tuple(losses))
    own = evidence.target[len(tokens)]
    return Verdict(len(tokens), (*tokens, own), (*kinds, TokenKind.TARGET), (*losses, 0.0))


def may_vary(own: int, second: int, gap: float, most: float, words: TokenSets, history: History) -> bool:
    """Whether the control may say the target's second choice: a near tie that ends nothing, and begins no
    loop and no sentence.

    :param gap: nats between the two; ``most``: the largest one at which it may.
    """
    if not gap <= most or words.ends & {own, second}:
        return False
    return not words.begins_sentence(history.tokens) and not starts_loop(history.tokens, second)


def effective(rule: RuleSettings) -> RuleSettings:
    """The rule's settings as its relevance scheme changes them. Only two controls do.

    ``none``: all tokens are anchors without margin or shift, which is exact mode. ``random``: fillers are
    accepted whatever the target says and whatever follows, all other tokens must be the target's own. A rule
    without margins stays exact.
    """
    if rule.relevance is RelevanceName.NONE:
        return replace(rule, anchor_margin=0.0, filler_margin=0.0, shift_window=0)
    if rule.relevance is RelevanceName.RANDOM:
        spared = math.inf if rule.filler_margin > 0 else 0.0
        return replace(
            rule, anchor_margin=0.0, filler_margin=spared, shift_window=0, defer=0, max_loss=math.inf
        )
    return rule


def is_exact(rule: RuleSettings) -> bool:
    """Whether the rule can accept no other tokens than the target's own."""
    rule = effective(rule)
    return rule.anchor_margin <= 0 and rule.filler_margin <= 0 and rule.shift_window == 0


def margin(relevance: float, rule: RuleSettings) -> float:
    """Largest gap in nats at which a drafted token is accepted.

    Falls linearly from ``filler_margin`` at relevance 0 to ``anchor_margin`` at ``anchor_threshold``, and is
    constant above. With an infinite ``filler_margin`` it is infinite below the threshold. A ``filler_margin``
    below ``anchor_margin`` counts as equal to it, so that the margin never rises.
    """
    if not relevance < rule.anchor_threshold:  # not-a-number is an anchor
        return rule.anchor_margin
    widest = max(rule.filler_margin, rule.anchor_margin)
    if math.isinf(widest):
        return widest
    share = max(relevance, 0.0) / rule.anchor_threshold
    return rule.anchor_margin + (widest - rule.anchor_margin) * (1 - share)


def _loose_kind(
    index: int, evidence: Evidence, rule: RuleSettings, words: TokenSets, history: History
) -> TokenKind | None:
    """Why a token that is not the target's own is accepted; None: it is not. ``history`` ends just before
    it."""
    token, own = evidence.drafted[index], evidence.target[index]
    if evidence.bound and evidence.bound[index]:
        return None
    if _is_spent(history.loose, rule):
        return None
    if rule.never_loosely:
        if words.any_protected(token, own) or (rule.contraries and words.are_contrary(token, own)):
            return None
        if starts_loop(history.tokens, token):
            return None
    gap = evidence.gap[index]
    if not gap <= loss_left(history, rule):
        return None
    if words.begins_sentence(history.tokens) and not _is_within(gap, rule.sentence_margin):
        return None
    allowed = margin(evidence.relevance[index] if evidence.relevance else 0.0, rule)
    is_tie = _is_within(gap, rule.anchor_margin)
    if _is_within(gap, allowed) and (is_tie or is_agreed_after(index, evidence, rule, words)):
        return TokenKind.FILLER
    if is_shifted(index, evidence.drafted, evidence.target, evidence.relevance, rule, words):
        return TokenKind.SHIFT
    return None


def _is_within(gap: float, allowed: float) -> bool:
    """Whether a gap is within a margin. A margin of 0 accepts nothing, not even a gap of 0."""
    return allowed > 0 and gap <= allowed


def loss_left(history: History, rule: RuleSettings) -> float:
    """The largest gap in nats that the answer's budget leaves for its next token.

    The budget grows by ``max_loss`` with every token, and begins with that of ``LOSS_RESERVE`` tokens. So the
    margin tightens as it is used up, and the loss of an answer of n tokens is at most
    ``max_loss * (n + LOSS_RESERVE)``.
    """
    if math.isinf(rule.max_loss):
        return math.inf
    return rule.max_loss * (history.count + LOSS_RESERVE) - history.loss


def is_agreed_after(index: int, evidence: Evidence, rule: RuleSettings, words: TokenSets) -> bool:
    """Whether the next ``defer`` drafted tokens after ``index`` are the target's own.

    If the two agree again at once, the token changed the wording only; if they part again, the text is on its
    way to something else (deferred window). Nothing follows an accepted end of the answer. Positions beyond
    the proposal count as mismatches with ``defer_sure``, else as agreement.
    """
    for later in range(index + 1, index + 1 + rule.defer):
        if later >= len(evidence.drafted):
            return not rule.defer_sure
        if evidence.drafted[later] != evidence.target[later]:
            return False
        if evidence.drafted[later] in words.ends:
            return True
    return True


def _is_spent(loose: Sequence[bool], rule: RuleSettings) -> bool:
    """Whether another loose token would be one too many, in a row or within ``loose_window``."""
    run = 0
    for flag in reversed(loose):
        if not flag:
            break
        run += 1
    recent = sum(loose[-(rule.loose_window - 1) :]) if rule.loose_window > 1 else 0
    return run >= rule.max_loose_run or recent >= rule.max_loose_in_window


def is_shifted(
    index: int,
    drafted: Sequence[int],
    target: Sequence[int],
    relevance: Sequence[float],
    rule: RuleSettings,
    words: TokenSets,
) -> bool:
    """Whether draft and target differ at ``index`` in the order of words only.

    Let d be the draft's tokens, t the target's own token at each position (given the draft's tokens before
    it), i ``index``, and j one of the next ``shift_window`` positions of the proposal.

    **Late**: the draft has the target's word later, ``d[j] == t[i]``, and the target agrees there,
    ``t[j] == d[j]``. The draft has put d[i..j-1] before this word; all of these must be fillers. So
    ``quickly now`` may become ``now quickly``, and ``red`` may become ``very red``.

    **Early**: the target has the draft's word later, ``t[j] == d[i]``, and the draft does not repeat it up to
    j. The target would have put t[i..j-1] before this word; all of these must be fillers, and so must the
    draft's word.

    A token is a filler at a position if it is a function word, or if the relevance of the position is below
    ``anchor_threshold``. If the rule reads no relevance, it is a filler unless it is a word that has a
    contrary; without ``contraries`` only function words are fillers. Ends of answers and of sentences,
    numerals and negations are never fillers, and neither the draft's nor the target's token at ``index`` may
    end a sentence. So what anchors say stays: an anchor may come later, but only fillers are inserted, left
    out or exchanged. Reads nothing after
    ``index + shift_window``.
    """

    ends = words.stops if rule.never_loosely else frozenset()
    facts = words.meanings if rule.never_loosely else {}

    def is_filler(token: int, at: int) -> bool:
        if token in ends or (rule.never_loosely and words.any_protected(token)):
            return False
        if token in words.function:
            return True
        if relevance:
            return relevance[at] < rule.anchor_threshold
        return token not in facts and (rule.contraries or not rule.never_loosely)

    if drafted[index] in ends or target[index] in ends:
        return False
    last = min(index + rule.shift_window, len(drafted) - 1)
    for later in range(index + 1, last + 1):
        between = range(index, later)
        late = drafted[later] == target[index] == target[later]
        if late and all(is_filler(drafted[at], at) for at in between):
            return True
        early = target[later] == drafted[index] and drafted[index] not in drafted[index + 1 : later + 1]
        if early and all(is_filler(target[at], at) for at in between) and is_filler(drafted[index], index):
            return True
    return False
