"""Exports records to one format, and reports about it, for ``lvspec export`` and ``caption --to``.

It writes into folders with other people's files: files that lvspec did not write are not replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from io import BufferedReader
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Literal

from lvspec_cli.errors import OutputError, UsageError
from lvspec_cli.host import install_command
from lvspec_cli.output.exports.captions import (
    Caption,
    Captions,
    Spot,
    Videos,
    gather,
    is_inside,
    numbers,
    sidecar_names,
    stale_sidecars,
    tracks,
)
from lvspec_cli.output.exports.formats import (
    musubi_rows,
    srt,
    videofolder_rows,
    vtt,
    write_csv,
    write_parquet,
    write_rows,
)
from lvspec_cli.output.exports.trainers import SHARD_NAME, labelled, shards, trainer_files
from lvspec_cli.output.exports.types import ExportFormat, ExportPlaces, ExportReport, Fill, Skipped
from lvspec_cli.output.files import check_folder, lacks_room, locked, replacing, sweep, sync_all, unwritable
from lvspec_cli.output.records import Record
from lvspec_cli.table import counted
from lvspec_cli.text_file import LISTS, read_own

LEDGER = ".lvspec-export.json"
SCHEMA = "lvspec.export.1"
Outcome = Literal["written", "unchanged", "foreign"]


@dataclass
class OwnFiles:
    """Files in and below one folder, with digests of those that exports wrote.

    A file whose content is not what an export wrote is foreign: it existed before, or somebody changed it.
    Foreign files are replaced only if ``force`` is set.
    """

    folder: Path
    force: bool
    digests: dict[str, str] = field(default_factory=dict)
    _entered: set[Path] = field(default_factory=set)

    def write(self, path: Path, fill: Fill) -> Outcome:
        """Writes one file atomically. ``fill`` writes the content to a stream.

        :raises OutputError: it cannot be written, or a link leads out of the folder.
        """
        name = os.fspath(path.relative_to(self.folder))
        try:
            self._enter(path.parent)
            with SpooledTemporaryFile(max_size=1 << 20, dir=os.fspath(self.folder)) as draft:
                fill(draft)
                new, old = _digest(draft), _digest_of(path)
                if old == new:
                    outcome: Outcome = "unchanged"
                elif old is not None and not self.force and old != self.digests.get(name):
                    return "foreign"
                else:
                    self._copy(path, draft)
                    outcome = "written"
        except OSError as error:
            raise unwritable(path, error) from error
        self.digests[name] = new
        return outcome

    def remove(self, names: Iterable[str]) -> list[Path]:
        """Removes files that are as an export wrote them, and returns their paths. What cannot go stays."""
        removed = []
        for name in names:
            path = self.folder / name
            with suppress(OSError, OutputError):
                self._enter(path.parent)
                if _digest_of(path) == self.digests[name]:
                    path.unlink()
                    del self.digests[name]
                    removed.append(path)
        return removed

    def _enter(self, folder: Path) -> None:
        """At the first use of a folder: checks its real path, and removes what killed exports left in it."""
        if folder in self._entered:
            return
        if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(self.folder)):
            raise OutputError(f"{folder} is a link out of {self.folder}", "name the real folder")
        sweep(folder)
        self._entered.add(folder)

    def _copy(self, path: Path, draft: SpooledTemporaryFile[bytes]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.seek(0)
        with replacing(path, sync=False) as stream:
            shutil.copyfileobj(draft, stream)


@contextmanager
def own_files(folder: Path, *, force: bool) -> Iterator[OwnFiles]:
    """The files of a folder, which is created if necessary. Only one export may use it at a time.

    :raises OutputError: the folder cannot be written, or another export is writing to it.
    """
    ledger = folder / LEDGER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    with locked(ledger):
        files = OwnFiles(folder, force, _read(ledger))
        old_digests = dict(files.digests)
        try:
            yield files
        finally:
            if files.digests != old_digests:
                sync_all()  # the files must be safe before the ledger says that they were written
                content = {"schema": SCHEMA, "sha256": files.digests}
                with replacing(ledger) as stream:
                    stream.write(json.dumps(content, indent=0).encode())


def _read(ledger: Path) -> dict[str, str]:
    """The digests in the ledger. If it is missing or broken, all files are foreign, so nothing is lost."""
    try:
        content = json.loads(read_own(ledger, LISTS))
        return {str(name): str(digest) for name, digest in content["sha256"].items()}
    except (OSError, UsageError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}


def is_own_export(path: Path) -> bool:
    """Whether an export wrote the file, into its folder or one above, and nobody has changed it since."""
    for folder in path.parents:
        if (digest := _read(folder / LEDGER).get(os.fspath(path.relative_to(folder)))) is not None:
            return digest == _digest_of(path)
    return False


def _digest(stream: BufferedReader | SpooledTemporaryFile[bytes]) -> str:
    stream.seek(0)
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest_of(path: Path) -> str | None:
    """The digest of a file; None if there is none. What is not a regular file never equals a digest."""
    if not os.path.lexists(path):
        return None
    if path.is_symlink() or not path.is_file():
        return "not a regular file"
    with path.open("rb") as stream:
        return _digest(stream)


def check_places(to: ExportFormat, where: ExportPlaces) -> None:
    """Checks the paths of an export, before anything slow starts.

    :raises UsageError: the format needs a path that is missing, or cannot use one that is given.
    :raises OutputError: a path is not a regular file, but a device, for example, or cannot be written; or a
        package is missing.
    """
    if to is ExportFormat.PARQUET and find_spec("pyarrow") is None:
        raise OutputError("Parquet is written by pyarrow, which is not installed", install_command("pyarrow"))
    if where.out and where.out_dir:
        raise UsageError("--out and --out-dir are both given", "give one of them")
    if where.out and to.is_sidecar:
        raise UsageError(f"--out names one file, and {to} has one a video", "give --out-dir")
    if where.out and where.out.exists() and not where.out.is_file():
        raise OutputError(f"{where.out}: not a regular file", "name a file")
    if to.is_sidecar and not (where.out_dir or where.videos):
        raise UsageError(
            f"{to} files need a folder", "give --videos DIR to put them beside the videos, or --out-dir DIR"
        )
    if to.is_dataset:
        _check_folder(to, where)
    if (to.is_dataset or to in (ExportFormat.VIDEOFOLDER, ExportFormat.MUSUBI)) and not where.videos:
        raise UsageError(f"{to} needs the videos", "name the folder that was captioned with --videos")
    if to is ExportFormat.VIDEOFOLDER and _from_metadata(where).startswith(".."):
        raise UsageError(
            "a VideoFolder's metadata.jsonl cannot lie below its videos, or beside their folder",
            "leave out --out and --out-dir: it is then written to the folder of the videos",
        )
    if not to.is_sidecar and not to.is_dataset:
        check_folder(_one_file(to, where).parent)
    elif folder := where.out_dir or where.videos:
        check_folder(folder)


def _check_folder(to: ExportFormat, where: ExportPlaces) -> None:
    """Shards, which hold the videos, need a folder of their own. Other datasets are where the videos are."""
    if where.out:
        raise UsageError(f"--out names one file, and {to} has files of its own names", "leave out --out")
    if to is ExportFormat.WEBDATASET and not where.out_dir:
        raise UsageError("webdataset needs a folder for its shards", "give --out-dir DIR")
    if to is not ExportFormat.WEBDATASET and where.out_dir:
        raise UsageError(
            f"{to} reads its files from the folder of the videos", "give --videos, and leave out --out-dir"
        )


def export_records(
    records: Iterable[Record],
    to: ExportFormat,
    where: ExportPlaces,
    *,
    prefix: str = "",
    suffix: str = "",
    force: bool = False,
) -> ExportReport:
    """Writes the captions of successful records in one format.

    :param prefix: put before each caption's text unchanged; ``suffix`` is put after it.
    :param force: also replace files that lvspec did not write, or that were changed since.
    :raises UsageError: as ``check_places`` does.
    :raises OutputError: the file cannot be written, or the disk is full. Other failures of one sidecar only
        skip it.
    """
    check_places(to, where)
    done = _Done(gather(records, prefix, suffix))
    if to.is_sidecar:
        _write_sidecars(to, where, force, done)
    elif to.is_dataset:
        _write_dataset(to, where, force, done)
    else:
        path = _one_file(to, where)
        fill = _filling(to, where, done)
        with own_files(path.parent, force=force) as files:
            done.outcomes.append((path, files.write(path, fill)))
    return done.report()


@dataclass
class _Done:
    """The captions to export, and the results so far."""

    captions: Captions
    outcomes: list[tuple[Path, Outcome]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)
    exported: int = 0

    def usable(self, videos: Path | None) -> Videos:
        """The videos with valid names that exist in the folder ``videos``. The others are skipped."""
        usable = {}
        for name, spots in self.captions.videos.items():
            reason = _refusal(name, videos)
            if reason is None:
                usable[name] = spots
            elif any(spot.caption for spot in spots):
                self.skipped.append(Skipped(name, reason))
        return usable

    def report(self) -> ExportReport:
        def paths(wanted: Outcome) -> tuple[Path, ...]:
            return tuple(path for path, outcome in self.outcomes if outcome == wanted)

        return ExportReport(
            written=paths("written"),
            unchanged=paths("unchanged"),
            foreign=paths("foreign"),
            skipped=tuple(self.skipped),
            removed=tuple(self.removed),
            captions=self.exported,
            failed=self.captions.failed,
            superseded=self.captions.superseded,
        )


def _refusal(name: bytes, videos: Path | None) -> str | None:
    if not is_inside(name):
        return "its name leads out of the folder"
    try:
        exists = videos is None or (videos / os.fsdecode(name)).is_file()
    except OSError as error:
        return error.strerror or str(error)
    return None if exists else f"there is no such file in {videos}"


def _one_file(to: ExportFormat, where: ExportPlaces) -> Path:
    if where.out:
        return where.out
    folder = where.out_dir or (where.videos if to is ExportFormat.VIDEOFOLDER else None)
    if folder is None:
        raise UsageError(f"{to} needs a place", "give --out FILE")
    return folder / to.file_name


def _from_metadata(where: ExportPlaces) -> str:
    """The folder of the videos relative to that of metadata.jsonl: with a slash at its end, or empty."""
    assert where.videos is not None
    folder = os.path.relpath(where.videos, _one_file(ExportFormat.VIDEOFOLDER, where).parent)
    return "" if folder == "." else folder + "/"


def _filling(to: ExportFormat, where: ExportPlaces, done: _Done) -> Fill:
    """The function that writes the single file of the format."""
    if to in (ExportFormat.CSV, ExportFormat.PARQUET):
        done.exported = len(done.captions.rows)
        return partial(write_csv if to is ExportFormat.CSV else write_parquet, done.captions.rows)
    assert where.videos is not None
    videos = done.usable(where.videos)
    if to is ExportFormat.MUSUBI:
        rows_or_skipped = musubi_rows(videos, where.videos)
    else:
        rows_or_skipped = videofolder_rows(videos, _from_metadata(where))
    rows = []
    for row in rows_or_skipped:
        if isinstance(row, Skipped):
            done.skipped.append(row)
        else:
            rows.append(row)
    done.exported = len(rows)
    return partial(write_rows, rows)


def _write_sidecars(to: ExportFormat, where: ExportPlaces, force: bool, done: _Done) -> None:
    folder = where.out_dir or where.videos
    assert folder is not None
    videos = done.usable(None if where.out_dir else folder)
    names = sidecar_names({name: _labels(to, spots) for name, spots in videos.items()}, to.value)
    with own_files(folder, force=force) as files:
        for name, sidecar, captions in _sidecars(to, videos, names):
            path = folder / os.fsdecode(sidecar)
            try:
                done.outcomes.append((path, files.write(path, _sidecar(to, captions))))
                done.exported += len(captions)
            except OutputError as error:
                if lacks_room(error):
                    raise
                done.skipped.append(Skipped(name, error.cause))
        if where.videos is not None:
            known = {os.fsencode(name) for name in files.digests}
            stale = stale_sidecars(
                known, names, to.value, partial(_has_own_file, where.videos, {*known, *videos})
            )
            done.removed += files.remove(map(os.fsdecode, sorted(stale)))


def _has_own_file(videos: Path, ours: Collection[bytes], stem: bytes) -> bool:
    """Whether a file in the folder of the videos has this stem, besides those that are ours or exported."""
    path = videos / os.fsdecode(stem)
    with suppress(OSError):
        found = (os.fsencode(entry.relative_to(videos)) for entry in path.parent.iterdir())
        return any(name not in ours and (name + b".").startswith(stem + b".") for name in found)
    return False


def _write_dataset(to: ExportFormat, where: ExportPlaces, force: bool, done: _Done) -> None:
    assert where.videos is not None
    videos, skipped = labelled(done.usable(where.videos), to)
    done.skipped += skipped
    done.exported = sum(len(video.captions) for video in videos)
    folder = where.out_dir or where.videos
    with own_files(folder, force=force) as files:
        filled = shards(videos, where.videos) if where.out_dir else trainer_files(to, videos)
        for name, fill in filled:
            done.outcomes.append((folder / name, files.write(folder / name, fill)))
        if to is ExportFormat.WEBDATASET and done.outcomes:  # a longer list had more shards
            current = {path.name for path, _ in done.outcomes}
            known = [name for name in files.digests if re.fullmatch(SHARD_NAME, name)]
            done.removed += files.remove(name for name in sorted(known) if name not in current)


def _labels(to: ExportFormat, spots: Sequence[Spot]) -> list[str]:
    return numbers(spots) if to is ExportFormat.TXT else tracks(spots)


def _sidecars(
    to: ExportFormat, videos: Videos, names: Mapping[bytes, Mapping[str, bytes]]
) -> Iterator[tuple[bytes, bytes, list[Caption]]]:
    """For each sidecar file: the video's name, its own name, and its captions."""
    for name, spots in videos.items():
        inside: dict[str, list[Caption]] = {}
        for label, spot in zip(_labels(to, spots), spots, strict=True):
            if spot.caption is not None:
                inside.setdefault(label, []).append(spot.caption)
        for label, captions in inside.items():
            yield name, names[name][label], captions


def _sidecar(to: ExportFormat, captions: list[Caption]) -> Fill:
    """What writes one sidecar."""
    match to:
        case ExportFormat.SRT:
            text = srt(captions)
        case ExportFormat.VTT:
            text = vtt(captions)
        case _:
            text = captions[0].text + "\n"
    return lambda stream: stream.write(text.encode())


def report_lines(report: ExportReport, to: ExportFormat, named: int) -> list[str]:
    """What was written and what was left out, and why.

    :param named: how many skipped captions are named; the others are counted.
    """
    lines = [_written(report, to)]
    if report.failed:
        lines.append(f"left out: {report.failed} that failed")
    if report.superseded and (
        to.is_sidecar or to.is_dataset or to in (ExportFormat.VIDEOFOLDER, ExportFormat.MUSUBI)
    ):
        lines.append(f"left out: {report.superseded} with a later caption of the same clip and prompt")
    shown = report.skipped[:named]
    lines += [f"left out: {os.fsdecode(skipped.name)}: {skipped.reason}" for skipped in shown]
    if len(report.skipped) > named:
        lines.append(f"left out: {len(report.skipped) - named} more")
    if report.removed:
        more = f" and {len(report.removed) - 1} more" if len(report.removed) > 1 else ""
        lines.append(f"removed, as only an earlier export had it: {report.removed[0]}{more}")
    return lines


def _written(report: ExportReport, to: ExportFormat) -> str:
    if to.is_sidecar:
        return f"{to} files: {len(report.written)} written, {len(report.unchanged)} unchanged"
    if to.is_dataset:
        paths = ", ".join(map(str, (*report.written, *report.unchanged))) or "nothing written"
        state = "" if report.written else ", unchanged"
        return f"{to}: {counted(report.captions, 'caption')} in {paths}{state}"
    captions = counted(report.captions, "caption")
    done = [f"{path}: {captions} written" for path in report.written]
    same = [f"{path}: unchanged, {captions}" for path in report.unchanged]
    return "".join(done or same or [f"{to}: nothing written"])
