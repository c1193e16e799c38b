"""What weights are kept in: transformers' own quantisers, what each needs, and how wide it is fast.

Quantised are the linear layers of the language model's blocks, where nearly all of the weights are. The
video tower, the embeddings and the output head stay in the type that is computed in: the tower is read once a
clip and its widths do not always go into the kernels' blocks, the head decides every token, and one that is
tied to the embeddings cannot be packed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AwqConfig, BitsAndBytesConfig, FineGrainedFP8Config, GPTQConfig, TorchAoConfig

from lvspec_cli.errors import PairError, UsageError
from lvspec_cli.models.kernels import few_rows
from lvspec_cli.types import Quantisation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Kernels that compute in one type only.
_COMPUTES_IN = {
    Quantisation.BF16: torch.bfloat16,
    Quantisation.FP8: torch.bfloat16,
}
_COMPUTES_IN_ON_A_GPU = {
    Quantisation.AWQ: torch.float16,
    Quantisation.GPTQ: torch.float16,
    Quantisation.TORCHAO_INT4: torch.bfloat16,
}
_PACKAGES = {
    Quantisation.NF4: ("bitsandbytes",),
    Quantisation.INT8: ("bitsandbytes",),
    Quantisation.FP8: ("kernels",),
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
_LEAST_CAPABILITY = {Quantisation.FP8: (8, 9), Quantisation.TORCHAO_INT4: (8, 0)}
_ROW_BY_ROW = frozenset({Quantisation.NONE, Quantisation.BF16, Quantisation.NF4})
_ROW_BY_ROW_ON_A_CPU = frozenset(
    {Quantisation.INT8, Quantisation.AWQ, Quantisation.GPTQ, Quantisation.TORCHAO_INT4}
)

TORCHAO_GROUP = 128

# Rows that bitsandbytes' 4-bit kernels take at once before they write the weights out and multiply those,
# for projections of 7B to 32B models, by what the device's name holds: from the dispatch of bitsandbytes
# 0.50.2, not measured. The first that fits counts.
_NF4_ROWS = (
    (r"H100|H200|H20|GH200|A100|A800|H800", 5),
    (r"B200|B300|GB200|GB300", 4),
    (r"RTX (40|50)\d\d|RTX .*Ada|RTX PRO|\bL4\b|L40", 8),
    (r"RTX 30\d\d|\bA10G?\b|\bA40\b|RTX A\d", 16),
    (r"\bT4\b|V100|RTX 20\d\d|TITAN|GTX", 7),
)
_NF4_ROWS_AT_LEAST = 4  # on every device, from 0.50 on


def verification_width_limit(
    quantisation: Quantisation, device_name: str, bitsandbytes_version: str
) -> int | None:
    """Rows of a verification up to which the weights are read once, packed; None: no such limit is known.

    ``device_name`` as the driver says it, such as ``NVIDIA H100 80GB HBM3``. Wider passes are right and slow.
    Before 0.50, bitsandbytes has a kernel for one row only.
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
    """The same for nf4 on a device of this machine. A CPU writes the weights out at any width: 0.

    None where passes are ``captured`` and ``few_rows`` has kernels for them.
    """
    if device.type != "cuda":
        return 0
    if captured and few_rows.is_usable(device):
        return None
    name = torch.cuda.get_device_name(device)
    return verification_width_limit(Quantisation.NF4, name, version("bitsandbytes"))


def quantisation_of_files(values: Any, name: str) -> Quantisation | None:
    """What a model's files are quantised in, from its config's ``quantization_config``; None: they are not.

    :raises PairError: by a method that is not known here.
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


def agreed(wanted: Quantisation, files: Quantisation | None, name: str) -> Quantisation:
    """What is done when ``wanted`` meets files that are quantised, or not (None).

    :raises PairError: files cannot be quantised twice, and some methods need files made for them.
    """
    if files is not None:
        if wanted in (Quantisation.AUTO, Quantisation.NONE, files):
            return files
        raise PairError(
            f"{name} is quantised already, as {files}", f"leave it so, or take {wanted} of the original"
        )
    if wanted in (Quantisation.AWQ, Quantisation.GPTQ):
        raise PairError(
            f"{name} is not quantised by {wanted}, which needs files made so",
            "name a model that is, or use nf4",
        )
    return Quantisation.NONE if wanted is Quantisation.AUTO else wanted


def held_as(quantisation: Quantisation, files: Quantisation | None, device_type: str) -> Quantisation:
    """What weights are in memory: files in fp8 are unpacked when read where it has no kernels."""
    unpacked = files is quantisation is Quantisation.FP8 and device_type != "cuda"
    return Quantisation.NONE if unpacked else quantisation


def is_row_by_row(quantisation: Quantisation, device_type: str) -> bool:
    """Whether a row's results do not depend on the rows beside it, on which exact mode to the letter rests.

    On a GPU LLM.int8() packs inputs, too, but for the columns in which any row of a pass is large; on a CPU
    inputs stay whole (:func:`keep_inputs`). There the weights of awq and gptq are written out first.
    """
    return quantisation in _ROW_BY_ROW or (device_type == "cpu" and quantisation in _ROW_BY_ROW_ON_A_CPU)


def keep_inputs(model: Any, dtype: torch.dtype) -> None:
    """Has bitsandbytes' layers on a CPU multiply their inputs as they are, in the type that is computed in.

    LLM.int8() would pack them; its layers do not on a CPU while they are trained. The 4-bit layers would go
    through bfloat16 where the processor has it.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for part in model.modules():
        if isinstance(part, Linear8bitLt):
            part.train()
        elif isinstance(part, Linear4bit) and dtype != torch.bfloat16:
            part.support_avx512bf16_for_cpu = False


def check_usable(quantisation: Quantisation, device: torch.device, files: Quantisation | None = None) -> None:
    """PairError where the device for it or a package is missing.

    :param files: what the model's files are quantised in; torchao's are laid out for a GPU.
    """
    on_a_gpu_alone = quantisation is Quantisation.FP8 or files is Quantisation.TORCHAO_INT4
    on_a_cpu_too = device.type == "cpu" or quantisation is not Quantisation.TORCHAO_INT4
    if device.type != "cuda" and (on_a_gpu_alone or not on_a_cpu_too):
        raise PairError(f"{quantisation} needs a CUDA device, not {device}", "use nf4 or int8 here")
    missing = [name for name in _PACKAGES.get(quantisation, ()) if find_spec(name) is None]
    if missing:
        extra = _EXTRAS.get(quantisation)
        what = f"'lvspec[{extra}]'" if extra else " ".join(missing)
        raise PairError(
            f"{quantisation} needs the package {missing[0]}", f"install it with: pip install {what}"
        )
    least = _LEAST_CAPABILITY.get(quantisation)
    if least and device.type == "cuda" and torch.cuda.get_device_capability(device) < least:
        gpu, needed = torch.cuda.get_device_name(device), ".".join(map(str, least))
        raise PairError(
            f"{quantisation} needs a GPU of compute capability {needed}, which {gpu} is not",
            "use nf4 or int8 here",
        )


def compute_dtype(
    name: str,
    quantisation: Quantisation,
    device_type: str,
    *,
    has_bfloat16: bool,
    float16_is_safe: bool = False,
) -> torch.dtype:
    """What a model computes in. ``name``: auto, float32, bfloat16 or float16.

    Auto: float32 on a CPU; bfloat16 on a GPU that has it; on others float16 where the model's family does
    not overflow in it, else float32; or what the quantisation asks for.

    :raises UsageError: no such type, or the quantisation computes in another.
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


def kept_modules(model: Any, layers: Any) -> list[str]:
    """Full names of all that lies beside the language model's blocks ``layers``: what is not quantised."""
    names = {id(module): name for name, module in model.named_modules()}
    inside = names[id(layers)]
    kept: list[str] = []

    def walk(module: Any, prefix: str) -> None:
        for name, child in module.named_children():
            full = f"{prefix}{name}"
            if inside.startswith(f"{full}."):
                walk(child, f"{full}.")
            elif full != inside:
                kept.append(full)

    walk(model, "")
    return kept


def read_as(
    files: Quantisation, values: Any, device_type: str, blocks: str, kept: list[str]
) -> tuple[dict[str, Any], Any]:
    """How files that are quantised are read: their config's ``quantization_config``, from ``values``, and the
    one that ``from_pretrained`` takes beside it, for what is of this machine (None: nothing is).

    Packed are the language model's ``blocks`` and not what lies beside them (``kept``), whatever those were
    called when the files were made: Qwen's own name the tower ``visual``, which now stands elsewhere. On a
    CPU gptqmodel's kernel is the one that needs no compiler and computes in float32 as well.
    """
    values = dict(values if isinstance(values, Mapping) else values.to_dict())
    if files in (Quantisation.AWQ, Quantisation.FP8):
        values["modules_to_not_convert"] = [*(values.get("modules_to_not_convert") or ()), *kept]
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
    """Imports gptqmodel without what that does besides.

    It says what it is and does on standard output, where the answer goes, and sets variables (another cache
    of the hub, an order of the GPUs) that every process started later would take over.
    """
    if quantisation not in (Quantisation.AWQ, Quantisation.GPTQ):
        return
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), _environment_kept():
        from logbar import LogBar

        LogBar.shared().setLevel("ERROR")
        import gptqmodel  # noqa: F401


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def quantiser(quantisation: Quantisation, dtype: torch.dtype, kept: list[str], device_type: str) -> Any:
    """The config that ``from_pretrained`` takes; None where nothing is to be quantised.

    Files that are quantised already bring their own.
    """
    match quantisation:
        case Quantisation.NF4:
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,  # its scales take a byte
                bnb_4bit_compute_dtype=dtype,
                llm_int8_skip_modules=kept,
            )
        case Quantisation.INT8:
            # Else it says at every layer that it computes in float16.
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
        case Quantisation.FP8:
            return FineGrainedFP8Config(modules_to_not_convert=kept)
        case Quantisation.TORCHAO_INT4:
            return TorchAoConfig(torchao_format(device_type), modules_to_not_convert=kept)
        case _:
            return None


def torchao_format(device_type: str) -> Any:
    """The one whose kernels are torch's own on such a device; others want a further package."""
    if device_type == "cpu":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group_size=TORCHAO_GROUP, set_inductor_config=False)
    from torchao.quantization import Int4WeightOnlyConfig

    return Int4WeightOnlyConfig(group_size=TORCHAO_GROUP, int4_packing_format="tile_packed_to_4d")
