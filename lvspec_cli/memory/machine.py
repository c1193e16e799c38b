"""The memory of this machine now. Memory that this process holds already counts as free for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

from lvspec_cli.memory.plan import Device, Machine

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
# Files of a control group (versions 2 and 1): its limit, its usage, and the entries for page cache.
_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)


def this_machine(device: str = "auto", draft_device: str | None = None) -> Machine:
    """The memory for a pair on ``device``, with its draft on ``draft_device`` if that is given."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    pair_gpus, draft_gpus = gpus_for(count, device, draft_device)
    return Machine(cpu_memory(), tuple(map(_gpu, pair_gpus)), tuple(map(_gpu, draft_gpus)))


def cpu_memory() -> Device:
    """The CPU memory that this process may use, including what it uses now. Does not import torch."""
    free, total = spare_memory()
    try:
        resident = psutil.Process().memory_info().rss
    except psutil.Error:  # without /proc
        resident = 0
    return Device("cpu", min(total, free + resident), total)


def spare_memory() -> tuple[int, int]:
    """Free and total bytes of CPU memory, within the limits of the process's control groups."""
    try:
        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
    except OSError:  # Linux without /proc
        if sys.platform == "win32":
            raise
        page = os.sysconf("SC_PAGE_SIZE")
        free, total = page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
    try:
        groups = _OWN_GROUPS.read_text()
    except OSError:  # not Linux
        groups = ""
    for folder in group_folders(groups, _GROUPS):
        free, total = within_group(folder, free, total)
    return free, total


def group_folders(groups: str, root: Path) -> Iterator[Path]:
    """The folders with the limits of a process: its control group, and all groups that contain it.

    ``groups``: the content of /proc/self/cgroup, of version 1 or 2. In a container this may give the group's
    path on the host, while its files are at the root.
    """
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        within = PurePosixPath(path.lstrip("/"))
        base = root / "memory" if controllers else root
        yield from (base / group for group in (within, *within.parents))


def within_group(folder: Path, free: int, total: int) -> tuple[int, int]:
    """Free and total bytes, lowered to the limit of a control group if it has one."""
    for limit_file, usage_file, cache_entries in _FILES:
        try:
            limit = int((folder / limit_file).read_text())
            usage = int((folder / usage_file).read_text())
            stats = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # without a limit the file says max, or a number beyond all memory
            continue
        page_cache = sum(int(stats.get(entry, 0)) for entry in cache_entries)  # the kernel frees it on demand
        return max(0, min(free, limit - usage + page_cache)), min(total, limit)
    return free, total


def gpus_for(count: int, device: str, draft_device: str | None) -> tuple[list[int], list[int]]:
    """The indices of those of ``count`` GPUs that a pair may use, and of those that only its draft may.

    ``device``: auto and cuda mean all GPUs, cuda:1 that one, other names none.
    """
    names = [f"cuda:{index}" for index in range(count)]
    pair_gpus = [index for index, name in enumerate(names) if device in ("auto", "cuda", name)]
    draft_gpu = "cuda:0" if draft_device == "cuda" else draft_device
    return pair_gpus, [i for i, name in enumerate(names) if name == draft_gpu and i not in pair_gpus]


def _gpu(number: int) -> Device:
    import torch

    free, total = torch.cuda.mem_get_info(number)
    return Device(
        f"cuda:{number}", free + torch.cuda.memory_reserved(number), total, torch.cuda.get_device_name(number)
    )
