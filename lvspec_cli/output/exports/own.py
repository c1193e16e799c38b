"""Writes into folders with other people's files: files that lvspec did not write are not replaced."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Literal

from lvspec_cli.errors import OutputError, UsageError
from lvspec_cli.output.files import replacing, sweep, sync_all, unwritable
from lvspec_cli.output.lock import locked
from lvspec_cli.text_file import LISTS, read_own

LEDGER = ".lvspec-export.json"
SCHEMA = "lvspec.export.1"
Outcome = Literal["written", "unchanged", "foreign"]
Fill = Callable[[IO[bytes]], object]  # writes a file's content


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
