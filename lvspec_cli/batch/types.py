"""What crosses the seams of a batch: frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lvspec_cli.errors import LvspecError


@dataclass(frozen=True)
class Input:
    """One video to caption, or a stretch of one. Times in seconds of the file's clock."""

    path: Path
    name: bytes  # what records call it: raw bytes, "/" between folders
    start: float | None = None
    end: float | None = None
    prompts: tuple[str, ...] = ()  # a job's own, in place of --prompt
    id: str | None = None
    origin: str = field(default="", compare=False)  # the line of a file of jobs that asks for it


@dataclass(frozen=True)
class Problem:
    """What was named, or met in a folder, and cannot be taken."""

    path: Path
    name: bytes
    error: LvspecError

    @property
    def message(self) -> str:
        return self.error.cause


@dataclass(frozen=True)
class Collected:
    inputs: tuple[Input, ...]
    problems: tuple[Problem, ...] = ()
