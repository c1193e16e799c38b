"""Quantisation of weights, mostly by transformers' quantisers: their requirements, and the pass width that is
fast.

Only the linear layers of the language model's blocks are quantised, which hold nearly all weights. The video
tower, the embeddings and the output head stay in the compute dtype: the tower is read once a clip and its
widths are not always multiples of the kernels' blocks, the head decides every token, and a head that is tied
to the embeddings cannot be quantised.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from packaging.version import Version
from transformers import AwqConfig, BitsAndBytesConfig, FineGrainedFP8Config, GPTQConfig, TorchAoConfig

from lvspec_cli.errors import PairError, UsageError
from lvspec_cli.host import install_command
from lvspec_cli.models.kernels import small_batch
from lvspec_cli.models.kernels.fp8 import Packed8
from lvspec_cli.models.kernels.int4 import Packed4
from lvspec_cli.models.kernels.packed import Packed
from lvspec_cli.types import Quantisation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Kernels that compute in one dtype only.
_COMPUTES_IN = {Quantisation.BF16: torch.bfloat16}
_COMPUTES_IN_ON_A_GPU = {
    Quantisation.FP8: torch.bfloat16,
    Quantisation.AWQ: torch.float16,
    Quantisation.GPTQ: torch.float16,
    Quantisation.TORCHAO_INT4: torch.bfloat16,
}
_PACKAGES = {
    Quantisation.NF4: ("bitsandbytes",),
    Quantisation.INT8: ("bitsandbytes",),
    Quantisation.FP8: ("kernels",),  # of files that are made so; what we pack has kernels of our own
    Quantisation.AWQ: ("gptqmodel",),
    Quantisation.GPTQ: ("gptqmodel", "optimum"),
    Quantisation.TORCHAO_INT4: ("torchao",),
}
_EXTRAS = {
    Quantisation.FP8: "fp8",
    Quantisation.AWQ: "gptq",
    Quantisation.GPTQ: "gptq",
    Quantisation.TORCHAO_INT4: "torchao",
}
_LEAST_ON_A_CPU = {"gptqmodel": "7.7"}  # earlier ones compute in 16 bits what is float32
_LEAST_CAPABILITY = {Quantisation.FP8: (8, 9), Quantisation.TORCHAO_INT4: (8, 0)}
_PACKED = {Quantisation.INT4: Packed4, Quantisation.FP8: Packed8}
_ROW_BY_ROW = frozenset({Quantisation.NONE, Quantisation.BF16, Quantisation.NF4, *_PACKED})
_ROW_BY_ROW_ON_A_CPU = frozenset(
    {Quantisation.INT8, Quantisation.AWQ, Quantisation.GPTQ, Quantisation.TORCHAO_INT4}
)

TORCHAO_GROUP = 128

# The most rows that bitsandbytes' 4-bit kernels multiply without dequantising the weights first, for
# projections of 7B to 32B models, by the device's name. The first match counts. Taken from the dispatch of
# bitsandbytes 0.50.2, not measured.
_NF4_ROWS = (
    (r"H100|H200|H20|GH200|A100|A800|H800", 5),
    (r"B200|B300|GB200|GB300", 4),
    (r"RTX (40|50)\d\d|RTX .*Ada|RTX PRO|\bL4\b|L40", 8),
    (r"RTX 30\d\d|\bA10G?\b|\bA40\b|RTX A\d", 16),
    (r"\bT4\b|V100|RTX 20\d\d|TITAN|GTX", 7),
)
_NF4_ROWS_AT_LEAST = 4  # on all other devices, since 0.50


def verification_width_limit(
    quantisation: Quantisation, device_name: str, bitsandbytes_version: str
) -> int | None:
    """The most rows of a verification that need no dequantised weights; None if no limit is known.

    ``device_name``: as the driver gives it, such as ``NVIDIA H100 80GB HBM3``. Wider passes are correct but
    slow. Before 0.50, bitsandbytes has a kernel for one row only.
    """
    if quantisation is not Quantisation.NF4:
        return None
    if tuple(int(part) for part in re.findall(r"\d+", bitsandbytes_version)[:2]) < (0, 50):
        return 1
    for pattern, rows in _NF4_ROWS:
        if re.search(pattern, device_name):
            return rows
    return _NF4_ROWS_AT_LEAST


def width_limit_of(device: torch.device, *, captured: bool = True) -> int | None:
    """The limit for nf4 on a device of this machine; 0 on a CPU, which always dequantises the weights.

    None if passes are ``captured`` and ``small_batch`` has kernels for the device.
    """
    if device.type != "cuda":
        return 0
    if captured and small_batch.is_usable(device):
        return None
    name = torch.cuda.get_device_name(device)
    return verification_width_limit(Quantisation.NF4, name, version("bitsandbytes"))


def quantisation_of_files(values: Any, name: str) -> Quantisation | None:
    """The quantisation of a model's files, by its ``quantization_config``; None if they are not quantised.

    :raises PairError: the method is not supported.
    """
    if not values:
        return None
    values = values if isinstance(values, Mapping) else values.to_dict()
    method = str(getattr(values.get("quant_method"), "value", values.get("quant_method")))
    if method == "bitsandbytes":
        return Quantisation.NF4 if values.get("load_in_4bit") else Quantisation.INT8
    known = {"awq": "awq", "gptq": "gptq", "fp8": "fp8", "torchao": "torchao-int4"}
    if method not in known:
        raise PairError(f"{name} is quantised by {method}, which is not supported", "choose another pair")
    return Quantisation(known[method])


def effective_quantisation(requested: Quantisation, files: Quantisation | None, name: str) -> Quantisation:
    """The quantisation of a model, from the requested one and that of its files (None: not quantised).

    :raises PairError: the files are quantised in another way, or the method needs files made for it.
    """
    if files is not None:
        if requested in (Quantisation.AUTO, Quantisation.NONE, files):
            return files
        raise PairError(
            f"{name} is quantised already, as {files}", f"leave it so, or take {requested} of the original"
        )
    if requested in (Quantisation.AWQ, Quantisation.GPTQ):
        raise PairError(
            f"{name} is not quantised by {requested}, which needs files made so",
            "name a model that is, or use nf4",
        )
    return Quantisation.NONE if requested is Quantisation.AUTO else requested


def in_memory_quantisation(
    quantisation: Quantisation, files: Quantisation | None, device_type: str
) -> Quantisation:
    """The quantisation of weights in memory: files in fp8 are dequantised on devices without fp8 kernels."""
    dequantised = files is quantisation is Quantisation.FP8 and device_type != "cuda"
    return Quantisation.NONE if dequantised else quantisation


def packed_kind(quantisation: Quantisation, files: Quantisation | None = None) -> type[Packed] | None:
    """What matrices are packed to by ourselves, while a model is loaded; None if they are not.

    :param files: the quantisation of the model's files. Those that are in fp8 already stay as they are.
    """
    return None if files is quantisation else _PACKED.get(quantisation)


def is_row_by_row(quantisation: Quantisation, device_type: str) -> bool:
    """Whether a row's results do not depend on the pass's other rows, so that exact mode is exact.

    On a GPU LLM.int8() also quantises inputs, except for columns in which any row of the pass has a large
    value. On a CPU inputs are not quantised (:func:`keep_inputs`), and awq and gptq dequantise their weights.
    """
    return quantisation in _ROW_BY_ROW or (device_type == "cpu" and quantisation in _ROW_BY_ROW_ON_A_CPU)


def keep_inputs(model: Any, dtype: torch.dtype) -> None:
    """Makes bitsandbytes' layers on a CPU multiply their inputs unchanged, in the compute dtype.

    LLM.int8() would quantise the inputs, except in training mode. The 4-bit layers would convert them to
    bfloat16 if the processor supports it.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for part in model.modules():
        if isinstance(part, Linear8bitLt):
            part.train()
        elif isinstance(part, Linear4bit) and dtype != torch.bfloat16:
            part.support_avx512bf16_for_cpu = False


def check_usable(quantisation: Quantisation, device: torch.device, files: Quantisation | None = None) -> None:
    """
    :param files: the quantisation of the model's files. Those in fp8 need a package on a GPU; torchao's have
        a layout for GPUs.
    :raises PairError: the quantisation does not run on the device, or a package is missing.
    """
    gpu_only = files is Quantisation.TORCHAO_INT4
    gpu_or_cpu_only = quantisation in (Quantisation.TORCHAO_INT4, Quantisation.FP8)
    if device.type != "cuda" and (gpu_only or (gpu_or_cpu_only and device.type != "cpu")):
        raise PairError(f"{quantisation} needs a CUDA device, not {device}", "use nf4 or int8 here")
    _check_packages(
        () if packed_kind(quantisation, files) else _PACKAGES.get(quantisation, ()), quantisation, device
    )
    least = _LEAST_CAPABILITY.get(quantisation)
    if least and device.type == "cuda" and torch.cuda.get_device_capability(device) < least:
        gpu, number = torch.cuda.get_device_name(device), ".".join(map(str, least))
        raise PairError(
            f"{quantisation} needs a GPU of compute capability {number}, which {gpu} is not",
            "use nf4 or int8 here",
        )


def _check_packages(needed: Sequence[str], quantisation: Quantisation, device: torch.device) -> None:
    missing = next((name for name in needed if find_spec(name) is None), None)
    if missing is not None:
        extra = _EXTRAS.get(quantisation)
        what = f"lvspec[{extra}]" if extra else missing
        raise PairError(
            f"{quantisation} needs the package {missing}", f"install it with: {install_command(what)}"
        )
    for name in needed if device.type == "cpu" else ():
        found, least = version(name), _LEAST_ON_A_CPU.get(name, "0")
        if Version(found) < Version(least):
            raise PairError(
                f"{quantisation} on a CPU needs {name} {least} or later, and this is {found}",
                f"install it with: {install_command(f'{name}>={least}')}",
            )


def compute_dtype(
    name: str,
    quantisation: Quantisation,
    device_type: str,
    *,
    has_bfloat16: bool,
    float16_is_safe: bool = False,
) -> torch.dtype:
    """The compute dtype of a model. ``name``: auto, float32, bfloat16 or float16.

    Auto is the dtype that the quantisation needs, if it needs one. Else it is float32 on a CPU, bfloat16 on a
    GPU that has it, and on other GPUs float16 if the model's family does not overflow in it, or float32.

    :raises UsageError: there is no such dtype, or the quantisation needs another one.
    """
    on_a_gpu = _COMPUTES_IN_ON_A_GPU if device_type == "cuda" else {}
    fixed = {**_COMPUTES_IN, **on_a_gpu}.get(quantisation)
    if name == "auto":
        if fixed is not None:
            return fixed
        if device_type == "cpu":
            return torch.float32
        narrow = torch.float16 if float16_is_safe else torch.float32
        return torch.bfloat16 if has_bfloat16 else narrow
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}", f"use auto, {', '.join(DTYPES)}")
    if fixed not in (None, DTYPES[name]):
        raise UsageError(
            f"{quantisation} computes in {str(fixed).removeprefix('torch.')}, not in {name}",
            "leave out --dtype, or choose another quantisation",
        )
    return DTYPES[name]


def unconverted_modules(model: Any, layers: Any) -> list[str]:
    """Full names of all modules outside the language model's blocks ``layers``: they are not quantised."""
    names = {id(module): name for name, module in model.named_modules()}
    blocks = names[id(layers)]
    unconverted: list[str] = []

    def walk(module: Any, prefix: str) -> None:
        for name, child in module.named_children():
            full_name = f"{prefix}{name}"
            if blocks.startswith(f"{full_name}."):
                walk(child, f"{full_name}.")
            elif full_name != blocks:
                unconverted.append(full_name)

    walk(model, "")
    return unconverted


def config_of_files(
    files: Quantisation, values: Any, device_type: str, blocks: str, unconverted: list[str]
) -> tuple[dict[str, Any], Any]:
    """How quantised files are read: the ``quantization_config`` for the model's config, made from ``values``,
    and the one for ``from_pretrained`` with options for this machine (None if there are none).

    The language model's ``blocks`` are quantised, ``unconverted`` modules are not. Both are named as in this
    model: the names in files may be older (Qwen's call the tower ``visual``, which has moved). On a CPU the
    kernel of gptqmodel is chosen that needs no compiler and can compute in float32.
    """
    values = dict(values if isinstance(values, Mapping) else values.to_dict())
    if files in (Quantisation.AWQ, Quantisation.FP8):
        values["modules_to_not_convert"] = [*(values.get("modules_to_not_convert") or ()), *unconverted]
    if files is Quantisation.GPTQ:
        values["block_name_to_quantize"] = blocks
    if device_type == "cuda" or files not in (Quantisation.AWQ, Quantisation.GPTQ, Quantisation.FP8):
        return values, None
    if files is Quantisation.FP8:
        return values, FineGrainedFP8Config.from_dict({**values, "dequantize": True})
    config = (AwqConfig if files is Quantisation.AWQ else GPTQConfig).from_dict(values)
    if config.bits == 4 and device_type == "cpu":
        config.backend = f"{files}_torch_aten"
    return values, config


def import_kernels(quantisation: Quantisation) -> None:
    """Imports gptqmodel without its side effects.

    It prints to standard output, where the answer goes, and sets environment variables (another hub cache, an
    order of the GPUs) that later child processes would inherit.
    """
    if quantisation not in (Quantisation.AWQ, Quantisation.GPTQ):
        return
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), _restored_environment():
        from logbar import LogBar

        LogBar.shared().setLevel("ERROR")
        import gptqmodel  # noqa: F401


@contextlib.contextmanager
def _restored_environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def quantiser(
    quantisation: Quantisation, dtype: torch.dtype, unconverted: list[str], device_type: str
) -> Any:
    """The ``quantization_config`` for ``from_pretrained`` that quantises weights as they are read, or None.

    Files that are quantised already have a config of their own.
    """
    match quantisation:
        case Quantisation.NF4:
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,  # quantised scales, of one byte
                bnb_4bit_compute_dtype=dtype,
                llm_int8_skip_modules=unconverted,
            )
        case Quantisation.INT8:
            # Otherwise it prints for every layer that it computes in float16.
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=unconverted)
        case Quantisation.TORCHAO_INT4:
            return TorchAoConfig(torchao_format(device_type), modules_to_not_convert=unconverted)
        case _:
            return None


def torchao_format(device_type: str) -> Any:
    """The format with kernels in torch itself for such a device; other formats need another package."""
    if device_type == "cpu":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group_size=TORCHAO_GROUP, set_inductor_config=False)
    from torchao.quantization import Int4WeightOnlyConfig

    return Int4WeightOnlyConfig(group_size=TORCHAO_GROUP, int4_packing_format="tile_packed_to_4d")
