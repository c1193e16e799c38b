"""Layers on CPUs whose products of few rows, or of many, are oneDNN's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lvspec_cli.models.kernels import cpu_linear, wide_products
from lvspec_cli.models.kernels.cpu_linear import MOST_ROWS, CpuLinear, replace_linear_layers
from lvspec_cli.models.kernels.wide_products import by_onednn, is_the_same, least_rows, multiply
from tests.models.test_wide_products import drawn, layer_of

STAND_ALONE = cpu_linear.rows_stand_alone()  # as on AMD's processors


class Model(nn.Module):
    """Two kinds of layers, one of several blocks, and things that are no plain linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            layer_of(512, 384, bias=True),
            layer_of(384, 512, bias=False),
            layer_of(512, 384, bias=True),
        )
        self.norm, self.sixteen_bits, self.other = nn.LayerNorm(384), nn.Linear(8, 8).half(), Louder(8, 8)
        self.tied = nn.Linear(384, 512, bias=False)
        self.tied.weight = self.second.weight

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.norm(self.third(self.second(self.first(inputs)).tanh()))
        return hidden


class Louder(nn.Linear):
    """Another formula."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)


@pytest.fixture(params=["many", "few", "both"])
def pays(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of how many rows products are replaced; all weights are large."""
    monkeypatch.setattr(wide_products, "pays", lambda: request.param != "few")
    monkeypatch.setattr(cpu_linear, "few_rows_pay", lambda: request.param != "many")
    monkeypatch.setattr(cpu_linear, "LEAST_WEIGHTS", 384 * 512)
    kind: str = request.param
    return kind


@pytest.fixture
def threads_again() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 80).map(lambda eighths: 8 * eighths),
    st.integers(2, 60).map(lambda eighths: 8 * eighths),
    st.booleans(),
    st.integers(0, 900),
)
def test_what_is_replaced_gives_the_same_bits(inputs: int, outputs: int, bias: bool, more: int) -> None:
    old = layer_of(inputs, outputs, bias=bias)
    if is_the_same(old):  # as it is on AMD's processors
        least = least_rows(inputs, outputs, torch.get_num_threads())
        values = drawn(min(least, 3000) + more, inputs)
        assert torch.equal(CpuLinear.of(old, most=0, least=least)(values), old(values))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 80).map(lambda eighths: 8 * eighths),
    st.integers(2, 60).map(lambda eighths: 8 * eighths),
    st.booleans(),
    st.integers(2, MOST_ROWS),
    st.integers(2, MOST_ROWS),
)
def test_few_rows_are_the_same_beside_any_others(
    inputs: int, outputs: int, bias: bool, rows: int, others: int
) -> None:
    new = CpuLinear.of(layer_of(inputs, outputs, bias=bias), most=MOST_ROWS, least=sys.maxsize)
    if STAND_ALONE:
        values, count = drawn(MOST_ROWS, inputs), min(rows, others)
        one, other = new(values[:rows].clone()), new(values[:others].clone())
        assert torch.equal(one[:count], other[:count])


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_few_rows_are_the_same_with_any_number_of_threads(threads_again: None, rows: int) -> None:
    new = CpuLinear.of(layer_of(1536, 2048, bias=True), most=MOST_ROWS, least=sys.maxsize)
    values, found = drawn(rows, 1536), list[Tensor]()
    for threads in range(1, 5):
        torch.set_num_threads(threads)
        found.append(new(values))
    assert not STAND_ALONE or all(torch.equal(each, found[0]) for each in found)


@torch.inference_mode()
def test_a_model_says_the_same(pays: str) -> None:
    old = Model().eval()
    new = deepcopy(old)
    same = [is_the_same(layer) for layer in (old.first, old.second)]
    assert replace_linear_layers(new) == (2 * sum(same) if pays == "many" else 4)
    for rows in (1, 2, 7, 64, 100, 333):
        found, expected = new(drawn(1, rows, 512)), old(drawn(1, rows, 512))
        if pays == "many" or rows > MOST_ROWS:
            assert torch.equal(found, expected)
        else:
            assert torch.allclose(found, expected, atol=1e-4)


@torch.inference_mode()
def test_the_layers_that_are_replaced(pays: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "is_the_same", lambda layer: layer.in_features == 512)
    monkeypatch.setattr(cpu_linear, "LEAST_WEIGHTS", 384 * 512 + (pays == "both"))  # then none is large
    old = Model().eval()
    new = deepcopy(old)
    weight = new.first.weight
    assert replace_linear_layers(new) == (4 if pays == "few" else 2)
    kinds = {name: type(module) for name, module in new.named_children()}
    assert kinds == {
        "first": CpuLinear,
        "second": CpuLinear if pays == "few" else nn.Linear,
        "third": CpuLinear,
        "norm": nn.LayerNorm,
        "sixteen_bits": nn.Linear,
        "other": Louder,
        "tied": CpuLinear if pays == "few" else nn.Linear,
    }
    assert new.first.weight is weight
    assert new.tied.weight is new.second.weight
    assert not new.first.training
    assert [name for name, _ in new.named_parameters()] == [name for name, _ in old.named_parameters()]
    assert replace_linear_layers(new) == 0
    values = drawn(1, 200, 512)
    assert torch.allclose(new(values), old(values), atol=1e-4)


def test_rows_that_depend_on_others_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def otherwise(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return by_onednn(inputs, weight, bias) * (1 + 1e-6 * (len(inputs) > 16))

    monkeypatch.setattr(cpu_linear, "_GAIN", 0.0)
    assert cpu_linear.few_rows_pay() is STAND_ALONE
    monkeypatch.setattr(cpu_linear, "by_onednn", otherwise)
    assert not cpu_linear.few_rows_pay()


def test_each_number_of_rows_has_its_product(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = CpuLinear.of(layer_of(192, 512, bias=False), most=4, least=9)
    calls = list[tuple[str, int]]()

    def few(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(("few", inputs.shape[-2]))
        return by_onednn(inputs, weight, bias)

    def many(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(("many", inputs.shape[-2]))
        return multiply(inputs, weight, bias)

    monkeypatch.setattr(cpu_linear, "by_onednn", few)
    monkeypatch.setattr(wide_products, "multiply", many)
    for rows in (0, 1, 4, 5, 8, 9, 10):
        assert layer(drawn(1, rows, 192)).shape == (1, rows, 512)
    assert calls == [("few", 0), ("few", 1), ("few", 4), ("many", 9), ("many", 10)]


def test_where_it_is_not_faster_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "LEAST_WEIGHTS", 0)
    monkeypatch.setattr(cpu_linear, "is_the_same", lambda layer: True)
    monkeypatch.setattr(cpu_linear, "rows_stand_alone", lambda: True)
    for many, few, expected in ((1e9, 1e9, 0), (0.0, 1e9, 4), (1e9, 0.0, 4)):
        monkeypatch.setattr(wide_products, "_GAIN", many)
        monkeypatch.setattr(cpu_linear, "_GAIN", few)
        assert replace_linear_layers(Model()) == expected
    monkeypatch.setattr(wide_products, "_GAIN", 0.0)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert replace_linear_layers(Model()) == 0
