"""Few rows by weights in nf4: the kernels in Triton's interpreter, and what a GPU would run, read here."""

from __future__ import annotations

import operator
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.models import load
from lvspec_cli.models.kernels import small_batch
from lvspec_cli.models.kernels.nf4 import LEVELS, ROWS, WORD, Packed
from lvspec_cli.models.kernels.small_batch import SmallBatch4bit, Tile, is_usable, use_small_batch_kernels
from lvspec_cli.models.quantise import verification_width_limit, width_limit_of
from lvspec_cli.types import Quantisation

IN_THE_INTERPRETER = """
import numpy
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from lvspec_cli.models.kernels.small_batch import Packed, multiply


def in_order(one, other, dtype):
    # Sums in the order of the inputs, as on a GPU: by products of some CPUs they depend on the row's place.
    return (one.astype(dtype)[:, :, None] * other.astype(dtype)[None]).sum(axis=1)


numpy.matmul = in_order  # by which the interpreter multiplies
for outputs, inputs, rows, biased in [(48, 256, 1, True), (40, 192, 3, False), (96, 1088, 5, True),
                                      (33, 640, 17, True), (130, 2048, 16, False)]:
    torch.manual_seed(outputs)
    packed, state = quantize_4bit(torch.randn(outputs, inputs) / 20, blocksize=64, quant_type="nf4",
                                  compress_statistics=True)
    matrix = Packed.of(packed, state)
    values, bias = torch.randn(rows, inputs).half(), torch.randn(outputs).half() if biased else None
    exact = values.double() @ dequantize_4bit(packed, state).double().T + (bias.double() if biased else 0)
    found = multiply(values, matrix, bias, by_table=True)
    assert found.dtype == torch.float16
    assert found.shape == (rows, outputs)
    off = (found.double() - exact).norm() / exact.norm()
    assert off < 1e-3, (outputs, inputs, rows, float(off))
    for row in {0, rows - 1}:
        alone = multiply(values[row : row + 1], matrix, bias, by_table=True)
        assert torch.equal(found[row : row + 1], alone)

import triton.language as tl
from lvspec_cli.models.kernels import fp8, fused, fused_kernels
from lvspec_cli.models.kernels.fp8 import Packed8
from lvspec_cli.models.kernels.int4 import Packed4
from tests.models.fused_checks import JOINED, PACKED, PRODUCTS, SHAPES, check_joined, check_kernels
from tests.models.fused_checks import check_layer, check_packed, check_products, check_rounding

# Few, because the interpreter is slow, and so that a program has several stretches of keys.
fused_kernels.PARTS, fused.MOST_ROWS, fused.MOST_JOINED = tl.constexpr(2), 3, 3
for shape in SHAPES:
    check_kernels(*shape)
for shape in JOINED:
    check_joined(*shape)
for product in PRODUCTS:
    check_products(*product)
for product in PACKED:
    check_packed(Packed4, *product)
    check_packed(Packed8, *product)
fp8.CLIP_ROWS = 9
check_rounding(9, 208)
check_layer()
"""


@pytest.mark.long
def test_in_the_interpreter_products_are_those_of_unpacked_weights_and_layers_those_of_their_twins() -> None:
    """In one process, because its start takes most of the time."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_INTERPRETER], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_kernels_compile_for_a_gpu() -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lvspec_cli.models.kernels import small_batch_kernels as kernels
    from lvspec_cli.models.kernels.product_kernels import ADDED, add_up

    kinds = {
        **dict.fromkeys(("inputs", "bias", "result"), "*bf16"),
        **dict.fromkeys(("outer", "outer_levels", "offset", "levels", "sums"), "*fp32"),
        "words": "*i32",
        "scales": "*u8",
    }
    tile = Tile.of(27648, 5120)
    shape = {"OUTPUTS": tile.outputs, "WORDS": tile.words, "ROWS": 16, "BY_TABLE": False}
    for kernel, constants in (
        (kernels.partial_sums, shape),
        (add_up, {"SPLITS": tile.splits, "BIAS": True, "OUTPUTS": ADDED, "EARLY": False}),
    ):
        kind = {
            name: "constexpr" if name in constants else kinds.get(name, "i32") for name in kernel.arg_names
        }
        source = ASTSource(fn=kernel, signature=kind, constexprs=constants)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
        assert made.asm["cubin"]


def run(assembly: str, word: int) -> list[float]:
    """What a few PTX instructions leave in $0 to $7, $8 being the word."""
    registers: dict[str, int] = {"$8": word}
    floats: dict[str, float] = {}

    def value(name: str) -> int:
        return registers[name] if name in registers else int(name, 0)

    for line in re.split(r";\s*", assembly.strip().strip("{}")):
        if not line.strip() or line.strip().startswith(".reg"):
            continue
        name, rest = line.strip().split(" ", 1)
        target, *given = [each.strip() for each in re.sub(r"\{(\w), (\w)\}", r"\1+\2", rest).split(",")]
        if name == "mov.b32" and "+" in target:
            low, high = target.split("+")
            registers |= {low: value(given[0]) & 0xFFFF, high: value(given[0]) >> 16}
        elif name == "mov.b32":
            registers[target] = value(given[0])
        elif name == "cvt.f32.f16":
            bits = torch.tensor(value(given[0]), dtype=torch.int32).to(torch.uint16)
            floats[target] = float(bits.view(torch.float16))
        else:
            registers[target] = INSTRUCTIONS[name](*map(value, given))
    return [floats[f"${place}"] for place in range(8)]


def _permute(low: int, high: int, chosen: int) -> int:
    """PTX's ``prmt`` in its default mode, where the fourth bit repeats a byte's sign."""
    pool = low.to_bytes(4, "little") + high.to_bytes(4, "little")
    found = []
    for place in range(4):
        number = chosen >> (4 * place) & 15
        byte = pool[number & 7]
        found.append((255 if byte & 128 else 0) if number & 8 else byte)
    return int.from_bytes(bytes(found), "little")


INSTRUCTIONS: dict[str, Callable[..., int]] = {
    "and.b32": operator.and_,
    "or.b32": operator.or_,
    "shr.b32": operator.rshift,
    "prmt.b32": _permute,
}


@given(word=st.integers(0, 2**32 - 1))
def test_a_word_is_unpacked_to_its_levels(word: int) -> None:
    pytest.importorskip("triton")
    from lvspec_cli.models.kernels.small_batch_kernels import UNPACK

    halves = torch.tensor(LEVELS).half().float().tolist()
    assert run(UNPACK.value, word) == [halves[word >> (4 * place) & 15] for place in range(8)]


def test_the_levels_are_the_librarys() -> None:
    _, state = quantize_4bit(torch.randn(64, 64), quant_type="nf4")
    assert torch.allclose(state.code, torch.tensor(LEVELS), atol=1e-6)


@given(outputs=st.integers(1, 40_000), blocks=st.integers(1, 500))
def test_a_tile_covers_its_matrix(outputs: int, blocks: int) -> None:
    tile, words = Tile.of(outputs, 64 * blocks), 64 * blocks // WORD
    assert tile.splits * tile.steps * tile.words >= words
    assert tile.words % 8 == 0  # whole blocks, which share a scale
    assert tile.splits == 1 or tile.steps >= 4


def test_tiles_that_were_measured() -> None:
    shapes = ((27648, 5120), (5120, 27648), (5120, 5120), (1024, 5120), (256, 2048), (64, 64))
    assert [Tile.of(*shape).splits for shape in shapes] == [8, 16, 16, 16, 8, 1]


def packed(inputs: int, **how: Any) -> Packed | None:
    how = {"blocksize": 64, "quant_type": "nf4", "compress_statistics": True, **how}
    return Packed.of(*quantize_4bit(torch.randn(64, inputs), **how))


def test_what_is_laid_out_otherwise_is_left_to_the_library() -> None:
    assert packed(128) is not None
    assert packed(96) is None  # a block of weights begins in one row and ends in the next
    assert packed(128, blocksize=128) is None
    assert packed(128, quant_type="fp4") is None
    assert packed(128, compress_statistics=False) is None


class Library(torch.nn.Module):
    """In the place of bitsandbytes' layer."""

    bias = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + 1


@pytest.mark.parametrize(
    ("rows", "kind"), [(ROWS + 1, torch.bfloat16), (2, torch.float32), (0, torch.float16)]
)
def test_the_library_has_many_rows_and_full_precision(rows: int, kind: torch.dtype) -> None:
    inputs = torch.zeros(1, rows, 128, dtype=kind)
    matrix = packed(128)
    assert matrix is not None
    assert torch.equal(SmallBatch4bit(Library(), matrix)(inputs), inputs + 1)


def test_layers_are_taken_by_their_kind() -> None:
    def layer(inputs: int) -> Linear4bit:
        made = Linear4bit(inputs, 64, bias=True, quant_type="nf4", compute_dtype=torch.bfloat16)
        weights, state = quantize_4bit(torch.randn(64, inputs), quant_type="nf4", compress_statistics=True)
        made.weight = Params4bit(weights, requires_grad=False, quant_state=state, bnb_quantized=True)
        return made

    model = torch.nn.ModuleDict({"one": layer(128), "odd": layer(96), "plain": torch.nn.Linear(128, 64)})
    weights: Any = model["one"].weight
    assert use_small_batch_kernels(model) == 1
    assert [type(part).__name__ for part in model.values()] == ["SmallBatch4bit", "Linear4bit", "Linear"]
    assert any(part is weights for part in model["one"].parameters())


@pytest.mark.parametrize(
    ("place", "quantisation", "captured", "usable", "norms", "rows"),
    [
        ("cuda", Quantisation.NF4, True, True, True, True),
        ("cuda", Quantisation.NF4, False, True, True, False),
        ("cuda", Quantisation.NF4, True, False, True, False),
        ("cuda", Quantisation.INT8, True, True, True, False),
        ("cpu", Quantisation.NF4, True, True, False, False),
    ],
)
def test_where_the_kernels_are_taken(
    place: str, quantisation: Quantisation, captured: bool, usable: bool, norms: bool, rows: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    called: list[str] = []
    monkeypatch.setattr(load, "fuse_norms", lambda _: called.append("norms"))
    monkeypatch.setattr(small_batch, "use_small_batch_kernels", lambda _: called.append("rows"))
    monkeypatch.setattr(small_batch, "is_usable", lambda _: usable)
    load.install_kernels(object(), [torch.device(place)], quantisation, captured=captured)
    assert called == ["norms"] * norms + ["rows"] * rows
    called.clear()
    load.install_kernels(object(), [torch.device(place)] * 2, quantisation, captured=captured)
    assert called == []  # parts of a split model are moved by hooks of their own


def test_rows_have_no_limit_where_the_kernels_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_batch, "is_usable", lambda _: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    card = torch.device("cuda")
    assert width_limit_of(card) is None
    limit = verification_width_limit(Quantisation.NF4, "NVIDIA H200", metadata.version("bitsandbytes"))
    assert limit is not None
    assert width_limit_of(card, captured=False) == limit


def test_a_cpu_is_no_place_for_it() -> None:
    assert not is_usable(torch.device("cpu"))
