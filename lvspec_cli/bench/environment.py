"""What was measured where."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import torch

from lvspec_cli import __version__
from lvspec_cli.bench.results import Environment
from lvspec_cli.cores import usable_cores
from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.types import Quantisation

# Those that decide speed: scikit-learn changes how generate() with an assistant proposes.
_PACKAGES = ("torch", "transformers", "bitsandbytes", "av", "numpy", "scikit-learn")


def environment_of(pair: LoadedPair) -> Environment:
    """The machine and the libraries, as this process uses them."""
    device = pair.target.device
    versions = {"lvspec": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda and device.type == "cuda":
        versions["cuda"] = torch.version.cuda
    return Environment(
        device=str(device),
        device_name=_device_name(device),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        target_dtype=_dtype(pair.target),
        draft_dtype=_dtype(pair.draft) if pair.draft else None,
        platform=f"{platform.system()} {platform.machine()}",
        versions=versions,
    )


def _dtype(loaded: LoadedModel) -> str:
    """What is computed in, and what the weights are kept in where that is another."""
    name = str(loaded.dtype).removeprefix("torch.")
    kept = loaded.quantisation
    return name if kept in (Quantisation.NONE, Quantisation.BF16) else f"{name} ({kept})"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor() or platform.machine()


def _processor() -> str:
    """The processor's name: Linux says it in a file, other systems through ``platform``."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
