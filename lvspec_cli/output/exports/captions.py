"""Records -> captions, one for each clip, stretch and prompt, in a fixed order; names of sidecar files."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from posixpath import splitext
from typing import TypeVar

from lvspec_cli.output.jsonl import prevails
from lvspec_cli.output.records import Record, Stats, raw_name

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Caption:
    """A successful record as a flat row. Its fields are the columns of tables. Times are in seconds."""

    id: str
    file_name: str
    file_name_b64: str | None
    start: float
    end: float | None
    prompt: str
    text: str
    task: str
    system: str | None
    finish_reason: str
    pair: str
    mode: str
    lossless: bool
    frames: int | None
    frames_expected: int | None
    last_frame: float | None
    begins: float | None  # when the picture begins
    duration: float | None  # of the video
    output_tokens: int | None
    mean_accepted_length: float | None
    tokens_per_s: float | None
    key: str
    created: str

    @classmethod
    def of(cls, record: Record, text: str) -> Caption:
        stats: Stats | None = record.stats
        return cls(
            id=record.id,
            file_name=record.file_name,
            file_name_b64=record.file_name_b64,
            start=record.segment.start,
            end=record.segment.end,
            prompt=record.prompt,
            text=text,
            task=record.task,
            system=record.system,
            finish_reason=record.finish_reason.value,
            pair=record.pair,
            mode=record.mode.value,
            lossless=record.lossless,
            frames=record.sampling.decoded,
            frames_expected=record.sampling.frames_expected,
            last_frame=record.sampling.timestamps[-1] if record.sampling.timestamps else None,
            begins=record.sampling.begins,
            duration=record.sampling.duration,
            output_tokens=stats.output_tokens if stats else None,
            mean_accepted_length=stats.mean_accepted_length if stats else None,
            tokens_per_s=stats.tokens_per_s if stats else None,
            key=record.key,
            created=record.created.isoformat(),
        )

    @property
    def is_part(self) -> bool:
        """Whether it describes a stretch of the video and not the whole video."""
        return self.start > 0 or self.end is not None


@dataclass(frozen=True, slots=True)
class Spot:
    """The slot of a caption: one prompt about one stretch of one video."""

    start: float
    end: float | None
    number: int  # of the prompt, from 1, among those about the stretch
    caption: Caption | None  # None: it failed
    name: bytes = b""  # of the video, raw
    prompt: str = ""

    @property
    def status(self) -> str:
        return "ok" if self.caption else "error"


Videos = Mapping[bytes, tuple[Spot, ...]]  # by raw name; sorted by time, then by prompt


@dataclass(frozen=True)
class Captions:
    """All captions of a file of records. Failures have spots too, so that the others keep their numbers."""

    rows: tuple[Caption, ...]  # one for each key
    videos: Videos
    failed: int  # spots without a caption
    superseded: int  # rows whose spot belongs to a later row


def gather(records: Iterable[Record], prefix: str = "", suffix: str = "") -> Captions:
    """Captions of records, with ``prefix`` and ``suffix`` around their texts.

    Of two records with the same key, or the same clip, stretch and prompt, ok wins over error, and then the
    later record wins.
    """
    by_key: dict[str, Spot] = {}
    for record in records:
        text = f"{prefix}{record.text or ''}{suffix}"
        caption = Caption.of(record, text) if record.status == "ok" else None
        segment = record.segment
        spot = Spot(segment.start, segment.end, _number(record), caption, raw_name(record), record.prompt)
        _put(by_key, record.key, spot)
    spots: dict[tuple[bytes, float, float | None, str], Spot] = {}
    for entry in by_key.values():
        _put(spots, (entry.name, entry.start, entry.end, entry.prompt), entry)
    rows = tuple(entry.caption for entry in by_key.values() if entry.caption)
    failed = sum(entry.caption is None for entry in spots.values())
    return Captions(rows, _by_video(spots.values()), failed, len(rows) - (len(spots) - failed))


def _put(entries: dict[Key, Spot], key: Key, entry: Spot) -> None:
    old = entries.get(key)
    if old is None or prevails(entry.status, old.status):
        entries[key] = entry


def _number(record: Record) -> int:
    """The number of the prompt, with which the record's id ends (``output.records``); 0 if there is none."""
    match = re.search(r"#([0-9]{1,9})$", record.id)  # lvspec never writes more digits
    return int(match[1]) if match else 0


def _by_video(entries: Iterable[Spot]) -> Videos:
    videos = defaultdict(list)
    for entry in entries:
        videos[entry.name].append(entry)
    return {name: tuple(_spots(videos[name])) for name in videos}


def _spots(entries: list[Spot]) -> Iterator[Spot]:
    def stretch(entry: Spot) -> tuple[float, float]:
        return entry.start, math.inf if entry.end is None else entry.end

    entries.sort(key=lambda entry: (stretch(entry), entry.number, entry.prompt))
    for _, about in groupby(entries, stretch):
        for number, entry in enumerate(about, start=1):
            yield replace(entry, number=number)


def numbers(spots: Sequence[Spot]) -> list[str]:
    """A label for each caption: the number of the stretch if there are several, then that of ``tracks``."""
    stretches: dict[tuple[float, float | None], int] = {}
    for spot in spots:
        stretches.setdefault((spot.start, spot.end), len(stretches) + 1)
    return [
        (f".{stretches[spot.start, spot.end]:03}" if len(stretches) > 1 else "") + track
        for spot, track in zip(spots, tracks(spots), strict=True)
    ]


def tracks(spots: Sequence[Spot]) -> list[str]:
    """A label for each caption: the number of the prompt if a stretch has several."""
    several = any(spot.number > 1 for spot in spots)
    return [f".{spot.number}" if several else "" for spot in spots]


def sidecar_names(labels: Mapping[bytes, Iterable[str]], suffix: str) -> dict[bytes, dict[str, bytes]]:
    """The name of the sidecar file for each video and label, in the video's folder.

    ``a.mp4`` gets ``a.txt``, or ``a.001.txt`` with a label. If two videos would get the same name (there is
    also ``a.webm``), both keep their own suffixes: ``a.mp4.txt``. Names that differ only in case count as
    equal, because some disks ignore case. No sidecar gets the name of a video.
    """
    labels = {video: tuple(dict.fromkeys(own_labels)) for video, own_labels in labels.items()}
    level = dict.fromkeys(labels, 0)
    while True:
        names = {
            video: {label: _name(video, level[video], label, suffix) for label in own_labels}
            for video, own_labels in labels.items()
        }
        uses = Counter(_folded(name) for sidecars in names.values() for name in sidecars.values())
        uses.update(map(_folded, labels))
        clashing = [
            video
            for video, sidecars in names.items()
            if level[video] < 2 and any(uses[_folded(name)] > 1 for name in sidecars.values())
        ]
        if not clashing:
            return names
        for name in clashing:
            level[name] += 1


def stale_sidecars(
    known: Iterable[bytes],
    names: Mapping[bytes, Mapping[str, bytes]],
    suffix: str,
    has_own_file: Callable[[bytes], bool],
) -> list[bytes]:
    """Of the sidecars that exports have written, those of these videos that have no place in ``names`` now.

    An earlier export had other stretches or prompts, or fewer videos that are named alike.

    :param names: as ``sidecar_names`` gives them.
    :param has_own_file: whether there is another file with this stem: ``a.004.txt`` may belong to a video
        ``a.004.mp4``, and then stays.
    """
    stems = {_name(video, level, "", "")[:-1] for video in names for level in range(3)}
    placed = {name for sidecars in names.values() for name in sidecars.values()}
    end = f".{suffix}".encode()
    stale = []
    for name in known:
        stem = name.removesuffix(end)
        if stem == name or name in placed:
            continue
        cut = {re.sub(label, b"", stem) for label in (rb"\.\d{3,}$", rb"\.\d+$", rb"\.\d{3,}\.\d+$")}
        if stem in stems or (cut & stems and not has_own_file(stem)):
            stale.append(name)
    return stale


def is_inside(name: bytes) -> bool:
    """Whether a record's relative name stays inside its folder."""
    parts = name.split(b"/")
    return b"\0" not in name and not {b"", b".", b".."} & set(parts)


def _name(video: bytes, level: int, label: str, suffix: str) -> bytes:
    stem = video if level else splitext(video)[0]  # pathlib's own depends on the release of Python
    if level == 2:  # a.mp4 with label .1 and a video a.mp4.1: only a hash distinguishes them
        stem += b"." + hashlib.sha256(video).hexdigest()[:8].encode()
    return stem + f"{label}.{suffix}".encode()


def _folded(name: bytes) -> bytes:
    return name.lower()
