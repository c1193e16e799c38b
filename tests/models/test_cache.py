"""The cache against a list of rows."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.models.cache import KeyValueCache, SlotCache, SlotMemory, cache_argument

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 5)),
        st.tuples(st.just("rollback"), st.integers(0, 30)),
        st.tuples(st.just("reserve"), st.integers(0, 1500)),
    ),
    max_size=20,
)


@given(STEPS)
def test_holds_what_was_written_and_not_rolled_back(steps: list[tuple[str, int]]) -> None:
    cache, rows, mark = KeyValueCache(), torch.zeros(1, 2, 0, 3), 0.0
    for kind, number in steps:
        if kind == "write":
            mark += 1
            new = torch.full((1, 2, number, 3), mark) + torch.rand(1, 2, number, 3)
            cache.reserve(cache.length + number)
            rows = torch.cat((rows, new), dim=2)
            for layer in (0, 1):
                keys, values = cache.update(new + layer, -new, layer)
                assert torch.equal(keys, rows + layer) or torch.equal(keys[:, :, -number:], new + layer)
                assert torch.equal(values, -rows)
            cache.advance(number)
        elif kind == "rollback":
            number = min(number, cache.length)
            cache.rollback(number)
            rows = rows[:, :, :number]
        else:
            cache.reserve(number)
        assert cache.length == rows.shape[2]


def test_grows_with_room_to_spare() -> None:
    cache = KeyValueCache()
    cache.reserve(10)
    first = cache.capacity
    for _ in range(10, first):
        cache.reserve(first)
    assert cache.capacity == first > 10
    cache.reserve(first + 1)
    assert cache.capacity > first + 1


def filled(memory: SlotMemory, value: float, rows: int) -> SlotCache:
    """A cache of two layers whose rows all have the value."""
    cache, new = memory.cache(), torch.full((1, 2, rows, 3), value)
    cache.reserve(rows, spare=0)
    for layer in (0, 1):
        cache.update(new, -new, layer)
    cache.advance(rows)
    return cache


def holds(cache: SlotCache, value: float) -> bool:
    return all(bool((cache.keys(layer, cache.length) == value).all()) for layer in (0, 1))


def test_free_slots_give_their_memory_back() -> None:
    memory = SlotMemory()
    first, second, third = (filled(memory, value, 5) for value in (1.0, 2.0, 3.0))
    size = memory.keys[0].numel()
    del first, third
    memory.trim()
    assert memory.keys[0].numel() == size * 2 // 3
    assert holds(second, 2.0)
    assert holds(filled(memory, 4.0, 900), 4.0)
    assert holds(second, 2.0)
    del second
    memory.trim()
    assert (memory.capacity, memory.keys) == (0, {})
    assert holds(filled(memory, 5.0, 3), 5.0)


def test_a_growth_that_fails_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, alone, new = SlotMemory(), KeyValueCache(), torch.ones(1, 2, 5, 3)
    cache = filled(memory, 1.0, 5)
    alone.reserve(5)
    for layer in (0, 1):
        alone.update(new, new, layer)
    alone.advance(5)
    make, made = torch.Tensor.new_zeros, itertools.count()

    def short(like: torch.Tensor, *size: int) -> torch.Tensor:
        if next(made) % 2:
            raise MemoryError
        return make(like, *size)

    for grown in (cache, alone):
        before = grown.length
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "new_zeros", short)
            with pytest.raises(MemoryError):
                grown.reserve(900)
        grown.reserve(900)
        rows = torch.full((1, 2, 800, 3), 7.0)
        for layer in (0, 1):
            keys, _ = grown.update(rows, rows, layer)
            assert (keys[:, :, :before] == 1).all()
            assert (keys[:, :, before:] == 7).all()


def test_cannot_roll_forward() -> None:
    with pytest.raises(ValueError, match="cannot roll back"):
        KeyValueCache().rollback(1)


class _Old(torch.nn.Module):
    def forward(self, hidden: torch.Tensor, past_key_values: object = None) -> torch.Tensor:
        return hidden


class _New(torch.nn.Module):
    def forward(self, hidden: torch.Tensor, cache: object = None) -> torch.Tensor:
        return hidden


@pytest.mark.parametrize(("layer", "name"), [(_Old(), "past_key_values"), (_New(), "cache")])
def test_a_layer_is_given_its_cache_by_the_name_it_has(layer: torch.nn.Module, name: str) -> None:
    assert cache_argument(layer) == name


def test_where_rows_of_slots_are_is_told_anew_when_they_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured passes go by it. Where layers have not the same room, none is."""
    memory, places = SlotMemory(), list[object]()
    cache = filled(memory, 1.0, 5)
    cache.mark_video(torch.tensor([False, True]))
    table = memory.located()
    assert table is not None

    def told() -> list[int]:
        assert memory.located() is table
        return table.flatten().tolist()

    def expected() -> list[int]:
        stores = [store for layer in (0, 1) for store in (memory.keys[layer], memory.values[layer])]
        assert memory.video is not None
        return [memory.capacity, memory.video.data_ptr(), *(store.data_ptr() for store in stores)]

    assert told() == expected()
    places.append(memory.place)
    cache.reserve(900)
    assert told() == expected()
    places.append(memory.place)
    other = filled(memory, 2.0, 3)
    assert told() == expected()
    places.append(memory.place)
    copy = other.copied()
    places.append(memory.place)
    assert memory.video is not None
    assert memory.video.sum(1).tolist() == [1, 0, 0]
    del copy
    memory.trim()
    assert told() == expected()
    places.append(memory.place)
    assert all(before != after for before, after in itertools.pairwise(places))
    make, made = torch.Tensor.new_zeros, itertools.count()

    def short(like: torch.Tensor, *size: int) -> torch.Tensor:
        if next(made) == 2:
            raise MemoryError
        return make(like, *size)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_zeros", short)
        with pytest.raises(MemoryError):
            cache.reserve(3_000)
    assert memory.place is None
    cache.reserve(3_000)
    assert memory.place is not None
    assert told() == expected()


@pytest.mark.parametrize("then", ["grows", "has another slot", "grows less"])
@pytest.mark.parametrize("failing", ["reserve", "trim"])
def test_after_memory_was_short_for_some_layers_the_others_rows_stand(
    failing: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SlotMemory()
    cache, other = filled(memory, 1.0, 5), filled(memory, 2.0, 3)
    operation = "new_zeros" if failing == "reserve" else "clone"
    work, done = getattr(torch.Tensor, operation), itertools.count()

    def short(tensor: torch.Tensor, *given: int) -> torch.Tensor:
        if next(done) == 1:
            raise MemoryError
        return work(tensor, *given)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, operation, short)
        if failing == "reserve":
            with pytest.raises(MemoryError):
                cache.reserve(3_000)
        else:
            del other
            memory.trim()
    assert memory.place is None
    if then == "has another slot":
        assert filled(memory, 3.0, 7).slot == (2 if failing == "reserve" else 1)
    else:
        cache.reserve(4_000 if then == "grows" else memory.capacity + 1)
    assert memory.place is not None
    for layer in (0, 1):
        assert (cache.keys(layer, 5) == 1).all()
        assert (memory.values[layer][0, :, :5] == -1).all()
        if failing == "reserve":
            assert (memory.keys[layer][1, :, :3] == 2).all()
