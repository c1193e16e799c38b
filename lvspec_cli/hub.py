"""What is asked of the model hub: what there is to download, and the download, which can be gone on with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvspec_cli.errors import PairError
from lvspec_cli.registry import Source
from lvspec_cli.storage import LEFT, TAKEN

Progress = Callable[[int, int], None]  # bytes done, of how many


@dataclass(frozen=True)
class Missing:
    """What of a repository is still to be downloaded."""

    source: Source
    files: tuple[str, ...]
    size: int  # bytes


def missing_of(source: Source) -> Missing:
    """Asks the hub what a repository holds, and the cache what of it is here.

    :raises PairError: the hub cannot be reached, or does not give it; or it holds no safetensors.
    """
    from huggingface_hub import snapshot_download

    with _explained(source):
        found = snapshot_download(**_asked(source), dry_run=True)
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
    while not folder.is_dir():
        folder = folder.parent
    wanted, free = sum(each.size for each in missing), shutil.disk_usage(folder).free
    if wanted > free:
        raise PairError(
            f"{wanted / 1e9:.1f} GB are to be downloaded, and {folder} has {free / 1e9:.1f} GB free",
            "make room, or set HF_HOME to a folder on another disk",
        )


def fetch(missing: Missing, bar: Callable[[Progress], type[Any]], progress: Progress) -> Path:
    """Downloads what is missing into the hub's cache, going on in files that were begun.

    ``bar`` makes of a function that is told bytes a class that the hub's client takes for its progress bar.

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
    from huggingface_hub import errors

    name = f"{source.repo} at {source.revision}" if source.revision else str(source.repo)
    try:
        yield
    except errors.GatedRepoError as error:
        raise PairError(
            f"{name} is given only to those who accepted its terms",
            "accept them on its page, and set HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise PairError(f"the hub has no {name}", "mend its revision in models.yaml") from error
    except errors.RepositoryNotFoundError as error:
        raise PairError(
            f"the hub has no {name}, or it is private", "mend its name, or set HF_TOKEN"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.DryRunError) as error:
        raise _unreachable(name) from error
    except errors.HfHubHTTPError as error:
        cause = " ".join(str(error).split())[:160]
        raise PairError(
            f"{name} cannot be downloaded: {cause}", "run the same command later: it goes on"
        ) from error
    except OSError as error:
        cause = " ".join(str(error).split())[:160]
        raise PairError(
            f"{name} cannot be downloaded: {cause}", "see to that, and run the same command again: it goes on"
        ) from error
    except Exception as error:
        # The client's HTTP library is its own affair, and differs between releases.
        if "http" not in type(error).__module__:
            raise
        raise _unreachable(name) from error


def _unreachable(name: str) -> PairError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return PairError(f"HF_HUB_OFFLINE keeps {name} from being downloaded", "unset it")
    return PairError(
        f"the hub, {constants.ENDPOINT}, cannot be reached for {name}",
        "see to the connection, or set HF_ENDPOINT to a mirror; what was begun goes on",
    )
