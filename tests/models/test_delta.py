"""The gated delta rule: outputs and rollback held against its definition, and against the library."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lvspec_cli.models.cache import KeyValueCache
from lvspec_cli.models.delta import KEPT_ROWS, PASS_ROWS, GatedDelta, LayerState, LayerStates, Rows, unit

HEADS, KEY_HEADS, KEY, VALUE, CHANNELS, BEFORE = 4, 2, 6, 5, 3, 3


def rows_of(seed: int, count: int) -> tuple[Rows, Tensor]:
    """Random rows, and their inputs of the convolution."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rows = Rows(
        unit(drawn(KEY_HEADS, count, KEY)),
        unit(drawn(KEY_HEADS, count, KEY)),
        drawn(HEADS, count, VALUE),
        -drawn(HEADS, count).abs(),
        drawn(HEADS, count).sigmoid(),
    )
    return rows, drawn(count, CHANNELS)


def joined(parts: list[tuple[Rows, Tensor]]) -> Rows:
    fields = ("queries", "keys", "values", "decays", "rates")
    return Rows(*(torch.cat([getattr(rows, name) for rows, _ in parts], dim=1) for name in fields))


def by_definition(rows: Rows) -> Tensor:
    """Row after row, each with the state of the one before."""
    state = torch.zeros(HEADS, KEY, VALUE, dtype=torch.float64)
    groups, outputs = HEADS // KEY_HEADS, []
    queries, keys = (part.double().repeat_interleave(groups, 0) for part in (rows.queries, rows.keys))
    for t in range(rows.keys.shape[1]):
        state = state * rows.decays[:, t].double().exp()[:, None, None]
        held = (keys[:, t, :, None] * state).sum(1)
        update = rows.rates[:, t, None].double() * (rows.values[:, t].double() - held)
        state = state + keys[:, t, :, None] * update[:, None]
        outputs.append((queries[:, t, :, None] * state).sum(1))
    return torch.stack(outputs, dim=1).float()


def blank() -> LayerState:
    return LayerState(torch.zeros(HEADS, KEY, VALUE), KEY_HEADS, torch.zeros(BEFORE, CHANNELS))


STEPS = st.lists(st.tuples(st.integers(1, 2 * PASS_ROWS), st.integers(0, KEPT_ROWS)), min_size=1, max_size=8)


@settings(max_examples=60)
@given(STEPS)
def test_what_stays_is_what_was_never_taken_back(steps: list[tuple[int, int]]) -> None:
    """Passes of any length, after each of which some of its rows are taken back."""
    states = LayerStates()
    state = states.of(0, blank)
    length = 0
    parts: list[tuple[Rows, Tensor]] = []
    for seed, (count, back) in enumerate(steps):
        rows, channels = rows_of(seed, count)
        states.before(length, count)
        assert torch.equal(
            state.tail(length - states.settled),
            torch.cat([torch.zeros(BEFORE, CHANNELS), *(c for _, c in parts)])[-BEFORE:],
        )
        outputs = state.run(rows, channels, length - states.settled)
        length += count
        states.after(length, count)
        whole = by_definition(joined([*parts, (rows, channels)]))
        torch.testing.assert_close(outputs, whole[:, -count:], atol=2e-4, rtol=1e-3)
        back = 0 if count > PASS_ROWS else min(back, count)
        states.rollback(length - back) if length - back else None
        if length - back == 0:
            return
        length -= back
        stays = next(rows.split(count - back)) if count - back else None
        parts += [(stays, channels[: count - back])] if stays else []


def test_rows_that_stay_newest_follow_the_settled_state() -> None:
    """Slow decays: behind 80 newest rows the state still counts."""
    states, parts = LayerStates(), []
    state = states.of(0, blank)
    for seed in range(30):
        rows, channels = rows_of(seed, 9)
        rows = replace(rows, decays=rows.decays / 100)
        states.before(9 * seed, 9)
        outputs = state.run(rows, channels, 9 * seed - states.settled)
        states.after(9 * seed + 9, 9)
        parts.append((rows, channels))
        right = by_definition(joined(parts))[:, -9:]
        torch.testing.assert_close(outputs, right, atol=2e-4, rtol=1e-3)
    assert 0 < states.settled < 270


def test_a_marked_length_is_one_to_come_back_to() -> None:
    first, second, third = rows_of(1, 50), rows_of(2, 100), rows_of(3, 9)
    states = LayerStates()
    state = states.of(0, blank)
    states.before(0, 50)
    state.run(*first, 0)
    states.after(50, 50)
    states.mark(50)
    states.before(50, 100)
    state.run(*second, 50 - states.settled)
    states.after(150, 100)
    with pytest.raises(ValueError, match="cannot roll back to 49"):
        states.rollback(49)
    for _ in range(2):
        states.rollback(50)
        states.before(50, 9)
        outputs = state.run(*third, 50 - states.settled)
        states.after(59, 9)
        right = by_definition(joined([first, third]))[:, -9:]
        torch.testing.assert_close(outputs, right, atol=2e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def layer() -> torch.nn.Module:
    modeling = pytest.importorskip("transformers.models.qwen3_5.modeling_qwen3_5")
    configuration = pytest.importorskip("transformers.models.qwen3_5.configuration_qwen3_5")
    torch.manual_seed(0)
    config = configuration.Qwen3_5TextConfig(
        hidden_size=16, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=6, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8,
    )  # fmt: skip
    return modeling.Qwen3_5GatedDeltaNet(config, 0).eval()


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 3, 30, 200])
def test_a_layer_is_the_librarys(layer: torch.nn.Module, count: int) -> None:
    hidden = torch.randn(1, count, 16)
    right = layer(hidden)
    ours, cache = GatedDelta(layer), KeyValueCache()
    torch.testing.assert_close(ours(hidden, None), right)
    outputs = []
    for part in hidden.split((count + 1) // 2, dim=1):
        cache.reserve(cache.length + part.shape[1])
        outputs.append(ours(part, cache, attention_mask=None))
        cache.advance(part.shape[1])
    torch.testing.assert_close(torch.cat(outputs, dim=1), right, atol=1e-5, rtol=1e-4)
    assert cache.bytes > 0


@torch.inference_mode()
@pytest.mark.parametrize("name", ["cache", "cache_params"])  # transformers 5.24 renamed it
def test_the_cache_has_either_name(layer: torch.nn.Module, name: str) -> None:
    hidden, cache = torch.randn(1, 3, 16), KeyValueCache()
    cache.reserve(3)
    found = GatedDelta(layer)(hidden, **{name: cache}, attention_mask=None)
    torch.testing.assert_close(found, layer(hidden), atol=1e-5, rtol=1e-4)
    cache.advance(3)
    assert cache.bytes > 0, "its states are ours"
