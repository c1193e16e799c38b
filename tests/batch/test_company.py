"""How many answers are decoded together, and when the draft pays, as literals."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.batch.company import (
    ClipCosts,
    answer_cost,
    best_company,
    clip_costs,
    company_of,
    company_with,
    draft_pays,
    token_cost,
)
from lvspec_cli.cli.caption_job import chosen_company
from lvspec_cli.memory.resolve import plan_request_of, sizes_of, workload_of
from lvspec_cli.pairs.registry import settings_of_pair
from lvspec_cli.request import ALONE, AskRequest, Company
from lvspec_cli.speculation.draft_length import READ_BY_A_GPU, costs_beside, round_cost
from lvspec_cli.types import DecodeSettings, Mode, RoundCosts, VideoRequest
from tests.conftest import demo_plan

COSTS = RoundCosts(draft=0.1, verification=1.0, row=0.02, overhead=0.1)
CLIP = ClipCosts(COSTS, gamma=4, tokens=100, prefill=10.0, draft_prefill=1.0)
HEAVY = replace(CLIP, draft_prefill=12.0)  # a draft that is nearly as large as its target


def test_a_row_of_each_of_five_answers() -> None:
    # A step with five rows costs 1.08. Without a draft a token is a fifth of it.
    assert token_cost(CLIP, 5, drafts=False) == pytest.approx(1.08 / 5)
    beside = costs_beside(COSTS, 5)
    assert (beside.draft, beside.verification) == pytest.approx((0.1, 1 / 1.08))
    assert (beside.row, beside.overhead) == pytest.approx((0.1 / 1.08, 0.1 / 1.08))
    # Five rounds of four drafted tokens: 4 draft steps of 0.108, a pass of 25 rows, the rest of a round.
    assert round_cost(4, beside) * 1.08 == pytest.approx(4 * 0.108 + 1.0 + 25 * 0.02 + 0.1)
    assert answer_cost(CLIP, 5, drafts=False) == pytest.approx(10 + 100 * 1.08 / 5)


def test_alone_nothing_changes() -> None:
    assert costs_beside(COSTS, 1) == COSTS


@pytest.mark.parametrize(
    ("clip", "paying"),
    [(CLIP, range(1, 28)), (HEAVY, range(1, 5)), (replace(CLIP, gamma=0), range(0))],
)
def test_the_draft_pays_beside_few(clip: ClipCosts, paying: range) -> None:
    assert [slots for slots in range(1, 33) if draft_pays(clip, slots)] == list(paying)


@pytest.mark.parametrize(
    ("clip", "fitting", "company"),
    [
        (CLIP, 1, Company(1)),
        (CLIP, 4, Company(4)),
        (CLIP, 32, Company(9)),  # one more brings under 3 %
        (HEAVY, 32, Company(13, drafts=False)),
        (HEAVY, 1, Company(1)),  # what one answer at a time does is for --mode and --fallback to say
        (replace(CLIP, gamma=0), 32, Company(13)),
    ],
)
def test_as_many_as_fit_and_gain(clip: ClipCosts, fitting: int, company: Company) -> None:
    assert best_company(clip, fitting, keeps_draft=False) == company


def test_where_the_draft_has_to_stay_fewer_gain() -> None:
    assert best_company(HEAVY, 32, keeps_draft=True) == Company(7)
    assert company_of(HEAVY, 7) == Company(7, drafts=False)
    assert company_of(HEAVY, 1) == Company(1)


@given(st.floats(0.01, 1), st.floats(0, 0.1), st.floats(0, 100), st.integers(0, 16))
def test_more_at_once_is_never_dearer(draft: float, row: float, prefill: float, gamma: int) -> None:
    clip = ClipCosts(replace(COSTS, draft=draft, row=row), gamma, 100, prefill, prefill * draft)
    kinds = [False, True] if gamma else [False]
    for drafts in kinds:
        costs = [answer_cost(clip, slots, drafts=drafts) for slots in range(1, 33)]
        assert all(later <= earlier + 1e-9 for earlier, later in pairwise(costs))


def test_auto_takes_several_only_where_rows_stay_the_same() -> None:
    plan, video = demo_plan(), VideoRequest(Path("a.mp4"), max_frames=8, max_pixels=110_592)
    base = AskRequest(video, ("?",), settings_of_pair(plan.choice.pair))
    company, notes = chosen_company(plan, base, None)
    assert (1 < company.slots < 32, company.drafts, notes) == (True, True, [])
    assert (
        chosen_company(plan, replace(base, settings=replace(base.settings, temperature=0.7)), None)[0]
        == ALONE
    )
    in_16_bits = replace(plan.loading, dtype="bfloat16")
    assert chosen_company(replace(plan, loading=in_16_bits), base, None) == (ALONE, [])
    on_a_gpu = replace(plan, loading=replace(in_16_bits, device="cuda"))
    company, notes = chosen_company(on_a_gpu, base, None)
    assert (company.slots > 1, company.keeps_texts, notes) == (True, True, [])
    assert chosen_company(plan, base, 5) == (Company(5), [])
    assert chosen_company(plan, base, 1) == (ALONE, [])


@pytest.mark.parametrize(
    ("target", "draft", "mode", "kept"),
    [
        (True, True, Mode.LVSPEC, True),
        (False, True, Mode.EXACT, False),
        (True, False, Mode.LVSPEC, False),
        (True, False, Mode.EXACT, True),  # whatever is drafted
        (True, None, Mode.AR, True),
    ],
)
def test_what_becomes_of_it_with_a_loaded_pair(
    target: bool, draft: bool | None, mode: Mode, kept: bool
) -> None:
    pair = Mock(target=Mock(keeps_rows_apart=target), draft=None)
    if draft is not None:
        pair.draft = Mock(keeps_rows_apart=draft)
    company = Company(4, keeps_texts=True)
    assert company_with(company, pair, mode) == (company if kept else ALONE)
    assert company_with(Company(4), pair, mode) == Company(4), "the user's own number"


def test_a_draft_on_the_cpu_reads_slower_than_its_target_on_a_gpu() -> None:
    plan, video = demo_plan(), VideoRequest(Path("a.mp4"), max_frames=8, max_pixels=110_592)
    settings = DecodeSettings()
    load = workload_of(AskRequest(video, ("?",), settings))
    request = plan_request_of(plan)
    found = {
        (device, draft_device): clip_costs(
            sizes_of(plan), replace(request, draft_device=draft_device), load, settings, device
        ).round.draft
        for device, draft_device in (("cuda", None), ("cuda", "cpu"), ("cuda", "cuda:1"), ("cpu", "cpu"))
    }
    together = found["cuda", None]
    assert found["cuda", "cuda:1"] == found["cpu", "cpu"] == together
    assert found["cuda", "cpu"] == pytest.approx(READ_BY_A_GPU * together)
