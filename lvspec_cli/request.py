"""Requests of a user: a pair and how it is loaded, and questions about one clip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lvspec_cli.errors import UsageError
from lvspec_cli.pairs.registry import Pair
from lvspec_cli.types import (
    DecodeSettings,
    Loading,
    Mode,
    Placement,
    Quantisation,
    TaskName,
    Turn,
    VideoRequest,
)

# Cause and remedy.
NO_PRUNING = (
    "--draft mtp reads what the target has made of the whole video: --draft-keep, --draft-frames and"
    " --draft-pixels cannot make that less",
    "leave out --draft mtp or the others",
)
OTHER_TOKENS = (
    "--draft-keep goes by the target's attention to its own tokens of the video, and with --draft-frames or"
    " --draft-pixels the draft has others",
    "add --draft-keep-by even, or leave out --draft-keep",
)


def check_draft_view(settings: DecodeSettings, *, mtp: bool) -> None:
    """
    :param mtp: the draft is the target's prediction layer.
    :raises UsageError: what the draft is to see of a video excludes each other.
    """
    if settings.mode is Mode.AR:
        return
    if mtp and (settings.draft_keep < 1 or not settings.draft_view.is_whole):
        raise UsageError(*NO_PRUNING)
    if settings.draft_is_guided and not settings.draft_view.is_whole:
        raise UsageError(*OTHER_TOKENS)


@dataclass(frozen=True)
class PairChoice:
    """A pair, and the user's options for loading it. ``memory.resolve`` turns it into a LoadPlan.

    ``note``: why this pair was chosen, if the user named none.
    ``device`` and ``dtype``: the values of the flags, which may be ``auto``.
    ``quant_target``, ``quant_draft``: the quantisation of the weights.
    ``draft_device``: the device of the draft, if the user named one.
    ``cuda_graphs``: capture an answer's passes if that works.
    ``threads``: CPU threads of torch, for the whole process; None does not change them.
    ``side_by_side``: number of such pairs that share the device, each in a process of its own.
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

    ``choice``: with the revisions that are on this machine.
    ``target``, ``draft``: the models' folders; no draft if the mode needs none. That of a prediction layer is
    the target's.
    ``placement``: the devices of decoder layers; None if that is decided when the models are loaded.
    ``width_limit``: rows of a verification that the target's kernels handle at once; None: there is no limit.
    ``notes``: lines about the decisions, for the user.
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

    ``think``: the target thinks before it answers, if its chat template has a switch for that.
    ``name`` and ``id``: the video's name and id in records, if they are not the file's name.
    ``history``: earlier turns about the clip, which each question follows.
    ``audit``: the share of the answers that are also given in mode ar, for comparison (``figures.audit``).
    """

    video: VideoRequest
    questions: tuple[str, ...]
    settings: DecodeSettings
    system: str | None = None
    think: bool = False
    task: TaskName = "ask"
    name: bytes | None = None
    id: str | None = None
    audit: float = 0.0
    history: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Company:
    """How many answers are decoded at the same time, and whether the draft pays beside so many.

    ``keeps_texts``: only if no answer's text depends on those beside it, which a loaded pair knows.
    """

    slots: int = 1
    drafts: bool = True
    keeps_texts: bool = False


ALONE = Company()
