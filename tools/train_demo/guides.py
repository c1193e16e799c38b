"""Guides: what the text model should know of an object, read from inside it by heads that are dropped later.

Of the tokens of a caption few carry a fact, so the next token alone teaches slowly where to look. A guide
asks more often: of every token of the video (after ``seen_after`` layers), and of every token of an answer
(after ``told_after`` layers), for all facts of the object that it is about.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lvspec_cli.demo.scenes import COLOURS, COLUMNS, COUNTS, MOTIONS, ROWS, SHAPES, SIZES, Scene

IGNORED = -100
EVENTS = ("appears", "disappears", "changes colour")
#: Values of each kind; value 0 of those of an object means nothing. What counts for events is whether a
#: slice is the video's first.
KINDS = {
    "later slice": 2,
    "row": len(ROWS),
    "column": len(COLUMNS),
    "colour": 1 + len(COLOURS),
    "shape": 1 + len(SHAPES),
    "size": 1 + len(SIZES),
    "motion": 1 + len(MOTIONS),
    "event": 1 + len(EVENTS),
    "new colour": 1 + len(COLOURS),
}


#: Of the whole video: how many objects, and what its events are. Value 0 of an event's kinds means none.
SCENE_KINDS = {
    "count": len(COUNTS),
    "first event": 1 + len(EVENTS),
    "first colour": 1 + len(COLOURS),
    "first shape": 1 + len(SHAPES),
    "second event": 1 + len(EVENTS),
    "second colour": 1 + len(COLOURS),
    "second shape": 1 + len(SHAPES),
}
#: And which colours and shapes it holds: 0 not at all, 1 as an object's, 2 only after a change of colour.
PRESENCE_KINDS = {**dict.fromkeys(COLOURS, 3), **dict.fromkeys(SHAPES, 2)}


def presence_labels(scene: Scene) -> Tensor:
    """Which colours and shapes there are, long (presence kinds,)."""
    values = dict.fromkeys(PRESENCE_KINDS, 0)
    values |= {item.new_colour: 2 for item in scene.objects if item.new_colour}
    for item in scene.objects:
        values |= {item.colour: 1, item.shape: 1}
    return torch.tensor([values[kind] for kind in PRESENCE_KINDS])


def scene_labels(scene: Scene) -> Tensor:
    """The facts of the whole video, long (scene kinds,)."""
    values = [len(scene.objects)]
    for event in scene.events:
        item = scene.objects[event.index]
        values += [
            1 + EVENTS.index(event.kind),
            1 + list(COLOURS).index(item.colour),
            1 + list(SHAPES).index(item.shape),
        ]
    return torch.tensor(values + [0] * (len(SCENE_KINDS) - len(values)))


def object_labels(scene: Scene) -> Tensor:
    """The facts of each object, long (objects, kinds)."""
    events = {event.index: 1 + EVENTS.index(event.kind) for event in scene.events}
    rows = [
        (
            IGNORED,
            list(ROWS).index(item.row),
            COLUMNS.index(item.column),
            1 + list(COLOURS).index(item.colour),
            1 + list(SHAPES).index(item.shape),
            1 + list(SIZES).index(item.size),
            1 + list(MOTIONS).index(item.motion),
            events.get(index, 0),
            1 + list(COLOURS).index(item.new_colour) if item.new_colour else 0,
        )
        for index, item in enumerate(scene.objects)
    ]
    return torch.tensor(rows)


def empty_labels(slices: int, rows: int, columns: int) -> np.ndarray:
    """Labels of cells without an object, long (slices, rows, columns, kinds): where and when."""
    labels = np.zeros((slices, rows, columns, len(KINDS)), dtype=np.int64)
    labels[..., 0] = (np.arange(slices) > 0)[:, None, None]
    labels[..., 1] = ((np.arange(rows) + 0.5) / rows * 3).astype(int)[:, None]
    labels[..., 2] = ((np.arange(columns) + 0.5) / columns * 3).astype(int)[None, :]
    labels[..., list(KINDS).index("event") :] = IGNORED  # most cells are empty, and would drown the others
    return labels


def told_labels(objects: Tensor, subjects: Tensor) -> Tensor:
    """The facts of the object that each position's next token is about, long (kinds, T), or ``IGNORED``."""
    labels = objects[subjects.clamp(min=0)].T
    return labels.masked_fill(subjects == IGNORED, IGNORED)


class Guides(nn.Module):
    """Linear heads on hidden states inside the text model: of the video's tokens, and of answers' tokens.

    ``seen`` and ``told`` read an object's facts (``KINDS``), ``scene`` the video's (``SCENE_KINDS``), and
    ``presence`` what it holds (``PRESENCE_KINDS``).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seen = nn.Linear(width, sum(KINDS.values()))
        self.told = nn.Linear(width, sum(KINDS.values()))
        self.scene = nn.Linear(width, sum(SCENE_KINDS.values()))
        self.presence = nn.Linear(width, sum(PRESENCE_KINDS.values()))

    def seen_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of the kinds, from hidden (V, width) and labels (V, kinds)."""
        return _loss(self.seen(_normed(hidden)), labels, KINDS)

    def told_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The same of answer tokens, from hidden (N, width) and labels (N, kinds)."""
        return _loss(self.told(_normed(hidden)), labels, KINDS)

    def scene_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The same for the whole video, from hidden (N, width) and labels (N, scene kinds)."""
        return _loss(self.scene(_normed(hidden)), labels, SCENE_KINDS)

    def presence_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The same for what it holds, from hidden (N, width) and labels (N, presence kinds)."""
        return _loss(self.presence(_normed(hidden)), labels, PRESENCE_KINDS)

    def presence_accuracy(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Share right of each presence kind, (presence kinds,)."""
        return _rights(self.presence(_normed(hidden)), labels, PRESENCE_KINDS)

    def scene_accuracy(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Share right of each scene kind, (scene kinds,)."""
        return _rights(self.scene(_normed(hidden)), labels, SCENE_KINDS)

    def accuracy(self, name: str, hidden: Tensor, labels: Tensor) -> Tensor:
        """Share right of each kind, (kinds,); of tokens with an object (value above 0 of ``colour``)."""
        logits = getattr(self, name)(_normed(hidden)).split(list(KINDS.values()), dim=-1)
        about = labels[:, list(KINDS).index("colour")] > 0
        rights = [(values.argmax(-1) == labels[:, index])[about] for index, values in enumerate(logits)]
        return torch.stack(rights).float().mean(-1)


def _normed(hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden.float(), hidden.shape[-1:])


def _rights(logits: Tensor, labels: Tensor, kinds: Mapping[str, int]) -> Tensor:
    parts = logits.split(list(kinds.values()), dim=-1)
    return torch.stack([(part.argmax(-1) == labels[:, i]).float().mean() for i, part in enumerate(parts)])


def _loss(logits: Tensor, labels: Tensor, kinds: Mapping[str, int]) -> Tensor:
    parts = logits.split(list(kinds.values()), dim=-1)
    losses = [
        functional.cross_entropy(part, labels[:, index])
        for index, part in enumerate(parts)
        if (labels[:, index] != IGNORED).any()
    ]
    return torch.stack(losses).mean()
