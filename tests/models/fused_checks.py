"""The kernels of fused layers beside their twins. Imported by a process that runs Triton's interpreter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lvspec_cli.models.attention import register
from lvspec_cli.models.cache import KeyValueCache, SlotMemory, Stored
from lvspec_cli.models.joined import FusedRows, JoinedRows, Layout, Part, blocks_of, told_of
from lvspec_cli.models.kernels import fp8_kernels, int4_kernels
from lvspec_cli.models.kernels.fp8 import CODE, Packed8, by_rounding
from lvspec_cli.models.kernels.fused import FusedLayers, Operations, Twins, fuse_layers
from lvspec_cli.models.kernels.fused_kernels import Kernels
from lvspec_cli.models.kernels.packed import Packed, by_unpacking, is_near

# Heads, key heads, size of a head, rows and the first one's slot: in one stretch of keys, and across two.
SHAPES = ((4, 2, 16, 1, 0), (6, 1, 40, 3, 254), (2, 1, 16, 16, 120))
JOINED = ((6, 1, 40), (4, 2, 16))  # heads, key heads, size of a head, of several sequences
PRODUCTS = ((70, 200, False), (65, 1040, True))  # outputs, inputs, biased: sums of one part, and of two
PACKED = ((70, 192, True), (40, 1088, False))
ROOM = 384


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert float((found - expected).float().norm() / expected.float().norm()) < 1e-3


def filled(rows: Tensor) -> Stored:
    """Keys and values (2, key heads, ROOM, size) in a cache, of whose rows every third is the video's."""
    cache = KeyValueCache()
    cache.reserve(ROOM, spare=0)
    cache.update(rows[0][None], rows[1][None], 0)
    cache.advance(ROOM)
    cache.mark_video(torch.arange(ROOM, device=rows.device) % 3 == 0)
    return cache.stored(0)


def check_kernels(heads: int, key_heads: int, size: int, rows: int, start: int, device: str = "cpu") -> None:
    """The kernels are their twins: in Triton's interpreter (``test_small_batch``), or on a GPU."""
    interpreted, twins, generator = Kernels(), Twins(), torch.Generator().manual_seed(heads)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).half().to(device)

    hidden, added, weight = (
        drawn(rows, heads * size - 8),
        drawn(rows, heads * size - 8),
        drawn(heads * size - 8),
    )
    for other in (None, added):
        pairs = zip(
            interpreted.add_norm(hidden, other, weight, 1e-6),
            twins.add_norm(hidden, other, weight, 1e-6),
            strict=True,
        )
        for found, expected in pairs:
            assert_close(found, expected)
    both = 3 * drawn(rows, 2 * 3 * size)
    assert_close(interpreted.gated(both), twins.gated(both))
    slots, turns = torch.arange(start, start + rows, device=device), drawn(rows, size // 2).repeat(1, 2)
    factors, projected = (turns.cos(), turns.sin()), drawn(rows, (heads + 2 * key_heads) * size)
    earlier = drawn(2, key_heads, ROOM, size)
    for norms in (None, (drawn(size), drawn(size))):
        own, others = filled(earlier), filled(earlier)
        queries = interpreted.rotate_and_write(projected, factors, norms, 1e-6, own, slots)
        assert_close(queries, twins.rotate_and_write(projected, factors, norms, 1e-6, others, slots))
        assert_close(own.keys, others.keys)
        assert_close(own.values, others.values)
    attended, shares = interpreted.attend(queries, own, slots, size**-0.5, watched=True)
    expected, expected_shares = twins.attend(queries, own, slots, size**-0.5, watched=True)
    assert_close(attended, expected)
    assert shares is not None
    assert expected_shares is not None
    assert_close(shares, expected_shares)
    # No row depends on those beside it. Stretches behind the last key are not read, and what a captured pass
    # was told of the rows' place holds after they have moved.
    table = own.table
    own.cache.reserve(2 * ROOM)
    for part in (own.keys, own.values):
        part[:, (start + rows - 1) // 128 * 128 + 128 :] = float("nan")
    assert own.table is table
    for row in {0, rows // 2, rows - 1}:
        alone = queries[:, row : row + 1].contiguous()
        found, none = interpreted.attend(alone, own, slots[row : row + 1], size**-0.5)
        assert torch.equal(found, attended[row : row + 1])
        assert none is None


def check_joined(heads: int, key_heads: int, size: int, device: str = "cpu") -> None:
    """Rows of several sequences are what each of them gives and writes alone, to the bit."""
    kernels, twins, generator = Kernels(), Twins(), torch.Generator().manual_seed(size)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).half().to(device)

    parts = (Part(0, 254, 3), Part(2, 5, 1), Part(3, 127, 7))  # slot 1 is free
    memory, rows = SlotMemory(), sum(part.rows for part in parts)
    caches = [memory.cache() for _ in range(4)]
    memory.reserve(ROOM, 0)
    for cache in caches:
        earlier = drawn(2, 1, key_heads, ROOM, size)
        cache.update(earlier[0], earlier[1], 0)
        cache.mark_video(torch.arange(ROOM, device=device) % 3 == 0)
    blocks = blocks_of([part.rows for part in parts], heads // key_heads)
    told = told_of(Layout.of(parts, (0, 4, 7), rows), blocks, len(blocks) + 2).to(device)
    joined = FusedRows(memory, JoinedRows.of(told, rows))
    turns = drawn(rows, size // 2).repeat(1, 2)
    factors, projected = (turns.cos(), turns.sin()), drawn(rows, (heads + 2 * key_heads) * size)
    stored, norms = joined.of_layer(0), (drawn(size), drawn(size))
    before = torch.stack((stored.keys, stored.values))
    queries = kernels.rotate_and_write(projected, factors, norms, 1e-6, stored, joined.slots)
    attended, shares = kernels.attend(queries, stored, joined.slots, size**-0.5, watched=True)
    expected, expected_shares = twins.attend(queries, stored, joined.slots, size**-0.5, watched=True)
    assert shares is not None
    assert expected_shares is not None
    assert_close(attended, expected)
    assert_close(shares, expected_shares)
    first = 0
    for part in parts:
        some = slice(first, first := first + part.rows)
        own, slots = filled(before[:, part.slot].clone()), joined.slots[some]
        turned = (factors[0][some], factors[1][some])
        alone = kernels.rotate_and_write(projected[some], turned, norms, 1e-6, own, slots)
        found, share = kernels.attend(alone, own, slots, size**-0.5, watched=True)
        assert share is not None
        for one, other in (
            (queries[:, some], alone),
            (attended[some], found),
            (shares[:, some], share),
            (stored.keys[part.slot], own.keys),
            (stored.values[part.slot], own.values),
        ):
            assert torch.equal(one, other)
    assert torch.equal(stored.keys[1], before[0, 1])


def check_products(outputs: int, inputs: int, biased: bool, device: str = "cpu", most: int = 16) -> None:
    """Products are the twins', and a row's is the same to the bit beside any others."""
    generator = torch.Generator().manual_seed(outputs)
    weight, bias, rows = (
        torch.randn(shape, generator=generator).half().to(device)
        for shape in ((outputs, inputs), (outputs,), (most, inputs))
    )
    whole = Kernels().multiply(rows, weight, bias if biased else None)
    assert_close(whole, Twins().multiply(rows, weight, bias if biased else None))
    for count in range(1, most) if inputs < 512 else (1, 2, 9):  # larger ones take the interpreter long
        found = Kernels().multiply(rows[most - count :], weight, bias if biased else None)
        assert torch.equal(found, whole[most - count :]), count


def check_packed(
    kind: type[Packed], outputs: int, inputs: int, biased: bool, device: str = "cpu", most: int = 17
) -> None:
    """The same of packed weights, which are unpacked as the twin unpacks them."""
    generator = torch.Generator().manual_seed(outputs)
    weight, bias, rows = (
        torch.randn(shape, generator=generator).half().to(device)
        for shape in ((outputs, inputs), (outputs,), (most, inputs))
    )
    matrix, added = kind.of(weight), bias if biased else None
    unpacked: Any = fp8_kernels.unpacked if kind is Packed8 else int4_kernels.unpacked
    assert torch.equal(unpacked(matrix, torch.float32), matrix.unpacked(torch.float32))
    whole = Kernels().multiply(rows, matrix, added)
    assert_close(whole, by_unpacking(rows.float(), matrix, None if added is None else added.float()).half())
    for count in (1, 2, 5, 16) if inputs < 512 else (1, 9):  # larger ones take the interpreter long
        assert torch.equal(Kernels().multiply(rows[most - count :], matrix, added), whole[most - count :])


def check_rounding(rows: int, width: int, device: str = "cpu") -> None:
    """Inputs get the codes and scales that weights would."""
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.randn(rows, width, generator=generator).bfloat16()
    inputs *= 2.0 ** (torch.arange(rows) % 19 - 9)[:, None]
    inputs[0] = 0
    if device == "cpu":  # Triton's interpreter does not round to the nearest: it gets what has a code
        inputs = Packed8.of(inputs).unpacked(torch.bfloat16)
    inputs = inputs.to(device)
    found, expected = fp8_kernels.rounded(inputs), Packed8.of(inputs)
    assert torch.equal(found.scales, expected.scales)
    assert found.codes.dtype == CODE
    assert torch.equal(found.codes.float(), expected.codes.float())
    # The product of two such matrices is torch's.
    matrix, bias = Packed8.of(torch.randn(48, width, generator=generator).to(device)), inputs.new_ones(48)
    expected_product = by_rounding(inputs.float(), matrix, bias.float())
    try:
        product = fp8_kernels.multiply_clips(inputs, matrix, bias)
    except RuntimeError as error:  # torch 2.11 on CPUs: then tests/gpu alone has the product
        assert device == "cpu"
        assert "only supports per-tensor scaling for CPU" in str(error)
        return
    assert is_near(product, expected_product)


def fused_llama(operations: list[Operations], kind: torch.dtype, device: str = "cpu") -> FusedLayers | None:
    """A layer, a normalisation and a head of Llama by these operations, as a loaded model has them."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=40, num_attention_heads=2, num_key_value_heads=1, head_dim=16
    )
    config._attn_implementation = register()
    torch.manual_seed(0)
    layer, norm = LlamaDecoderLayer(config, 0).to(device, kind), nn.RMSNorm(32, 1e-6).to(device, kind)
    head = nn.Linear(32, 48, bias=False).to(device, kind)
    return fuse_layers([layer], norm, head, operations)


def check_layer(device: str = "cpu") -> None:
    """A whole layer's rows, of every captured width, are those of passes of one row."""
    made = fused_llama([Kernels()], torch.float16, device)
    assert made is not None
    assert made.rows_stand_alone
    assert made.joins
