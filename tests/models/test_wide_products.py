"""Products by oneDNN: the sums of MKL, to the bit, or none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lvspec_cli.models.kernels import wide_products
from lvspec_cli.models.kernels.wide_products import (
    block_of,
    is_the_same,
    least_rows,
    multiply,
    rows_added_at_once,
    width_of,
)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def layer_of(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    layer.weight.copy_(drawn(outputs, inputs))
    if bias:
        layer.bias.copy_(drawn(outputs))
    return layer


@pytest.mark.parametrize(
    ("inputs", "block"), [(8, 8), (192, 192), (193, 96), (256, 128), (383, 191), (384, 192), (2560, 192)]
)
def test_the_inputs_that_are_summed_at_once(inputs: int, block: int) -> None:
    assert block_of(inputs) == block


@pytest.mark.parametrize(
    ("inputs", "outputs", "threads", "rows"),
    [
        (192, 256, 1, 31),  # 1.5 million products
        (192, 256, 2, 62),
        (192, 50000, 1, 24),  # of fewer, too many would be padding
        (192, 50000, 4, 32),  # fewer for each thread are summed in other orders
        (512, 192, 1, 77),  # three blocks of 2.5 million
        (512, 192, 2, 153),
        (2560, 2560, 1, 64),  # whose weights are copied
        (2560, 2560, 16, 128),
    ],
)
def test_a_product_has_to_be_worth_a_call(inputs: int, outputs: int, threads: int, rows: int) -> None:
    assert least_rows(inputs, outputs, threads) == rows


@pytest.mark.parametrize(
    ("outputs", "rows"), [(192, 1024), (1024, 1024), (2560, 384), (8192, 128), (151936, 32)]
)
def test_results_that_are_added_stay_in_the_cache(outputs: int, rows: int) -> None:
    assert rows_added_at_once(outputs) == rows


def test_rows_are_padded_to_few_numbers() -> None:
    """For each of which oneDNN keeps kernels."""
    padded = [width_of(rows) for rows in range(1, 1025)]
    assert len(set(padded)) == 23
    assert padded[::200] == [32, 208, 448, 640, 896, 1024]
    assert all(width <= max(32, 1.5 * rows) for rows, width in enumerate(padded, start=1))


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 8, 3), (40, 192, 64), (40, 300, 64), (9, 512, 192), (513, 400, 3000)],  # the last: in pieces
)
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_a_linear_layer(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    layer, values = layer_of(inputs, outputs, bias=bias), drawn(2, rows, inputs)
    with torch.inference_mode():
        found, expected = multiply(values, layer.weight, layer.bias), layer.double()(values.double())
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * inputs**0.5 * expected.abs().max()


@pytest.mark.parametrize("inputs", [192, 400])
def test_rows_that_need_no_padding_are_the_same(inputs: int) -> None:
    values, weight = drawn(2 * 64, inputs), drawn(64, inputs)
    before = values.clone()
    wide, padded = multiply(values, weight, None), multiply(values[:113], weight, None)
    assert torch.equal(wide[:113], padded)
    assert torch.equal(values, before)


def test_sums_of_blocks_are_added_in_their_order() -> None:
    values, weight, bias = drawn(70, 500), drawn(64, 500), drawn(64)
    parts = [
        multiply(values[:, at : at + 192], weight[:, at : at + 192].contiguous(), None)
        for at in (0, 192, 384)
    ]
    assert torch.equal(multiply(values, weight, bias), ((bias + parts[0]) + parts[1]) + parts[2])


def test_pieces_and_padding_are_rows_of_one_product() -> None:
    for inputs in (192, 400):
        values, weight = drawn(2100, inputs), drawn(64, inputs)
        whole = multiply(values, weight, None)
        assert torch.equal(multiply(values[1024:2048], weight, None), whole[1024:2048])
        assert torch.equal(multiply(values[2048:], weight, None), whole[2048:])
        assert torch.equal(multiply(values[:40], weight, None), whole[:40])


def test_another_order_of_sums_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_products, "BLOCK", 50)
    assert not is_the_same(layer_of(512, 64, bias=False))


def test_results_that_are_added_are_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, product = list[int](), wide_products.by_onednn

    def counted(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows.append(len(inputs))
        return product(inputs, weight, bias)

    monkeypatch.setattr(wide_products, "by_onednn", counted)
    multiply(drawn(300, 400), drawn(8192, 400), None)
    multiply(drawn(300, 192), drawn(8192, 192), None)
    assert rows == [128, 128, 48] * 3 + [320]
