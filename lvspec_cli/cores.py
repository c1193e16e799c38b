"""How many processors there are for us."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Those that this process may run on, at least 1: a cluster's job often gets a few of many."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
