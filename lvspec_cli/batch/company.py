"""How many answers to decode together, and whether the draft pays beside so many: arithmetic without a clock.

All costs are in steps of the target alone with a single row (docs/design.md, "What a round costs"). A pass
over rows of several answers reads the weights once, so a row more costs little until the rows' own work
counts. The more answers share a pass, the less speculation has to gain, while the draft's prefill costs each
clip the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lvspec_cli.memory.plan import (
    PlanRequest,
    Sizes,
    Workload,
    bytes_a_round,
    expected_tokens,
    prompt_tokens,
)
from lvspec_cli.request import ALONE, Company
from lvspec_cli.types import DecodeSettings, Mode, RoundCosts

if TYPE_CHECKING:
    from lvspec_cli.models.load import LoadedPair

# A row of a prefill, the vision tower included, in steps. On a CPU as measured on the bundled pair; on a GPU
# an estimate: rows cost nothing until their products take as long as reading the weights.
PREFILL_ROW = {"cpu": 0.05, "cuda": 0.008}
LEAST_GAIN = 0.03  # of clips an hour, that one answer more at a time has to bring
TYPICAL_TOKENS = 150  # of a caption, if it may have so many
ONE_AT_A_TIME = (
    "one caption at a time: as this pair is computed here, a caption's words could depend on others "
    "beside it; --at-once N decodes N together all the same"
)


@dataclass(frozen=True)
class ClipCosts:
    """What one answer about a clip costs."""

    round: RoundCosts
    gamma: int  # the most drafted tokens of a round; 0 without a draft
    tokens: int  # of the answer
    prefill: float  # of the target, in its steps
    draft_prefill: float


def clip_costs(
    sizes: Sizes, request: PlanRequest, load: Workload, settings: DecodeSettings, device: str
) -> ClipCosts:
    """The costs of a workload's largest clip.

    :param device: the target's kind, cpu or cuda.
    """
    from lvspec_cli.speculation.draft_length import beside_a_gpu, costs_of_sizes  # imports torch

    row = PREFILL_ROW.get(device, PREFILL_ROW["cuda"])
    target, draft, (element, draft_element) = sizes.target, sizes.draft, request.elements
    prefill, tokens = row * prompt_tokens(target, load), min(TYPICAL_TOKENS, load.new_tokens)
    if draft is None or settings.mode is Mode.AR:
        return ClipCosts(RoundCosts(draft=1.0), 0, tokens, prefill, 0.0)
    draft_device = (request.draft_device or device).partition(":")[0]
    costs = settings.adaptation.costs or costs_of_sizes(
        beside_a_gpu(bytes_a_round(target, request.target, element, 1, None), device),
        beside_a_gpu(bytes_a_round(draft, request.draft, draft_element, 1, None), draft_device),
    )
    draft_prefill = row * costs.draft * prompt_tokens(draft, load) * settings.draft_keep
    return ClipCosts(costs, settings.greatest_gamma, tokens, prefill, draft_prefill)


def step_cost(costs: RoundCosts, slots: int) -> float:
    """A step of the target alone with a row of each of ``slots`` answers."""
    return 1.0 + costs.row * (slots - 1)


def token_cost(clip: ClipCosts, slots: int, *, drafts: bool) -> float:
    """One token of an answer beside others: its share of what a pass costs."""
    from lvspec_cli.speculation.draft_length import costs_beside, round_cost

    step = step_cost(clip.round, slots) / slots
    if not drafts:
        return step
    beside = costs_beside(clip.round, slots)
    return step * min(
        round_cost(gamma, beside) / expected_tokens(gamma) for gamma in range(1, clip.gamma + 1)
    )


def answer_cost(clip: ClipCosts, slots: int, *, drafts: bool) -> float:
    """An answer with its prefill, which it shares with no other."""
    prefill = clip.prefill + (clip.draft_prefill if drafts else 0.0)
    return prefill + clip.tokens * token_cost(clip, slots, drafts=drafts)


def draft_pays(clip: ClipCosts, slots: int) -> bool:
    """Whether what speculation saves of an answer is more than the draft's prefill."""
    return bool(clip.gamma) and answer_cost(clip, slots, drafts=True) < answer_cost(clip, slots, drafts=False)


def company_of(clip: ClipCosts, slots: int) -> Company:
    """So many answers at a time, with the draft where it pays. One alone is as its mode has it."""
    return Company(slots, drafts=slots == 1 or not clip.gamma or draft_pays(clip, slots))


def company_with(company: Company, pair: LoadedPair, mode: Mode) -> Company:
    """What becomes of it with a loaded pair: one answer, if others could change its text and must not.

    In mode exact only the target decides what is said, whatever is drafted.
    """
    models = (pair.target, pair.draft if mode is Mode.LVSPEC else None)
    keeps = all(model.keeps_rows_apart for model in models if model is not None)
    return ALONE if company.keeps_texts and not keeps else company


def best_company(clip: ClipCosts, fitting: int, *, keeps_draft: bool) -> Company:
    """As many answers at a time as fit, less where one more brings under 3 % more clips an hour.

    :param keeps_draft: the draft is not left out, because that would change what loose answers say.
    """

    def cost(slots: int) -> float:
        drafts = bool(clip.gamma) and (keeps_draft or draft_pays(clip, slots))
        return answer_cost(clip, slots, drafts=drafts)

    slots = 1
    while slots < fitting and cost(slots) / cost(slots + 1) >= 1 + LEAST_GAIN:
        slots += 1
    return Company(slots) if keeps_draft else company_of(clip, slots)
