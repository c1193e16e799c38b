"""Access to the model hub: which files are still to be downloaded, the resumable download, and hashes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from lvspec_cli.errors import PairError
from lvspec_cli.pairs.files import ALLOWED_FILES, IGNORED_FILES
from lvspec_cli.pairs.registry import Source
from lvspec_cli.table import gigabytes

Progress = Callable[[int, int], None]  # bytes done, bytes in total
Bar = Callable[[Progress], type[Any]]  # makes a class for the progress bars of the hub's client
Result = TypeVar("Result")
# Seconds until the hub counts as out of reach: for any answer at all, and for a list of a repository's files.
# The client has no limit for some calls, and repeats others for half a minute.
ANSWER_S, LIST_S = 5.0, 10.0


class HubUnreachableError(PairError):
    """The hub does not answer, or HF_HUB_OFFLINE keeps it from being asked."""


@dataclass(frozen=True)
class Missing:
    """The files of a repository that are still to be downloaded."""

    source: Source
    files: tuple[str, ...]
    size: int  # bytes


def missing_of(source: Source, bar: Bar) -> Missing:
    """Compares a repository on the hub with the local cache.

    :raises HubUnreachableError: the hub does not answer.
    :raises PairError: the hub cannot be reached or denies access, or the repository has no safetensors.
    """
    from huggingface_hub import snapshot_download

    check_reachable(_name(source))
    with _as_pair_error(source):
        files = snapshot_download(**_arguments(source), dry_run=True, tqdm_class=bar(lambda *_: None))
    if not any(file.filename.endswith(".safetensors") for file in files):
        raise PairError(
            f"{source.repo} holds no safetensors, and nothing else is loaded", "choose another repository"
        )
    missing = [file for file in files if file.will_download]
    return Missing(
        source, tuple(file.filename for file in missing), sum(file.file_size or 0 for file in missing)
    )


def check_room(missing: list[Missing]) -> None:
    """
    :raises PairError: the cache's disk has too little free space for all of it.
    """
    folder = cache_disk()
    if folder is None:
        raise PairError("this user has no home folder to download to", "set HF_HOME to a folder of your own")
    needed, free = sum(model.size for model in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise PairError(
            f"{gigabytes(needed)} are to be downloaded, and {folder} has {gigabytes(free)} free",
            "make room, or set HF_HOME to a folder on another disk",
        )


def cache_disk() -> Path | None:
    """The cache's folder, or the first existing one above it; None for a user without a home folder."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    if folder.parts[:1] == ("~",):
        return None
    return next(parent for parent in (folder, *folder.parents) if parent.is_dir())


def fetch(missing: Missing, bar: Bar, progress: Progress) -> Path:
    """Downloads the missing files into the hub's cache. If it is interrupted, complete files stay.

    :raises PairError: the download fails.
    """
    from huggingface_hub import snapshot_download

    counter = bar(lambda done, _: progress(min(done, missing.size), missing.size))
    with _as_pair_error(missing.source):
        folder = snapshot_download(**_arguments(missing.source), tqdm_class=counter)
    progress(missing.size, missing.size)
    return Path(folder)


def hashes_of(source: Source, commit: str) -> dict[str, str]:
    """The hub's current hashes of a commit's files: sha256 for large files, git's blob hash for the others.

    :raises PairError: the hub cannot be reached or denies access.
    """
    from huggingface_hub import HfApi, RepoFile

    def listed() -> list[Any]:
        return list(HfApi().list_repo_tree(source.repo or "", revision=commit, recursive=True))

    with _as_pair_error(source):
        files = [entry for entry in _within(LIST_S, listed) if isinstance(entry, RepoFile)]
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}


def check_reachable(wanted: str = "") -> None:
    """Asks the hub for anything at all, by the client's own connection with its proxies and certificates.

    :param wanted: what it is asked for, for the message.
    :raises HubUnreachableError: no answer within a few seconds.
    """
    from huggingface_hub import constants, get_session

    try:
        _within(ANSWER_S, lambda: get_session().head(constants.ENDPOINT, timeout=ANSWER_S))
    except Exception as error:
        if not _is_clients(error):
            raise
        raise _unreachable(wanted) from error


def _within(seconds: float, call: Callable[[], Result]) -> Result:
    """The call's result.

    It runs in a thread of its own, which nobody waits for at exit: looking up a name has no limit of time.

    :raises TimeoutError: it takes longer.
    """
    results: SimpleQueue[tuple[Result | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            results.put((call(), None))
        except BaseException as error:  # raised below, by the thread that waits
            results.put((None, error))

    Thread(target=run, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _arguments(source: Source) -> dict[str, Any]:
    """Arguments of ``snapshot_download``."""
    return {
        "repo_id": source.repo,
        "revision": source.revision,
        "allow_patterns": list(ALLOWED_FILES),
        "ignore_patterns": list(IGNORED_FILES),
    }


@contextmanager
def _as_pair_error(source: Source) -> Iterator[None]:
    """Turns what the hub's client raises into a PairError, and keeps the client from printing its retries."""
    from huggingface_hub.utils import logging

    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    try:
        yield
    except PairError:
        raise
    except Exception as error:
        if not _is_clients(error):
            raise
        raise _pair_error(source, error) from error


def _is_clients(error: Exception) -> bool:
    """Whether the hub's client raises it. Releases use different HTTP libraries: none is imported here."""
    return isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "huggingface_hub"))


def _name(source: Source) -> str:
    return f"{source.repo} at {source.revision}" if source.revision else str(source.repo)


def _pair_error(source: Source, error: BaseException) -> PairError:
    from huggingface_hub import errors

    name = _name(source)
    cause = " ".join(str(error).split())[:160]
    match error:
        case errors.GatedRepoError():
            return PairError(
                f"{name} is given only to those who accepted its terms",
                "accept them on its page, and set HF_TOKEN",
            )
        case errors.RevisionNotFoundError():
            return PairError(f"the hub has no {name}", "fix its revision in models.yaml")
        case errors.RepositoryNotFoundError():
            return PairError(f"the hub has no {name}, or it is private", "fix its name, or set HF_TOKEN")
        case errors.DryRunError(__cause__=Exception() as reason):
            return _pair_error(source, reason)
        case errors.HfHubHTTPError():
            return PairError(f"{name} cannot be downloaded: {cause}", "run the same command again later")
        case OSError() if error.errno is not None and error.filename is not None:
            return PairError(f"{name} cannot be written: {cause}", "fix that, or set HF_HOME elsewhere")
    return _unreachable(name)


def _unreachable(name: str) -> HubUnreachableError:
    """:param name: what was wanted; empty for nothing special."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        what = f"HF_HUB_OFFLINE keeps {name} from being downloaded" if name else "HF_HUB_OFFLINE is set"
        return HubUnreachableError(what, "unset it")
    return HubUnreachableError(
        f"the hub, {constants.ENDPOINT}, cannot be reached" + (f" for {name}" if name else ""),
        "check the connection, or set HF_ENDPOINT to a mirror",
    )
