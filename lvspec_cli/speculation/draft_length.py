"""How many tokens the draft proposes in a round: always the same number, or as many as are likely to pay.

A round adds the accepted tokens and one of the target's own. So one more drafted token adds, on average, the
probability that this token and all before it are accepted (Leviathan et al. 2023, "Fast Inference from
Transformers via Speculative Decoding", arXiv 2211.17192, section 3.1, where every token has the same
probability). Here the draft's own probabilities tell the tokens apart; how many of the expected rejections
really happen is counted, and corrects them. Tokens per unit of cost are highest if drafting continues while
(acceptance probability of the next token / its cost) exceeds the average rate so far (Dinkelbach 1967, "On
Nonlinear Fractional Programming"). No clock is read: the same answer always has the same rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from lvspec_cli.speculation.verify import effective, is_exact
from lvspec_cli.types import DecodeSettings, RoundCosts, RuleSettings

if TYPE_CHECKING:
    from torch import Tensor

    from lvspec_cli.models.load import LoadedModel

# What is assumed before anything was counted, and how much that weighs. Measured on the bundled pair.
EXACT_CALIBRATION, LOOSE_CALIBRATION = 1.0, 0.25  # rejections / expected rejections
DEFERRED_CALIBRATION = 0.65  # with a deferred window; on a pair of language models (docs/rule.md)
CALIBRATION_WEIGHT = 2.0  # expected rejections
RATE = 1.5  # tokens a step of the target
RATE_WEIGHT = 5.0  # steps of the target
# On an H100, which reads 3.0 TB/s: 0.13 ms of small kernels a layer, 0.65 ms of the host (docs/real-size.md).
CAPTURED_LAYER, EAGER_LAYER = 0.4e9, 2.0e9  # bytes
FUSED_LAYER = 0.085e9  # predicted: 28 microseconds, of eleven kernels (``models.kernels.fused``)
READ_BY_A_GPU = 20.0  # bytes, in the time in which a CPU reads one: 3.0 TB/s and 150 GB/s, predicted
DECAY = 0.9  # factor on all counts, once a round
WAIT = 0.2e9  # bytes that are read in 70 microseconds, while the device waits for the host: predicted
EXPERTS = ".experts."  # in the names of weights of which a row reads only some

Observed = TypeVar("Observed")


class DraftLengthPolicy(Protocol[Observed]):
    """Decides after each drafted token whether to draft another one.

    ``Observed`` is what a policy keeps of one drafted token. Numbers on the host cost a transfer each time
    that it looks at some (:class:`AdaptiveLength`). A policy whose state stays on the device keeps tensors,
    and transfers nothing. Policies are values: :meth:`after` gives the one for the next round.
    """

    @staticmethod
    def measure(logits: Tensor, /) -> Tensor:
        """A number of each drafted token, (rows,), on the device: it may be captured with the draft's passes.

        ``logits``: the draft's, (rows, vocabulary).
        """

    def observe(self, measured: Tensor, /) -> Sequence[Observed]:
        """What is kept of each of several drafted tokens, which were measured."""

    def ahead(self, observed: Sequence[Observed], /, left: int, answers: int = 1) -> int:
        """How many tokens to draft, of ``left`` at most, before the next ones are observed: at least one.

        The tokens of a round do not depend on it. What it drafts in vain is cut (:func:`taken`).

        :param answers: that draft in the same steps, this one included.
        """

    def should_continue(self, observed: Sequence[Observed], /) -> bool:
        """Whether to draft another token after those that were observed in this round."""

    def after(self, observed: Sequence[Observed], /, accepted: int, exact: int, added: int) -> Self:
        """The policy after a round.

        :param accepted: drafted tokens that were accepted.
        :param exact: those of them that are the target's own.
        :param added: tokens that the answer grew by, the target's own included.
        """


@dataclass(frozen=True)
class FixedLength:
    """``gamma`` tokens in every round. Nothing is observed, so that the host never waits."""

    gamma: int

    @staticmethod
    def measure(logits: Tensor) -> Tensor:
        return logits[:, 0]  # anything: it is not looked at

    def observe(self, measured: Tensor) -> Sequence[None]:
        return [None] * len(measured)

    def ahead(self, observed: Sequence[None], left: int, answers: int = 1) -> int:
        return min(left, self.gamma - len(observed))

    def should_continue(self, observed: Sequence[None]) -> bool:
        return len(observed) < self.gamma

    def after(self, observed: Sequence[None], accepted: int, exact: int, added: int) -> FixedLength:
        return self


@dataclass(frozen=True)
class AdaptiveLength:
    """Gamma ``auto``: drafts on while the next token's acceptance is worth its cost.

    It observes the draft's probability of each token that it drafts. All counts are over the rounds so far,
    and recent rounds weigh more.
    """

    costs: RoundCosts
    most: int  # drafted tokens a round
    calibration: float = EXACT_CALIBRATION  # assumed before anything was counted
    defer: int = 0  # the last tokens of a proposal, of which none is accepted loosely
    rejections: float = 0.0  # before these last tokens
    expected_rejections: float = (
        0.0  # sum of (1 - draft probability) over the tokens that were verified there
    )
    mismatches: float = 0.0  # in the whole proposal, accepted loosely or not
    expected_mismatches: float = 0.0
    tokens: float = 0.0  # that rounds added
    steps: float = 0.0  # that rounds cost, in steps of the target alone
    wait: float = 0.0  # that the device waits when the host looks at a token, in steps of the draft

    @staticmethod
    def measure(logits: Tensor) -> Tensor:
        """The draft's highest probabilities. 0 where it may propose nothing."""
        return logits.softmax(dim=-1).amax(dim=-1).nan_to_num(0.0)

    def observe(self, measured: Tensor) -> Sequence[float]:
        """One transfer to the host."""
        probs: list[float] = measured.tolist()
        return probs

    def ahead(self, draft_probs: Sequence[float], left: int, answers: int = 1) -> int:
        """1, 2, 4, ...: as many as are drafted in any case, if none of them is very doubtful.

        A step in vain costs a step; to look before one that is not costs a wait. So it is launched at once if
        the probability that it is in vain is below wait / (1 + wait). Of drafted tokens about x squared have
        a draft probability below x (counted on the bundled pair). So one is as doubtful as the root of that
        rarely enough, and several of them still more rarely. A step of several answers is in vain only if it
        is so for all of them, and a row in vain beside one that is not costs next to nothing.
        """
        doubtful, count = (self.wait / (1.0 + self.wait)) ** (0.5 / answers), 1
        while 2 * count <= left and self.should_continue([*draft_probs, *[doubtful] * (2 * count - 1)]):
            count *= 2
        return count

    def acceptance(self, draft_prob: float) -> float:
        """Probability that a drafted token is accepted, from the draft's own probability of it."""
        return _corrected(draft_prob, self.calibration, self.rejections, self.expected_rejections)

    def agreement(self, draft_prob: float) -> float:
        """Probability that a drafted token is the target's own, from the draft's own probability of it."""
        return _corrected(draft_prob, EXACT_CALIBRATION, self.mismatches, self.expected_mismatches)

    @property
    def rate(self) -> float:
        """Tokens for the cost of one step of the target alone, on average over the rounds so far."""
        return (RATE_WEIGHT * RATE + self.tokens) / (RATE_WEIGHT + self.steps)

    def should_continue(self, draft_probs: Sequence[float]) -> bool:
        """Whether to draft another token after tokens with these draft probabilities."""
        if len(draft_probs) >= self.most:
            return False
        return self.gain(draft_probs) > self.rate * (self.costs.draft + self.costs.row)

    def gain(self, draft_probs: Sequence[float]) -> float:
        """Accepted tokens that one more drafted token adds on average, if it is the target's own.

        It adds itself, if all before it are accepted. And it brings the window of the token ``defer``
        positions before it into sight, which then may be accepted loosely.
        """
        settled = max(0, len(draft_probs) - self.defer)  # with and without it, these may be accepted loosely
        without = prod(map(self.acceptance, draft_probs[:settled]))  # all up to a token are accepted
        with_it, gain = without, 0.0
        for at, draft_prob in enumerate(draft_probs[settled:], settled):
            in_sight = at + self.defer <= len(draft_probs)
            with_it *= self.acceptance(draft_prob) if in_sight else self.agreement(draft_prob)
            without *= self.agreement(draft_prob)
            gain += with_it - without
        return gain + with_it

    def after(self, draft_probs: Sequence[float], accepted: int, exact: int, added: int) -> Self:
        """The policy after a round. Tokens behind a rejected one were not verified and do not count."""
        verified = [1.0 - prob for prob in draft_probs[: accepted + 1]]
        loosely = max(0, len(draft_probs) - self.defer)  # of these any may be accepted loosely
        rejected = accepted < len(draft_probs)
        return replace(
            self,
            rejections=DECAY * self.rejections + (1.0 if accepted < loosely else 0.0),
            expected_rejections=DECAY * self.expected_rejections + sum(verified[:loosely]),
            mismatches=DECAY * self.mismatches + accepted - exact + (1.0 if rejected else 0.0),
            expected_mismatches=DECAY * self.expected_mismatches + sum(verified),
            tokens=DECAY * self.tokens + added,
            steps=DECAY * self.steps + round_cost(len(draft_probs), self.costs),
        )


def taken(
    policy: DraftLengthPolicy[Observed], before: Sequence[Observed], more: Sequence[Observed], most: int
) -> tuple[tuple[Observed, ...], bool]:
    """What drafting token by token would have observed, and whether it would go on.

    :param before: observed of tokens that were drafted before ``more``, after which drafting went on.
    :param most: tokens that may be drafted.
    """
    observed = tuple(before)
    for each in more:
        observed = (*observed, each)
        if len(observed) == most or not policy.should_continue(observed):
            return observed, False
    return observed, True


def _corrected(draft_prob: float, calibration: float, counted: float, expected: float) -> float:
    """A draft's probability, corrected by how often what it doubted really failed."""
    ratio = (CALIBRATION_WEIGHT * calibration + counted) / (CALIBRATION_WEIGHT + expected)
    return max(0.0, 1.0 - ratio * (1.0 - draft_prob))


def round_cost(gamma: int, costs: RoundCosts) -> float:
    """Cost of a round with ``gamma`` drafted tokens, in steps of the target (docs/design.md, "What a round
    costs")."""
    return gamma * costs.draft + costs.verification + costs.row * (gamma + 1) + costs.overhead


def costs_beside(costs: RoundCosts, slots: int) -> RoundCosts:
    """The costs of a round of several answers together, in steps of the target with a row of each of them.

    A pass reads the weights once for all rows, so only what each row costs is ``slots`` times as much. A step
    of the target grows by the rows of the others, as does one of the draft.
    """
    step = 1.0 + costs.row * (slots - 1)
    return RoundCosts(
        draft=costs.draft,
        verification=costs.verification / step,
        row=costs.row * slots / step,
        overhead=costs.overhead / step,
    )


def costs_of_sizes(target_bytes: float, draft_bytes: float, row_bytes: float = 0.0) -> RoundCosts:
    """Costs where nothing was measured: a step takes as long as the device needs to read so many bytes.

    :param row_bytes: those of the target's that each row of a verification reads anew: its own experts.
    """
    costs, row = RoundCosts(draft=draft_bytes / target_bytes), row_bytes / target_bytes
    return replace(costs, verification=costs.verification - row, row=costs.row + row)


def policy_for(
    settings: DecodeSettings,
    rule: RuleSettings,
    target: LoadedModel,
    draft: LoadedModel | None,
    slots: int = 1,
) -> DraftLengthPolicy[Any]:
    """The policy of an answer's first round.

    :param rule: the one in force, which in mode exact is not the settings' own.
    :param slots: answers that are decoded at the same time. In mode exact, where tokens do not depend on what
        is drafted, the costs are theirs; a loose answer has the same rounds beside any number of others.
    """
    if draft is None:
        return FixedLength(0)
    if settings.gamma != "auto":
        return FixedLength(settings.gamma)
    adaptation = settings.adaptation
    costs = adaptation.costs or _costs_of(target, draft)
    wait = WAIT / _step_bytes(draft, head=True) if draft.workspace is not None else 0.0
    if is_exact(rule):
        costs = costs_beside(costs, slots)
        return AdaptiveLength(costs, adaptation.most, EXACT_CALIBRATION, wait=wait)
    loosely = effective(rule)
    return AdaptiveLength(
        costs,
        adaptation.most,
        DEFERRED_CALIBRATION if loosely.defer else LOOSE_CALIBRATION,
        loosely.defer if loosely.defer_sure else 0,
        wait=wait,
    )


def _costs_of(target: LoadedModel, draft: LoadedModel) -> RoundCosts:
    """The costs that the models' sizes and devices suggest."""
    # A prediction layer is small beside the head, unlike other drafts, whose heads are left out of both.
    head = draft.is_prediction_layer
    row_bytes = beside_a_gpu(_expert_bytes(target), target.device.type)
    return costs_of_sizes(_step_bytes(target, head=head), _step_bytes(draft, head=head), row_bytes)


def _step_bytes(loaded: LoadedModel, *, head: bool) -> float:
    """Bytes that a GPU could read in the time of one step: the layers' weights, and their other work.

    :param head: with the weights of the head.
    """
    layers = loaded.family.layers(loaded.model)
    captured, fused = loaded.workspace is not None, loaded.fused is not None
    others = len(layers) * non_weight_bytes(loaded.device.type, captured=captured, fused=fused)
    weights = _weight_bytes(loaded, experts=False) + _expert_bytes(loaded)
    if head:
        weights += sum(weight.nbytes for weight in loaded.model.get_output_embeddings().parameters())
    return beside_a_gpu(weights + others, loaded.device.type)


def beside_a_gpu(read: float, device: str) -> float:
    """Bytes that a GPU reads while a device, by its kind, reads so many."""
    return read * (READ_BY_A_GPU if device == "cpu" else 1.0)


def _expert_bytes(loaded: LoadedModel) -> float:
    """Bytes of the experts that one row reads in all layers."""
    return loaded.family.active_experts(loaded.model.config) * _weight_bytes(loaded, experts=True)


def _weight_bytes(loaded: LoadedModel, *, experts: bool) -> int:
    """Bytes of the weights of all layers' experts, or of all others."""
    parts = [loaded.model] if loaded.is_prediction_layer else loaded.family.layers(loaded.model)
    weights = (named for part in parts for named in part.named_parameters())
    return sum(weight.nbytes for name, weight in weights if (EXPERTS in name) == experts)


def non_weight_bytes(device: str, *, captured: bool, fused: bool = False) -> float:
    """What a layer costs besides reading its weights, as the bytes that are read in that time."""
    if device != "cuda":
        return 0.0
    if not captured:
        return EAGER_LAYER
    return FUSED_LAYER if fused else CAPTURED_LAYER
