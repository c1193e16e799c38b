"""How long rows took on this machine: what ``--dry-run`` makes its estimate from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

KEPT_RUNS = 200


@dataclass(frozen=True)
class PastRun:
    """One run: with what, how many rows it wrote and in how many seconds, loading not counted."""

    pair: str
    mode: str
    device: str
    workers: int
    frames: int | None
    rows: int
    seconds: float
    audit: float = 0.0  # share of the rows that was answered twice


def history_file(environment: Mapping[str, str] = os.environ) -> Path:
    """``runs.jsonl`` in the user's folder for state (XDG_STATE_HOME)."""
    state = environment.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "lvspec" / "runs.jsonl"


def remember(run: PastRun, file: Path) -> None:
    """Adds a run. A history that cannot be written is no failure."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        draft = file.with_suffix(f".{os.getpid()}.new")
        draft.write_text(
            "\n".join([*lines[1 - KEPT_RUNS :], json.dumps(asdict(run))]) + "\n", encoding="utf-8"
        )
        draft.replace(file)


def past_runs(file: Path) -> list[PastRun]:
    """All that is remembered, the oldest first; lines that say something else are passed over."""
    runs = []
    with suppress(OSError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError):
                runs.append(PastRun(**json.loads(line)))
    return runs


def seconds_a_row(runs: list[PastRun], like: PastRun) -> float | None:
    """Seconds that a row took in the last run that is like this one in all but rows and seconds."""
    same = [
        run for run in runs if replace(run, rows=like.rows, seconds=like.seconds) == like and run.rows > 0
    ]
    return same[-1].seconds / same[-1].rows if same else None
