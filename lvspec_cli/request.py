"""What a user asks of one pair: the request that goes from the command line to the pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lvspec_cli.pairs.registry import Pair
from lvspec_cli.types import DecodeSettings, Loading, Quantisation, TaskName, VideoRequest

if TYPE_CHECKING:
    from lvspec_cli.types import Placement


@dataclass(frozen=True)
class AskRequest:
    """Questions about one clip, and how to answer them; ``device`` and ``dtype`` as in ``load_pair``.

    ``quant_target``, ``quant_draft``, ``draft_device``: what weights are kept in, and where the draft
    goes if it is named. ``cuda_graphs``: passes of an answer are captured, where that works.
    ``loading``: what was decided, by ``pinned_request``.
    ``side_by_side``: how many such requests share the devices, each in a process of its own. ``placement``:
    where parts go, if that is decided before any of them is loaded, by ``placed_request``.
    ``pair_note``: why it is this pair, where nobody named it.
    ``threads``: what torch may use of the CPU from here on, in the whole process; None leaves it alone.
    ``name`` and ``id`` are what records call the video, where its file's name is not meant.
    ``audit``: the share of the answers that is given in mode ar as well, to compare (``batch.audit``).
    """

    video: VideoRequest
    questions: tuple[str, ...]
    pair_name: str
    pair: Pair
    settings: DecodeSettings
    system: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quant_target: Quantisation = Quantisation.AUTO
    quant_draft: Quantisation = Quantisation.AUTO
    draft_device: str | None = None
    cuda_graphs: bool = True
    loading: Loading | None = None
    side_by_side: int = 1
    placement: Placement | None = None
    pair_note: str = ""
    threads: int | None = None
    task: TaskName = "ask"
    name: bytes | None = None
    id: str | None = None
    audit: float = 0.0
