"""Where the user's own files are. All of them are optional: a user without a home folder has none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def state_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """For what is remembered from run to run (XDG_STATE_HOME)."""
    return _folder(environment.get("XDG_STATE_HOME"), ".local/state")


def config_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """For what the user writes (XDG_CONFIG_HOME)."""
    return _folder(environment.get("XDG_CONFIG_HOME"), ".config")


def _folder(named: str | None, below_home: str) -> Path | None:
    try:
        return (Path(named) if named else Path.home() / below_home) / "lvspec"
    except RuntimeError:  # HOME is not set, and the system knows of no such user
        return None
