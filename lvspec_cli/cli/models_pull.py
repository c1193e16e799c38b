"""``lvspec models pull``: download a pair."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.reporting import reporting, say, write_out
from lvspec_cli.errors import UsageError
from lvspec_cli.escape import visible_line
from lvspec_cli.units import gigabytes

if TYPE_CHECKING:
    from lvspec_cli.pairs.hub import Missing
    from lvspec_cli.pairs.registry import Source

ASK_ABOVE = 10 * 10**9  # bytes


def pull(
    pair: Annotated[
        str, typer.Argument(metavar="PAIR", autocompletion=options.complete_pair, help="A pair's name.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, however large it is.")] = False,
    models_file: options.ModelsPath = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Download a pair into the hub's cache, safetensors only.

    A connection that breaks is taken up where it broke. After a stop run it again: whole files stay, one that
    was cut short begins anew.
    """
    with reporting(debug):
        from lvspec_cli.pairs.hub import check_room, missing_of
        from lvspec_cli.pairs.registry import load_registry
        from lvspec_cli.ui.progress import byte_counter

        name, chosen = load_registry(models_file).pair(pair)
        sources = {source.name: source for source in (chosen.target, chosen.draft)}.values()
        for source in sources:
            if source.repo is None:
                _folder(source)  # nothing to download; an error where it is not there
        missing = [missing_of(source, byte_counter) for source in sources if _is_to_be_had(source)]
        if not quiet:
            for each in (each for each in missing if each.files):
                say(_told(each))
            if not any(each.files for each in missing):
                say(f"{name}: all of it is here")
            if chosen.licence:
                say(f"licence: {chosen.licence}")
        check_room(missing)
        _agree(name, sum(each.size for each in missing), yes)
        for each in missing:
            _fetch(each, quiet)
        write_out("".join(f"{visible_line(folder)}\n" for folder in map(_folder, sources)))


def _is_to_be_had(source: Source) -> bool:
    """A commit that is wholly here cannot change; of a branch there may be a newer one."""
    from lvspec_cli.pairs.files import locate

    return source.repo is not None and (source.revision is None or locate(source).folder is None)


def _folder(source: Source) -> str:
    from lvspec_cli.pairs.files import require

    return str(require(source))


def _told(missing: Missing) -> str:
    revision = "" if missing.source.revision else " of main, no commit is pinned"
    files, size = f"{len(missing.files)} files{revision}", gigabytes(missing.size)
    return f"{missing.source.name}: {files}, {size} to download"


def _agree(name: str, size: int, yes: bool) -> None:
    """Nothing large comes unasked.

    :raises UsageError: nobody can be asked, or the answer is no.
    """
    if yes or size <= ASK_ABOVE:
        return
    what = f"{name} is {gigabytes(size)} to download"
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stderr.isatty():
        raise UsageError(what, "say --yes, as there is no terminal to ask on")
    sys.stderr.write(f"{what}. Go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError(f"{name} was not downloaded", "a smaller pair: lvspec models list")


def _fetch(missing: Missing, quiet: bool) -> None:
    from lvspec_cli.pairs.hub import fetch
    from lvspec_cli.ui.progress import PlainProgress, byte_counter

    if not missing.files:
        return
    label = missing.source.name
    progress = PlainProgress(sys.stderr)
    if not quiet:
        progress.begin(label)
    try:
        fetch(missing, byte_counter, lambda done, total: progress.advance(label, done, total, "B"))
    finally:
        progress.close()
