"""Checks whether this machine has what lvspec needs, and gives a remedy for each problem."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lvspec_cli import __version__
from lvspec_cli.errors import LvspecError
from lvspec_cli.host import install_command, usable_cores
from lvspec_cli.table import counted, gigabytes

State = Literal["ok", "note", "bad"]
LEAST_FREE = 20 * 10**9  # bytes of disk, enough for a small pair
HUB_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class Finding:
    """The result of one check. ``remedy`` is empty if there is no problem; ``facts`` are for programs."""

    what: str
    state: State
    text: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def examine(models: Path | None = None, *, hub: bool = False) -> Iterator[Finding]:
    """Runs all checks, that of the hub only on request. Never raises."""
    looks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("lvspec", _python),
        ("torch", _torch),
        ("memory", _memory),
        ("video", _decoders),
        ("bitsandbytes", _bitsandbytes),
        ("matplotlib", _matplotlib),
        ("cache", _cache),
        ("pairs", lambda: _pairs(models)),
    ]
    if hub:
        looks.append(("hub", _hub))
    for what, look in looks:
        try:
            yield from look()
        except Exception as error:
            # A broken installation may raise anything, and this has to be reported.
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            yield Finding(what, "bad", cause, "install lvspec again in a fresh environment")


def _python() -> Iterator[Finding]:
    facts = {
        "lvspec": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
    }
    yield Finding(
        "lvspec", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}", "", facts
    )


def _torch() -> Iterator[Finding]:
    import torch

    versions = {name: metadata.version(name) for name in ("torch", "torchvision", "transformers")}
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    hip = getattr(torch.version, "hip", None)
    build = f"ROCm {hip}" if hip else build
    facts = {**versions, "cuda": torch.version.cuda, "hip": hip}
    text = f"{versions['torch']}, {build}; transformers {versions['transformers']}"
    yield Finding("torch", "ok", text, "", facts)
    yield from _gpus(torch)


def _gpus(torch: Any) -> Iterator[Finding]:
    has_driver = Path("/proc/driver/nvidia/version").exists()
    if not torch.cuda.is_available():
        mps = torch.backends.mps.is_available()
        if has_driver and not torch.version.cuda:
            yield Finding(
                "GPU", "bad", "there is a GPU, and this torch is for CPUs", "install torch with CUDA"
            )
        elif has_driver:
            remedy = "check CUDA_VISIBLE_DEVICES and the driver: nvidia-smi"
            yield Finding("GPU", "bad", "there is a driver, and torch sees no GPU", remedy)
        else:
            remedy = "" if mps else "small pairs run on a CPU; large ones want a GPU"
            yield Finding("GPU", "note", "MPS" if mps else "none", remedy, {"gpus": []})
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        major, minor = torch.cuda.get_device_capability(number)
        facts = {
            "name": torch.cuda.get_device_name(number),
            "free": free,
            "total": total,
            "compute": [major, minor],
        }
        state: State = "ok" if free > total / 2 else "note"
        remedy = "" if state == "ok" else "other processes hold its memory: nvidia-smi"
        text = f"{facts['name']}, {gigabytes(free)} free of {gigabytes(total)}, compute {major}.{minor}"
        yield Finding(f"GPU {number}", state, text, remedy, facts)


def _memory() -> Iterator[Finding]:
    from lvspec_cli.memory.machine import cpu_memory

    memory, cores = cpu_memory(), usable_cores()
    facts = {"cores": cores, "free": memory.free, "total": memory.total}
    few = memory.free < 4e9
    text = f"{gigabytes(memory.free)} free of {gigabytes(memory.total)}, {counted(cores, 'core')}"
    yield Finding("memory", "note" if few else "ok", text, "end what else takes memory" if few else "", facts)


def _decoders() -> Iterator[Finding]:
    from lvspec_cli.video.container import decord_version, pyav_versions

    versions = pyav_versions()
    text = f"{versions['av']}, libavcodec {versions.get('libavcodec', '?')}"
    yield Finding("PyAV", "ok", text, "", versions)
    try:
        yield Finding("decord", "ok", decord_version(), "", {"decord": decord_version()})
    except (ImportError, OSError) as error:
        text = f"not usable: {' '.join(str(error).split())[:100]}"
        yield Finding(
            "decord",
            "note",
            text,
            f"PyAV reads everything; for --decoder decord: {install_command('decord')}",
        )


def _bitsandbytes() -> Iterator[Finding]:
    """Runs its kernels on each kind of device."""
    try:
        version = metadata.version("bitsandbytes")
        import bitsandbytes.functional  # noqa: F401 - it may not be loadable
        import torch
    except Exception as error:
        # Its import loads native libraries, which may raise anything.
        cause = " ".join(str(error).split())[:100]
        yield Finding(
            "bitsandbytes",
            "note",
            f"not usable: {cause}",
            f"for nf4 and int8: {install_command('bitsandbytes')}",
        )
        return
    devices = ("cpu", *(["cuda"] if torch.cuda.is_available() else []))
    usable = {kind: [device for device in devices if _is_usable(kind, device)] for kind in ("nf4", "int8")}
    facts: dict[str, Any] = {"bitsandbytes": version, **usable}
    text = ", ".join(f"{kind} runs on {' and '.join(on) or 'no device'}" for kind, on in usable.items())
    if "cuda" in usable["nf4"]:
        from lvspec_cli.models.quantise import width_limit_of

        limit = facts["nf4_rows"] = width_limit_of(torch.device("cuda"))
        text += f"; nf4 takes {limit or 'all'} rows of a verification at once"
    wrong = any(set(on) != set(devices) for on in usable.values())
    remedy = "install a bitsandbytes that knows this machine's CPU and CUDA" if wrong else ""
    yield Finding("bitsandbytes", "bad" if wrong else "ok", f"{version}, {text}", remedy, facts)


def _is_usable(kind: str, device: str) -> bool:
    """Whether a few weights are nearly the same after quantising and dequantising."""
    import bitsandbytes.functional as kernels
    import torch

    weights = torch.randn(64, 64, device=device, dtype=torch.float16)
    try:
        if kind == "nf4":
            restored = kernels.dequantize_4bit(*kernels.quantize_4bit(weights, quant_type="nf4"))
        else:
            quantised, scales, _ = kernels.int8_vectorwise_quant(weights)
            restored = quantised * scales[:, None] / 127
    except (RuntimeError, NotImplementedError, AttributeError):  # a native library is missing
        return False
    return float((restored - weights).abs().mean()) < 0.2


def _matplotlib() -> Iterator[Finding]:
    if find_spec("matplotlib") is None:
        remedy = f"for bench, bench-relevance and tune: {install_command('matplotlib')}"
        yield Finding("matplotlib", "note", "not installed", remedy)
        return
    version = metadata.version("matplotlib")
    yield Finding("matplotlib", "ok", version, "", {"matplotlib": version})


def _cache() -> Iterator[Finding]:
    from huggingface_hub import constants

    from lvspec_cli.pairs.hub import cache_disk

    folder, existing = Path(constants.HF_HUB_CACHE), cache_disk()
    if existing is None:
        yield Finding("cache", "bad", "this user has no home folder", "set HF_HOME to a folder of your own")
        return
    free = shutil.disk_usage(existing).free
    offline = bool(constants.HF_HUB_OFFLINE)
    facts = {"cache": str(folder), "free": free, "offline": offline, "endpoint": constants.ENDPOINT}
    text = f"{folder}, {gigabytes(free)} free" + (", HF_HUB_OFFLINE is set" if offline else "")
    if not os.access(existing, os.W_OK):
        yield Finding(
            "cache", "bad", f"{text}, cannot be written", "set HF_HOME to a folder of your own", facts
        )
    elif free < LEAST_FREE:
        yield Finding("cache", "note", text, "make room, or set HF_HOME to a folder on another disk", facts)
    else:
        yield Finding("cache", "ok", text, "", facts)


def _pairs(models: Path | None) -> Iterator[Finding]:
    from lvspec_cli.pairs.files import locate, locate_draft
    from lvspec_cli.pairs.registry import load_registry

    try:
        registry = load_registry(models)
    except LvspecError as error:
        yield Finding("pairs", "bad", error.cause, error.remedy)
        return
    local = [
        name
        for name, pair in registry.pairs.items()
        if all(stored.folder is not None for stored in (locate(pair.target), locate_draft(pair)))
    ]
    text = f"{len(local)} of {len(registry.pairs)} are here: {', '.join(local)}; default {registry.default}"
    default_pair = os.environ.get("LVSPEC_PAIR")
    facts = {"here": local, "default": registry.default, "LVSPEC_PAIR": default_pair}
    if default_pair and default_pair not in ("auto", *registry.pairs):
        remedy = "unset it, or name a pair of `lvspec models`"
        yield Finding("pairs", "bad", f"LVSPEC_PAIR names {default_pair}, which is none", remedy, facts)
    else:
        yield Finding(
            "pairs", "ok", text, "" if local else "install lvspec again: the bundled pair is missing", facts
        )


def _hub() -> Iterator[Finding]:
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", "note", "HF_HUB_OFFLINE is set: nothing is asked", "unset it to download")
        return
    url = f"{constants.ENDPOINT}/api/models?limit=1"
    if not url.startswith(("https://", "http://")):
        yield Finding("hub", "bad", f"{constants.ENDPOINT} is no web address", "fix HF_ENDPOINT")
        return
    began = time.perf_counter()
    try:
        with urllib.request.urlopen(url, timeout=HUB_TIMEOUT) as answer:  # noqa: S310 - checked above
            status = answer.status
    except (OSError, urllib.error.URLError) as error:
        cause = getattr(error, "reason", None) or error
        text = f"{constants.ENDPOINT} cannot be reached: {' '.join(str(cause).split())[:100]}"
        yield Finding("hub", "bad", text, "check the connection and proxies, or set HF_ENDPOINT to a mirror")
        return
    seconds = time.perf_counter() - began
    facts = {"endpoint": constants.ENDPOINT, "status": status, "seconds": round(seconds, 3)}
    yield Finding("hub", "ok", f"{constants.ENDPOINT} answers in {seconds:.1f} s", "", facts)
