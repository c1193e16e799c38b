"""What is asked of the model hub: what there is to download, and the download, which can be gone on with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvspec_cli.errors import PairError
from lvspec_cli.pairs.files import LEFT, TAKEN
from lvspec_cli.pairs.registry import Source
from lvspec_cli.table import gigabytes

Progress = Callable[[int, int], None]  # bytes done, of how many
Bar = Callable[[Progress], type[Any]]  # makes the class that the hub's client takes for its progress bars


@dataclass(frozen=True)
class Missing:
    """What of a repository is still to be downloaded."""

    source: Source
    files: tuple[str, ...]
    size: int  # bytes


def missing_of(source: Source, bar: Bar) -> Missing:
    """Asks the hub what a repository holds, and the cache what of it is here.

    :raises PairError: the hub cannot be reached, or does not give it; or it holds no safetensors.
    """
    from huggingface_hub import snapshot_download

    with _explained(source):
        found = snapshot_download(**_asked(source), dry_run=True, tqdm_class=bar(lambda *_: None))
    if not any(file.filename.endswith(".safetensors") for file in found):
        raise PairError(
            f"{source.repo} holds no safetensors, and nothing else is loaded", "choose another repository"
        )
    missing = [file for file in found if file.will_download]
    return Missing(
        source, tuple(file.filename for file in missing), sum(file.file_size or 0 for file in missing)
    )


def check_room(missing: list[Missing]) -> None:
    """PairError where the cache's disk has not room for all of it."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    if folder.parts[:1] == ("~",):
        raise PairError("this user has no home folder to download to", "set HF_HOME to a folder of your own")
    while not folder.is_dir():
        folder = folder.parent
    wanted, free = sum(each.size for each in missing), shutil.disk_usage(folder).free
    if wanted > free:
        raise PairError(
            f"{gigabytes(wanted)} are to be downloaded, and {folder} has {gigabytes(free)} free",
            "make room, or set HF_HOME to a folder on another disk",
        )


def fetch(missing: Missing, bar: Bar, progress: Progress) -> Path:
    """Downloads what is missing into the hub's cache. Whole files stay, whenever it is stopped.

    :raises PairError: the hub stops giving it.
    """
    from huggingface_hub import snapshot_download

    counter = bar(lambda done, _: progress(min(done, missing.size), missing.size))
    with _explained(missing.source):
        folder = snapshot_download(**_asked(missing.source), tqdm_class=counter)
    progress(missing.size, missing.size)
    return Path(folder)


def hashes_of(source: Source, commit: str) -> dict[str, str]:
    """Hashes of a commit's files as the hub says them now: sha256 of large ones, git's of the others.

    :raises PairError: the hub cannot be reached, or does not say.
    """
    from huggingface_hub import HfApi, RepoFile

    with _explained(source):
        entries = HfApi().list_repo_tree(source.repo or "", revision=commit, recursive=True)
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}


def _asked(source: Source) -> dict[str, Any]:
    return {
        "repo_id": source.repo,
        "revision": source.revision,
        "allow_patterns": list(TAKEN),
        "ignore_patterns": list(LEFT),
    }


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """What the hub's client raises, as one line of cause and one of remedy."""
    try:
        yield
    except PairError:
        raise
    except Exception as error:
        # The client's HTTP library is its own affair, and differs between releases.
        known = isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "huggingface_hub"))
        if not known:
            raise
        raise _in_words(source, error) from error


def _in_words(source: Source, error: BaseException) -> PairError:
    from huggingface_hub import errors

    name = f"{source.repo} at {source.revision}" if source.revision else str(source.repo)
    cause = " ".join(str(error).split())[:160]
    match error:
        case errors.GatedRepoError():
            return PairError(
                f"{name} is given only to those who accepted its terms",
                "accept them on its page, and set HF_TOKEN",
            )
        case errors.RevisionNotFoundError():
            return PairError(f"the hub has no {name}", "mend its revision in models.yaml")
        case errors.RepositoryNotFoundError():
            return PairError(f"the hub has no {name}, or it is private", "mend its name, or set HF_TOKEN")
        case errors.DryRunError(__cause__=Exception() as reason):
            return _in_words(source, reason)
        case errors.HfHubHTTPError():
            return PairError(f"{name} cannot be downloaded: {cause}", "run the same command again later")
        case OSError() if error.errno is not None and error.filename is not None:
            return PairError(f"{name} cannot be written: {cause}", "see to that, or set HF_HOME elsewhere")
    return _unreachable(name)


def _unreachable(name: str) -> PairError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return PairError(f"HF_HUB_OFFLINE keeps {name} from being downloaded", "unset it")
    return PairError(
        f"the hub, {constants.ENDPOINT}, cannot be reached for {name}",
        "see to the connection, or set HF_ENDPOINT to a mirror",
    )
