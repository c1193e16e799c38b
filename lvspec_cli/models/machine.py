"""The memory of this machine, as it is now: what this process holds already counts as free for it."""

from __future__ import annotations

import psutil
import torch

from lvspec_cli.models.memory import Device, Machine


def this_machine(device: str = "auto") -> Machine:
    """What there is for a pair on ``device``: auto and cuda mean all GPUs, cuda:1 that one, cpu none."""
    memory = psutil.virtual_memory()
    own = psutil.Process().memory_info().rss
    cpu = Device("cpu", min(memory.total, memory.available + own), memory.total)
    gpus = [] if device == "cpu" or not torch.cuda.is_available() else [*range(torch.cuda.device_count())]
    if ":" in device:
        gpus = [number for number in gpus if device == f"cuda:{number}"]
    return Machine(cpu, tuple(_gpu(number) for number in gpus))


def _gpu(number: int) -> Device:
    free, total = torch.cuda.mem_get_info(number)
    return Device(
        f"cuda:{number}", free + torch.cuda.memory_reserved(number), total, torch.cuda.get_device_name(number)
    )
