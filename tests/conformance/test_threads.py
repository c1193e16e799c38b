"""With as many threads as videos that are decoded leave, answers are generate's, in every family."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from lvspec_cli.models.threads import shared_cores, threads_beside
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import DecodeSettings, Mode
from tests.conformance.conftest import Subject
from tests.speculation.conftest import decode

EXACT = DecodeSettings(mode=Mode.EXACT, gamma=4, max_new_tokens=16, repetition_guard=False)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("clip", ["one-frame", "wide", "12-seconds"])
def test_threads_that_come_and_go_in_a_prefill_change_no_token(subject: Subject, clip: str) -> None:
    taken, seen = cycle((0, 1, 2, 0, 0, 1)), list[int]()
    cores = shared_cores(subject.pair, 2, lambda: next(taken))
    assert cores is not None
    hooks = [
        block.register_forward_hook(lambda *_: seen.append(torch.get_num_threads())) for block in cores.blocks
    ]
    session, prompts = Session.of(subject.pair), subject.prompts(clip)
    with cores.heeded():
        session.encode(prompts, EXACT, is_last=True)
        assert set(seen) == {1, 2}, "in one prefill"
    assert torch.get_num_threads() == 2
    for hook in hooks:
        hook.remove()
    generation, _ = decode(subject.pair, prompts, EXACT, session)
    assert list(generation.tokens) == subject.generated(clip, "What moves?", 16)


@pytest.mark.usefixtures("two_threads")
def test_threads_are_those_of_before_even_after_an_error(subject: Subject) -> None:
    cores = shared_cores(subject.pair, 2, lambda: 1)
    assert cores is not None
    with pytest.raises(RuntimeError, match="no room"), cores.heeded():
        assert torch.get_num_threads() == 1
        raise RuntimeError("no room")
    assert torch.get_num_threads() == 2
    assert not any(block._forward_pre_hooks for block in cores.blocks)


@pytest.mark.usefixtures("two_threads")
def test_blocks_of_both_models_and_of_their_towers_are_heeded(subject: Subject) -> None:
    cores = shared_cores(subject.pair, 2, lambda: 0)
    assert cores is not None and subject.pair.draft is not None
    for loaded in (subject.pair.target, subject.pair.draft):
        language = set(loaded.family.layers(loaded.model))
        assert language < set(cores.blocks)
        heeded = [block for block in cores.blocks if block in set(loaded.model.modules()) - language]
        assert heeded, "the tower's"


@pytest.mark.usefixtures("two_threads")
def test_threads_stay_where_rounding_might_decide_a_token_or_nobody_shares_a_core() -> None:
    def loaded(device: str = "cpu", *, full: bool = True) -> Any:
        model = nn.ModuleDict({"layers": nn.ModuleList([nn.Identity()])})
        return SimpleNamespace(device=torch.device(device), full_precision=full, model=model)

    def shared(target: Any, draft: Any) -> Any:
        return shared_cores(cast(Any, SimpleNamespace(target=target, draft=draft)), 2, lambda: 0)

    assert len(shared(loaded(), loaded()).blocks) == 2
    assert len(shared(loaded(), None).blocks) == 1
    assert shared(loaded(full=False), None) is None
    assert shared(loaded(), loaded(full=False)) is None
    assert shared(loaded("meta"), loaded()) is None
    torch.set_num_threads(1)
    assert shared(loaded(), loaded()) is None


def test_threads_keep_a_core_of_their_own_and_at_least_half_of_them_stay() -> None:
    assert [threads_beside(2, 2, taken) for taken in range(4)] == [2, 1, 1, 1]
    assert [threads_beside(4, 4, taken) for taken in range(5)] == [4, 3, 2, 2, 2]
    assert [threads_beside(4, 6, taken) for taken in range(5)] == [4, 4, 4, 3, 2], "two cores are free"
    assert [threads_beside(4, 2, taken) for taken in range(3)] == [4, 3, 2], "more threads than cores"
    assert [threads_beside(1, 1, taken) for taken in range(2)] == [1, 1]
