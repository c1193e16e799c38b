"""What the files that belong to one caption or one video are called, so that no two are called the same."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from lvspec_cli.output.exports.captions import Spot


def numbers(spots: Sequence[Spot]) -> list[str]:
    """One a caption: the stretch's number where a video has several, then the prompt's, as in ``tracks``."""
    stretches: dict[tuple[float, float | None], int] = {}
    for spot in spots:
        stretches.setdefault((spot.start, spot.end), len(stretches) + 1)
    return [
        (f".{stretches[spot.start, spot.end]:03}" if len(stretches) > 1 else "") + track
        for spot, track in zip(spots, tracks(spots), strict=True)
    ]


def tracks(spots: Sequence[Spot]) -> list[str]:
    """One a caption: the prompt's number where a stretch has several."""
    several = any(spot.number > 1 for spot in spots)
    return [f".{spot.number}" if several else "" for spot in spots]


def sidecar_names(wanted: Mapping[bytes, Iterable[str]], suffix: str) -> dict[bytes, dict[str, bytes]]:
    """The name of each video's file with each label, in the video's folder.

    ``a.mp4`` gets ``a.txt``, or ``a.001.txt`` with a label. Where two videos would get one name (``a.webm``
    is there too), both keep their own suffixes: ``a.mp4.txt``. Names that differ in case only count as one,
    as some disks take them so, and no video's own name is given away.
    """
    wanted = {name: tuple(dict.fromkeys(given)) for name, given in wanted.items()}
    level = dict.fromkeys(wanted, 0)
    while True:
        names = {
            name: {label: _name(name, level[name], label, suffix) for label in given}
            for name, given in wanted.items()
        }
        claims = Counter(_folded(name) for given in names.values() for name in given.values())
        claims.update(_folded(name) for name in wanted)
        clashing = [
            name
            for name, given in names.items()
            if level[name] < 2 and any(claims[_folded(taken)] > 1 for taken in given.values())
        ]
        if not clashing:
            return names
        for name in clashing:
            level[name] += 1


def is_inside(name: bytes) -> bool:
    """Whether a record's name leads to a file below the folder that it is relative to, and nowhere else."""
    parts = name.split(b"/")
    return b"\0" not in name and not {b"", b".", b".."} & set(parts)


def _name(video: bytes, level: int, label: str, suffix: str) -> bytes:
    stem = video if level else os.fsencode(PurePosixPath(os.fsdecode(video)).with_suffix(""))
    if level == 2:  # a.mp4 with label .1 and a video called a.mp4.1: nothing but a hash tells them apart
        stem += b"." + hashlib.sha256(video).hexdigest()[:8].encode()
    return stem + f"{label}.{suffix}".encode()


def _folded(name: bytes) -> bytes:
    return name.lower()
