"""How long rows took on this machine: what ``--dry-run`` makes its estimate from."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le
from pydantic import TypeAdapter, ValidationError

from lvspec_cli.errors import OutputError, UsageError
from lvspec_cli.output.files import replacing
from lvspec_cli.text_file import SETTINGS, read_own
from lvspec_cli.user_folders import state_folder

KEPT_RUNS = 200


@dataclass(frozen=True)
class PastRun:
    """One run: with what, how many rows it wrote and in how many seconds, loading not counted."""

    pair: str
    mode: str
    device: str
    workers: int
    frames: int | None
    rows: Annotated[int, Ge(0)]
    seconds: Annotated[float, Ge(0), Le(1e9)]  # neither infinite nor not-a-number
    audit: float = 0.0  # share of the rows that was answered twice


_RUN = TypeAdapter(PastRun)


def history_file() -> Path | None:
    """``runs.jsonl`` in the user's folder for state, if there is one."""
    folder = state_folder()
    return folder and folder / "runs.jsonl"


def remember(run: PastRun, file: Path | None) -> None:
    """Adds a run. A history that cannot be written is no failure, and one that cannot be read begins anew."""
    if file is None:
        return
    with suppress(OSError, OutputError):
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [_RUN.dump_json(each) for each in [*past_runs(file)[1 - KEPT_RUNS :], run]]
        with replacing(file, sync=False) as stream:
            stream.write(b"".join(line + b"\n" for line in lines))


def past_runs(file: Path | None) -> list[PastRun]:
    """All that is remembered, the oldest first; lines that say something else are passed over.

    So is a whole file that is too large, or none.
    """
    runs: list[PastRun] = []
    with suppress(OSError, UsageError):
        for line in read_own(file, SETTINGS).splitlines() if file else ():
            with suppress(ValidationError):
                runs.append(_RUN.validate_json(line))
    return runs


def seconds_a_row(runs: list[PastRun], like: PastRun) -> float | None:
    """Seconds that a row took in the last run that is like this one in all but rows and seconds."""
    same = [
        run for run in runs if replace(run, rows=like.rows, seconds=like.seconds) == like and run.rows > 0
    ]
    return same[-1].seconds / same[-1].rows if same else None
