"""The processors that this process may use, and libraries told to keep their advice to themselves."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Those that this process may run on, at least 1: a cluster's job often gets a few of many."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quieten_libraries() -> None:
    """Their advice to programmers is not for the user's terminal. Errors still come through."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # where torchao is installed
    warnings.simplefilter("ignore")
