"""With as many threads as videos that are decoded leave, a prefill is the same to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.models.threads import SharedCores, shared_cores
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import DecodeSettings, Mode
from tests.tiny_models import make_clip
from tools.train_demo.evaluate import PAIR_FOLDER

EXACT = DecodeSettings(mode=Mode.EXACT, gamma=4, max_new_tokens=16, repetition_guard=False)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pair() -> LoadedPair:
    """The bundled one: products of a tiny model are too small to be shared between threads."""
    return load_pair(PAIR_FOLDER / "target", PAIR_FOLDER / "draft", device="cpu", dtype="float32")


def shared(pair: LoadedPair, *taken: int) -> SharedCores:
    counts = cycle(taken)
    cores = shared_cores(pair, 2, lambda: next(counts))
    assert cores is not None
    return cores


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_threads_that_come_and_go_in_a_prefill_change_no_bit(pair: LoadedPair, frames: int) -> None:
    cores, seen = shared(pair, 0, 1, 2, 0, 0, 1), list[int]()
    hooks = [
        block.register_forward_hook(lambda *_: seen.append(torch.get_num_threads())) for block in cores.blocks
    ]
    prompts = build_prompts(pair, make_clip(frames, size=112, seed=frames), "What happens?")

    def prefilled(*, heeded: bool) -> list[Tensor]:
        session = Session.of(pair)
        if heeded:
            with cores.heeded():
                session.encode(prompts, EXACT, is_last=True)
        else:
            session.encode(prompts, EXACT, is_last=True)
        decoders = (session.target, session.draft)
        return [
            decoder.cache.keys(layer, prompts.target.length)
            for decoder in decoders
            if decoder is not None
            for layer in range(decoder.layer_count)
        ]

    found = prefilled(heeded=True)
    assert set(seen) == {1, 2}, "in one prefill"
    assert torch.get_num_threads() == 2
    for hook in hooks:
        hook.remove()
    for one, other in zip(found, prefilled(heeded=False), strict=True):
        assert torch.equal(one, other)


def test_threads_are_those_of_before_even_after_an_error(pair: LoadedPair) -> None:
    cores = shared(pair, 1)
    with pytest.raises(RuntimeError, match="no room"), cores.heeded():
        assert torch.get_num_threads() == 1
        raise RuntimeError("no room")
    assert torch.get_num_threads() == 2
    assert not any(block._forward_pre_hooks for block in cores.blocks)


def test_a_thread_is_left_out_only_where_no_core_is_free(pair: LoadedPair) -> None:
    for cores, taken, threads in ((2, 0, 2), (2, 1, 1), (2, 2, 1), (3, 1, 2), (3, 2, 1)):
        found = shared_cores(pair, cores, lambda taken=taken: taken)  # type: ignore[misc]
        assert found is not None
        with found.heeded():
            assert torch.get_num_threads() == threads


def test_blocks_of_both_models_and_of_their_towers_are_heeded(pair: LoadedPair) -> None:
    cores = shared(pair, 0)
    assert pair.draft is not None
    for loaded in (pair.target, pair.draft):
        language = set(loaded.family.layers(loaded.model))
        assert language < set(cores.blocks)
        heeded = [block for block in cores.blocks if block in set(loaded.model.modules()) - language]
        assert heeded, "the tower's"


def test_threads_stay_where_rounding_might_decide_a_token_or_nobody_shares_a_core() -> None:
    def loaded(device: str = "cpu", *, full: bool = True, outputs: int = 64) -> Any:
        model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(8, outputs)])})
        return SimpleNamespace(device=torch.device(device), full_precision=full, model=model)

    def found(target: Any, draft: Any) -> Any:
        return shared_cores(cast(Any, SimpleNamespace(target=target, draft=draft)), 2, lambda: 0)

    assert len(found(loaded(), loaded()).blocks) == 2
    assert len(found(loaded(), None).blocks) == 1
    assert found(loaded(full=False), None) is None
    assert found(loaded(), loaded(full=False)) is None
    assert found(loaded("meta"), loaded()) is None
    assert found(loaded(), loaded(outputs=96)) is None, "a thread's share may end within a vector"
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert found(loaded(), loaded()) is None
