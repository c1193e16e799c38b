"""The memory of this machine, as it is now: what this process holds already counts as free for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

from lvspec_cli.memory.plan import Device, Machine

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
# What a control group's files are called: its limit, what it holds, and the file pages among that.
_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)


def this_machine(device: str = "auto", draft_device: str | None = None) -> Machine:
    """What there is for a pair on ``device``, and where its draft goes if that is named."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    ours, drafts = gpus_for(count, device, draft_device)
    return Machine(cpu_memory(), tuple(map(_gpu, ours)), tuple(map(_gpu, drafts)))


def cpu_memory() -> Device:
    """What this process may take of a CPU's memory, with what it has. Without torch."""
    free, total = spare_memory()
    try:
        held = psutil.Process().memory_info().rss
    except psutil.Error:  # without /proc
        held = 0
    return Device("cpu", min(total, free + held), total)


def spare_memory() -> tuple[int, int]:
    """Bytes of a CPU that nobody holds, and all of them; fewer where the process's groups have limits."""
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
    """Where the limits of a process stand: of its control group and of all that this lies in.

    ``groups``: what /proc/self/cgroup says. Both versions of control groups; inside a container its own
    group may be called as outside, and stands at the root.
    """
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        within = PurePosixPath(path.lstrip("/"))
        base = root / "memory" if controllers else root
        yield from (base / each for each in (within, *within.parents))


def within_group(folder: Path, free: int, total: int) -> tuple[int, int]:
    """Free bytes and all of them, where a container or a job has a limit of its own."""
    for limit, usage, pages in _FILES:
        try:
            most = int((folder / limit).read_text())
            held = int((folder / usage).read_text())
            kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no limit is the word max, or more than there is
            continue
        files = sum(int(kinds.get(kind, 0)) for kind in pages)  # given back when needed
        return max(0, min(free, most - held + files)), min(total, most)
    return free, total


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
