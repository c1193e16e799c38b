"""What is needed and where it goes, on machines written down here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.errors import UsageError
from lvspec_cli.memory.plan import (
    CONTEXT,
    GIGABYTE,
    SLACK,
    SPARE_ROWS,
    TEXT_TOKENS,
    Choice,
    Device,
    Machine,
    Need,
    PlanRequest,
    Sizes,
    Workload,
    need,
    plan,
    slots_that_fit,
    together,
)
from lvspec_cli.types import Quantisation, Share
from tests.memory.test_sizes import size

LOAD = Workload(frames=64, max_pixels=448 * 448, new_tokens=512)
NF4 = Choice(Quantisation.NF4)


def machine(gpus: int, each: int, memory: int = 64) -> Machine:
    cards = tuple(Device(f"cuda:{n}", each * GIGABYTE, each * GIGABYTE) for n in range(gpus))
    return Machine(Device("cpu", memory * GIGABYTE, memory * GIGABYTE), cards)


def test_32b_by_hand() -> None:
    found = need(size("Qwen2.5-VL-32B-Instruct"), LOAD)
    assert found.weights == 33_452_718_336 * 2
    tokens = 32 * 16 * 16 + TEXT_TOKENS + 512 + SPARE_ROWS
    assert found.cache == 64 * 2 * 8 * 128 * tokens * 2  # layers, keys and values, heads, size, bytes
    # A decoder layer over 8448 tokens: 3 x 27648 and 3 x 5120 values of 2 bytes, 5120 of 4.
    assert found.activations == 8448 * ((3 * 27648 + 3 * 5120) * 2 + 4 * 5120)
    assert found.total == pytest.approx(71.2e9, rel=0.01)


def test_7b_in_four_bits_by_hand() -> None:
    found = need(size("Qwen2.5-VL-7B-Instruct"), LOAD, NF4)
    layer = 2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944
    matrices = 28 * layer
    assert found.weights == round(matrices * (0.5 + 1 / 64 + 4 / (64 * 256))) + (8_292_166_656 - matrices) * 2
    assert found.weights == pytest.approx(6.9e9, rel=0.01)
    assert found.cache == 28 * 2 * 4 * 128 * (8192 + TEXT_TOKENS + 512 + SPARE_ROWS) * 2


def test_each_answer_at_a_time_takes_a_cache_and_workers_share_the_machine() -> None:
    alone, sizes = need(size(SMALL), LOAD), Sizes(size(SMALL), None)
    assert need(size(SMALL), replace(LOAD, slots=5)).total == alone.total + 4 * alone.cache
    free = int((alone.total + 4.5 * alone.cache + CONTEXT["gpu"]) / (1 - SLACK))

    def at_once(card: int, workers: int = 1, most: int = 32) -> int:
        request = PlanRequest(Quantisation.NONE, Quantisation.NONE)
        of_each = Machine(Device("cpu", 64, 64), (Device("cuda:0", card, card),)).shared(workers)
        return slots_that_fit(of_each, sizes, LOAD, request, most)

    assert [at_once(free), at_once(free, most=3), at_once(2 * free, workers=2), at_once(free, 2)] == [
        5,
        3,
        5,
        0,
    ]


def test_auto_has_no_size() -> None:
    with pytest.raises(UsageError, match="auto"):
        need(size("Qwen2.5-VL-7B-Instruct"), LOAD, Choice(Quantisation.AUTO))


def pair(target: str, draft: str, choice: Choice = Choice()) -> tuple[Need, Need]:  # noqa: B008
    return need(size(target), LOAD, choice), need(size(draft), LOAD, choice)


def where(machine: Machine, needs: tuple[Need, Need]) -> tuple[list[str], list[str]]:
    found = plan(machine, *needs)
    return [share.device for share in found.target], [share.device for share in found.draft]


BIG, MIDDLE, SMALL = (f"Qwen2.5-VL-{size}-Instruct" for size in ("72B", "32B", "7B"))


def test_one_card_of_24_gigabytes() -> None:
    card = machine(1, 24)
    assert where(card, pair(MIDDLE, SMALL)) == ([], [])
    assert where(card, pair(MIDDLE, SMALL, NF4)) == ([], [])
    assert where(card, pair(SMALL, "Qwen2.5-VL-3B-Instruct", NF4)) == (["cuda:0"], ["cuda:0"])
    short = plan(card, *pair(MIDDLE, SMALL))
    assert short.missing == pytest.approx(together(*pair(MIDDLE, SMALL)) - card.gpus[0].usable, rel=0.03)


def test_two_cards_of_80_gigabytes() -> None:
    cards = machine(2, 80)
    assert where(machine(1, 80), pair(MIDDLE, SMALL, NF4)) == (["cuda:0"], ["cuda:0"])
    assert where(cards, pair(MIDDLE, SMALL)) == (["cuda:0"], ["cuda:1"])  # both on one is a little too much
    assert where(cards, pair(BIG, SMALL, NF4)) == (["cuda:0"], ["cuda:0"])
    assert where(cards, pair(BIG, SMALL)) == ([], [])


def test_eight_cards_of_24_gigabytes() -> None:
    cards = machine(8, 24)
    found = plan(cards, *pair(BIG, SMALL, NF4))
    assert sum(share.layers for share in found.target) == 80
    assert len(found.target) < 8
    assert found.draft == (Share("cuda:7", 28),)
    assert len(plan(cards, *pair(MIDDLE, SMALL)).target) >= 4


def test_a_cpu_with_32_gigabytes() -> None:
    wide = Choice(element=4)
    assert where(machine(0, 0, 32), pair(SMALL, "Qwen2.5-VL-3B-Instruct", wide)) == ([], [])
    laptop = pair("SmolVLM2-2.2B-Instruct", "SmolVLM2-256M-Video-Instruct", wide)
    assert where(machine(0, 0, 32), laptop) == (["cpu"], ["cpu"])


def test_a_draft_goes_to_the_card_with_room() -> None:
    cards = Machine(
        Device("cpu", 0, 0), (Device("cuda:0", 9 * GIGABYTE, 0), Device("cuda:1", 21 * GIGABYTE, 0))
    )
    target = Need(18 * GIGABYTE, 0, 0, 18, GIGABYTE)
    assert where(cards, (target, Need(7 * GIGABYTE, 0, 0, 4, GIGABYTE))) == (["cuda:1"], ["cuda:0"])
    assert where(cards, (target, Need(GIGABYTE, 0, 0, 4, GIGABYTE))) == (["cuda:1"], ["cuda:1"])


sizes = st.integers(0, 40 * GIGABYTE)


@st.composite
def needs(draw: st.DrawFn) -> Need:
    layers, layer = draw(st.integers(1, 80)), draw(st.integers(1, GIGABYTE))
    rest = draw(sizes)
    cache = draw(st.integers(0, layers * layer))
    return Need(rest + layers * layer - cache, cache, draw(sizes), layers, layer)


@given(st.lists(sizes, max_size=5), needs(), st.none() | needs())
def test_no_device_is_given_more_than_it_holds(frees: list[int], target: Need, draft: Need | None) -> None:
    cards = tuple(Device(f"cuda:{n}", free, free) for n, free in enumerate(frees))
    found = plan(Machine(Device("cpu", 100 * GIGABYTE, 0), cards), target, draft)
    assert found.fits == (found.missing == 0)
    if not found.fits:
        return
    assert sum(share.layers for share in found.target) == target.layers
    assert bool(found.draft) == (draft is not None)
    held: dict[str, int] = {}
    peak: dict[str, int] = {}
    for number, share in enumerate(found.target):
        rest = target.resident - target.layers * target.layer if number == 0 else 0
        held[share.device] = share.layers * target.layer + rest
        peak[share.device] = target.activations
    for share in found.draft:
        assert draft
        held[share.device] = held.get(share.device, 0) + draft.resident
        peak[share.device] = max(peak.get(share.device, 0), draft.activations)
    usable = {device.name: device.usable for device in (Device("cpu", 100 * GIGABYTE, 0), *cards)}
    assert all(held[name] + peak[name] <= usable[name] for name in held)


@given(needs(), needs(), st.integers(1, 8), sizes)
def test_more_memory_never_takes_a_fit_away(target: Need, draft: Need, count: int, extra: int) -> None:
    each = 30 * GIGABYTE
    cards = tuple(Device(f"cuda:{n}", each, each) for n in range(count))
    smaller = Machine(Device("cpu", 0, 0), cards)
    larger = replace(smaller, gpus=(replace(cards[0], free=each + extra), *cards[1:]))
    assert plan(larger, target, draft).fits or not plan(smaller, target, draft).fits
