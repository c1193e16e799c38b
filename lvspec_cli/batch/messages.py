"""What a worker process and its parent say to each other, pickled over a socket pair.

The parent sends a Setup, then a Work or None for each WantsWork. The worker sends Ready, then what happens;
an LvspecError is its last message.
"""

from __future__ import annotations

from dataclasses import dataclass

from lvspec_cli.batch.serve import WorkerPlan
from lvspec_cli.errors import LvspecError
from lvspec_cli.events import Event
from lvspec_cli.output.records import Record


@dataclass(frozen=True)
class Setup:
    plan: WorkerPlan
    telling: bool  # whether the pipeline's events are wanted, too


@dataclass(frozen=True)
class Ready:
    """The pair is loaded."""


@dataclass(frozen=True)
class WantsWork:
    """Answered with a Work, or None when there is none left."""


@dataclass(frozen=True)
class Happened:
    event: Event


@dataclass(frozen=True)
class Row:
    record: Record


@dataclass(frozen=True)
class WorkDone:
    """All rows of the oldest work that has not been done."""


Message = Ready | WantsWork | Happened | Row | WorkDone | LvspecError
