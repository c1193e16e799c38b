"""Tiny models whose files are quantised as those on the hub are, each beside a twin in the numbers it means.

Written by hand from the formats, and not by the packages that read them: GPTQ and AWQ hold eight values of
4 bits in an int32, a scale and a zero for every group of inputs; FP8 a byte each, a scale for every block.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 64  # inputs that share a scale
BLOCK = 128  # rows and columns that share one in fp8
E4M3_MAX = 448.0  # the largest number of float8_e4m3fn
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight columns stands where in an int32, lowest bits first

Packed = tuple[
    dict[str, Tensor], Tensor
]  # the tensors of a matrix by the ends of their names; what they mean

CONFIGS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False},
    # As in Qwen's own files, whose tower has another name by now.
    "awq": {
        "quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": ["visual"],
    },
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]},
}  # fmt: skip


def save_packed(folder: Path, plain: Path, method: str) -> tuple[Path, Path]:
    """A copy of a saved model with the matrices of its language model's blocks quantised, and its twin."""
    weights = load_file(plain / "model.safetensors")
    packed, meant = dict(weights), dict(weights)
    for name in sorted(weights):
        if not is_in_blocks(name):
            continue
        tensors, meant[name] = PACKERS[method](weights[name].float())
        del packed[name]
        packed |= {f"{name.removesuffix('weight')}{end}": tensor for end, tensor in tensors.items()}
    return (
        _save(folder / method, plain, packed, CONFIGS[method]),
        _save(folder / f"{method}-twin", plain, meant, None),
    )


def is_in_blocks(name: str) -> bool:
    """Whether a tensor is a matrix of the language model's blocks, as a model's files name it."""
    tower = any(part in name for part in ("visual", "vision"))
    return not tower and ".layers." in name and name.endswith("proj.weight")


def pack_gptq(weight: Tensor) -> Packed:
    values, zeros, scales = _quantised(weight)
    inputs = len(values)
    tensors = {
        "qweight": _words(values.t()).t(),  # eight inputs to a word
        "qzeros": _words(zeros - 1),  # the format's first version holds one less
        "scales": scales,
        "g_idx": torch.arange(inputs, dtype=torch.int32) // GROUP,
    }
    return tensors, _meant(values, zeros, scales)


def pack_awq(weight: Tensor) -> Packed:
    values, zeros, scales = _quantised(weight)

    def words(table: Tensor) -> Tensor:  # eight outputs to a word
        return _words(table.view(len(table), -1, 8)[:, :, list(AWQ_ORDER)].reshape(table.shape))

    tensors = {"qweight": words(values), "qzeros": words(zeros), "scales": scales}
    return tensors, _meant(values, zeros, scales)


def pack_fp8(weight: Tensor) -> Packed:
    outputs, inputs = weight.shape
    padded = torch.zeros(-(-outputs // BLOCK) * BLOCK, -(-inputs // BLOCK) * BLOCK)
    padded[:outputs, :inputs] = weight
    blocks = padded.view(len(padded) // BLOCK, BLOCK, -1, BLOCK)
    scales = blocks.abs().amax((1, 3)) / E4M3_MAX
    small = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)

    def whole(table: Tensor) -> Tensor:
        return table.reshape(padded.shape)[:outputs, :inputs].contiguous()

    meant = whole(small.float() * scales[:, None, :, None])
    return {"weight": whole(small), "weight_scale_inv": scales}, meant


PACKERS: Mapping[str, Callable[[Tensor], Packed]] = {"gptq": pack_gptq, "awq": pack_awq, "fp8": pack_fp8}


def _quantised(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values of 0 to 15 (inputs, outputs), and of each group of inputs zeros and scales (groups, outputs)."""
    groups = weight.t().reshape(-1, GROUP, len(weight))
    low, high = groups.amin(1), groups.amax(1)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(1, 15).int()
    values = ((groups / scales.float()[:, None]).round() + zeros[:, None]).clamp(0, 15).int()
    return values.flatten(0, 1), zeros, scales


def _meant(values: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    """The weight (outputs, inputs) that they stand for; scales have 16 bits, and so do the products."""
    groups = values.view(len(zeros), GROUP, -1) - zeros[:, None]
    return (groups.half() * scales[:, None]).flatten(0, 1).t().float().contiguous()


def _words(values: Tensor) -> Tensor:
    """Eight values of 4 bits in a row to an int32, the first in its lowest bits."""
    eights = values.long().reshape(len(values), -1, 8) << torch.arange(0, 32, 4)
    return eights.sum(-1).to(torch.uint32).view(torch.int32)


def _save(folder: Path, plain: Path, weights: Mapping[str, Tensor], quantised: Any) -> Path:
    shutil.copytree(plain, folder)
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    if quantised is not None:
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantised}))
    return folder
