"""The memory of this machine, as it is now: what this process holds already counts as free for it."""

from __future__ import annotations

from pathlib import Path

import psutil

from lvspec_cli.models.memory import Device, Machine

_GROUP = Path("/sys/fs/cgroup")


def this_machine(device: str = "auto", draft_device: str | None = None) -> Machine:
    """What there is for a pair on ``device``, and where its draft goes if that is named."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    ours, drafts = gpus_for(count, device, draft_device)
    return Machine(cpu_memory(), tuple(map(_gpu, ours)), tuple(map(_gpu, drafts)))


def cpu_memory() -> Device:
    """What a CPU may take. Without torch."""
    memory = psutil.virtual_memory()
    own = psutil.Process().memory_info().rss
    free, total = within_group(_GROUP, memory.available, memory.total)
    return Device("cpu", min(total, free + own), total)


def within_group(folder: Path, free: int, total: int) -> tuple[int, int]:
    """Free bytes and all of them, where a container or a job has a limit of its own (cgroup v2)."""
    try:
        most = int((folder / "memory.max").read_text())
        held = int((folder / "memory.current").read_text())
        kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no limit is the word max
        return free, total
    files = int(kinds.get("inactive_file", 0)) + int(kinds.get("active_file", 0))  # given back when needed
    return max(0, min(free, most - held + files)), min(total, most)


def gpus_for(count: int, device: str, draft_device: str | None) -> tuple[list[int], list[int]]:
    """Which of ``count`` GPUs a pair may take, and which only its draft may.

    ``device``: auto and cuda mean all of them, cuda:1 that one, others none.
    """
    names = [f"cuda:{number}" for number in range(count)]
    ours = [at for at, name in enumerate(names) if device in ("auto", "cuda", name)]
    home = "cuda:0" if draft_device == "cuda" else draft_device
    return ours, [at for at, name in enumerate(names) if name == home and at not in ours]


def _gpu(number: int) -> Device:
    import torch

    free, total = torch.cuda.mem_get_info(number)
    return Device(
        f"cuda:{number}", free + torch.cuda.memory_reserved(number), total, torch.cuda.get_device_name(number)
    )
