"""What a user asks for: a pair and how it is loaded, and what is to be said of one clip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lvspec_cli.pairs.registry import Pair
from lvspec_cli.types import DecodeSettings, Loading, Placement, Quantisation, TaskName, VideoRequest


@dataclass(frozen=True)
class PairChoice:
    """A pair, and what a user said of how it is loaded. ``memory.resolve`` makes a LoadPlan of it.

    ``note``: why it is this pair, where nobody named it.
    ``device`` and ``dtype``: as the flags have them, ``auto`` among them.
    ``quant_target``, ``quant_draft``: what weights are kept in.
    ``draft_device``: where the draft goes, if that is named.
    ``cuda_graphs``: an answer's passes are captured, where that works.
    ``threads``: what torch may use of the CPU, in the whole process; None leaves it alone.
    ``side_by_side``: how many such pairs share the device, each in a process of its own.
    """

    name: str
    pair: Pair
    note: str = ""
    device: str = "auto"
    dtype: str = "auto"
    quant_target: Quantisation = Quantisation.AUTO
    quant_draft: Quantisation = Quantisation.AUTO
    draft_device: str | None = None
    cuda_graphs: bool = True
    threads: int | None = None
    side_by_side: int = 1


@dataclass(frozen=True)
class LoadPlan:
    """How a pair is loaded on this machine, decided before any weights are read.

    ``choice``: its pair is that of the revisions that are here.
    ``target``, ``draft``: the models' folders; no draft where the mode needs none.
    ``placement``: where the parts go. None: that is decided when they are loaded.
    ``width_limit``: rows of a verification that the target's kernels take at once; None: there is no limit.
    ``notes``: lines about what was decided that are worth saying.
    """

    choice: PairChoice
    target: Path
    draft: Path | None
    loading: Loading
    placement: Placement | None = None
    width_limit: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AskRequest:
    """Questions about one clip, and how they are answered.

    ``name`` and ``id`` are what records call the video, where its file's name is not meant.
    ``audit``: the share of the answers that is given in mode ar as well, to compare (``figures.audit``).
    """

    video: VideoRequest
    questions: tuple[str, ...]
    settings: DecodeSettings
    system: str | None = None
    task: TaskName = "ask"
    name: bytes | None = None
    id: str | None = None
    audit: float = 0.0
