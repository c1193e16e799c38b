"""``lvspec models``: the pairs that can be chosen, and what can be done with one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.groups import App
from lvspec_cli.cli.reporting import reporting, say, write_line, write_out
from lvspec_cli.errors import LvspecError, PairError, UsageError
from lvspec_cli.escape import visible_line
from lvspec_cli.host import message_stream, quieten_libraries
from lvspec_cli.table import counted, gigabytes

if TYPE_CHECKING:
    from lvspec_cli.checks.verify import Check, LocalModel
    from lvspec_cli.pairs.hub import Missing
    from lvspec_cli.pairs.registry import Pair, Registry, Source
ASK_ABOVE = 10 * 10**9  # bytes
TOKENS = 48  # of the self-test's answer
FRAMES = 8

app = App()
PairArgument = Annotated[
    str, typer.Argument(metavar="PAIR", autocompletion=options.complete_pair, help="A pair's name.")
]


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context, models_file: options.ModelsPath = None, debug: options.Debug = False
) -> None:
    """List, download and check pairs of models. Alone it lists them.

    lvspec models fit
    lvspec models pull qwen3.5-9b-0.8b
    """
    if context.invoked_subcommand is None:
        _list(models_file, debug)


@app.command("list")
def list_pairs(models_file: options.ModelsPath = None, debug: options.Debug = False) -> None:
    """List the pairs. With sizes, licences, and whether they are downloaded.

    lvspec models list
    lvspec models list --models my-models.yaml
    """
    _list(models_file, debug)


@app.command()
def show(pair: PairArgument, models_file: options.ModelsPath = None, debug: options.Debug = False) -> None:
    """Show one pair. Where its models are, licence, memory, defaults and rule.

    lvspec models show demo
    lvspec models show qwen3.5-9b-0.8b
    """
    with reporting(debug):
        from lvspec_cli.pairs.files import locate, locate_draft, locate_mtp
        from lvspec_cli.pairs.registry import calibration_of, load_registry
        from lvspec_cli.ui.pairs import pair_facts

        name, chosen = load_registry(models_file).pair(pair)
        models = locate(chosen.target), locate_draft(chosen)
        measured = calibration_of(name, chosen)
        write_out(pair_facts(name, chosen, *models, locate_mtp(chosen.target), measured))


def _list(models_file: Path | None, debug: bool) -> None:
    with reporting(debug):
        from lvspec_cli.memory.choose import stored_pairs
        from lvspec_cli.pairs.registry import load_registry
        from lvspec_cli.ui.tables import for_stdout, pair_table

        registry = load_registry(models_file)
        write_out(for_stdout(pair_table(stored_pairs(registry.pairs), registry.default)))


@app.command()
def pull(
    pair: Annotated[
        str,
        typer.Argument(
            metavar="PAIR",
            autocompletion=options.complete_pair,
            help="A pair's name; auto is the best one that fits this machine.",
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, however large it is.")] = False,
    draft: options.Draft = "pair",
    models_file: options.ModelsPath = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Download a pair into the hub's cache. Safetensors only; with --draft mtp the target alone.

    lvspec models pull auto
    lvspec models pull qwen3.5-9b-0.8b --yes

    A connection that breaks is taken up where it broke. After a stop run it again: whole files stay, one that
    was cut short starts again.
    """
    with reporting(debug):
        from lvspec_cli.pairs.hub import check_room
        from lvspec_cli.pairs.registry import AUTO, MTP, load_registry

        registry = load_registry(models_file)
        name, chosen = registry.pair(_best_here(registry, draft) if pair == AUTO else pair)
        chosen = chosen.with_mtp() if draft == MTP else chosen
        sources = {source.name: source for source in (chosen.target, chosen.draft) if not source.mtp}.values()
        for source in sources:
            if source.repo is None:
                _folder(source)  # cannot be downloaded: an error if it is missing
        asked = [_missing(source) for source in sources if _needs_hub(source)]
        missing = [model for model in asked if model is not None]
        if not quiet:
            incomplete = [model for model in missing if model.files]
            for model in incomplete:
                pinned = "" if model.source.revision else " of main, no commit is pinned"
                files = f"{counted(len(model.files), 'file')}{pinned}"
                say(f"{model.source.name}: {files}, {gigabytes(model.size)} to download")
            if not incomplete:
                say(f"{name}: all of it is here")
            if chosen.licence:
                say(f"licence: {chosen.licence}")
        check_room(missing)
        _confirm(name, sum(model.size for model in missing), yes, 0 if pair == AUTO else ASK_ABOVE)
        for model in missing:
            _fetch(model, quiet)
        write_out("".join(f"{visible_line(folder)}\n" for folder in map(_folder, sources)))


def _best_here(registry: Registry, draft: str) -> str:
    """The first pair of the registry that fits this machine and gains, wherever its files are.

    :raises UsageError: the draft is a prediction layer: pairs that have none cannot be compared.
    :raises PairError: none fits.
    """
    from lvspec_cli.memory.machine import this_machine
    from lvspec_cli.memory.resolve import first_that_fits
    from lvspec_cli.pairs.registry import MTP
    from lvspec_cli.ui.pairs import first_choice, machine_line

    if draft == MTP:
        raise UsageError(
            "--draft mtp goes with a pair's name, not with auto", "lvspec models fit --draft mtp"
        )
    machine = this_machine("auto")
    fit = first_that_fits(registry.pairs, machine)
    say(machine_line(machine))
    if fit is None:
        raise PairError(first_choice([]), "lvspec models fit shows by how much")
    say(first_choice([fit]))
    return fit.name


def _needs_hub(source: Source) -> bool:
    """Whether to look on the hub: a complete pinned commit cannot change, but a branch may be newer."""
    from lvspec_cli.pairs.files import locate

    return source.repo is not None and (source.revision is None or locate(source).folder is None)


def _missing(source: Source) -> Missing | None:
    """What the hub has and the cache lacks; None if the hub is out of reach, and the files here are whole."""
    from lvspec_cli.pairs.files import locate
    from lvspec_cli.pairs.hub import HubUnreachableError, missing_of
    from lvspec_cli.ui.progress import byte_counter

    try:
        return missing_of(source, byte_counter)
    except HubUnreachableError as error:
        if locate(source).folder is None:
            raise
        say(f"{error.cause}; the files that are here are taken")
        return None


def _folder(source: Source) -> str:
    from lvspec_cli.pairs.files import require

    return str(require(source))


def _confirm(name: str, size: int, yes: bool, above: int) -> None:
    """Asks before a download of more than ``above`` bytes.

    :raises UsageError: there is no terminal to ask on, or the answer is no.
    """
    if yes or size <= above:
        return
    what = f"{name} is {gigabytes(size)} to download"
    if sys.stdin is None or not sys.stdin.isatty() or not message_stream().isatty():
        raise UsageError(what, "say --yes, as there is no terminal to ask on")
    message_stream().write(f"{what}. Go on? [y/N] ")
    message_stream().flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError(f"{name} was not downloaded", "a smaller pair: lvspec models list")


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the pair.")],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="A repository of the hub, owner/name, or a folder that begins with / or ."
        ),
    ],
    draft: Annotated[
        str, typer.Argument(metavar="DRAFT", help="The same; or mtp, for the target's own prediction layer.")
    ],
    models_file: options.ModelsPath = None,
    debug: options.Debug = False,
) -> None:
    """Add a pair of your own. Everything else in your models.yaml stays as it is.

    lvspec models add mine Qwen/Qwen2.5-VL-7B-Instruct ./my-draft
    lvspec models add big Qwen/Qwen3.5-27B mtp
    """
    with reporting(debug):
        from lvspec_cli.output.files import make_folder, replacing
        from lvspec_cli.pairs.registry import FOLDER, load_registry, user_models, with_pair

        for source in (target, draft):
            try:
                is_missing = source.startswith(FOLDER) and not Path(source).expanduser().is_dir()
            except RuntimeError:  # the home folder of a user that the system does not know
                is_missing = True
            if is_missing:
                raise PairError(f"there is no folder {source}", "name one, or a repository: owner/name")
        file = models_file or user_models(os.environ)
        if file is None:
            raise UsageError("there is no home folder for models.yaml", "name a file with --models")
        try:
            text = file.read_text(encoding="utf-8") if file.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}: {error}", "name another file with --models") from error
        text = with_pair(text, name, target, draft, file)
        make_folder(file.parent)
        with replacing(file) as stream:
            stream.write(text.encode())
        load_registry(file)
        say(f"{file}: {name} is added, and auto takes it first if it fits")
        say(f"next: lvspec models pull {name}, then lvspec models verify {name}")


def _fetch(missing: Missing, quiet: bool) -> None:
    from lvspec_cli.pairs.hub import fetch
    from lvspec_cli.ui.progress import PlainProgress, byte_counter

    if missing.files:
        with PlainProgress(None if quiet else message_stream()).counting(missing.source.name, "B") as advance:
            fetch(missing, byte_counter, advance)


@app.command()
def fit(
    pair: Annotated[
        str | None,
        typer.Argument(metavar="[PAIR]", autocompletion=options.complete_pair, help="One pair, in detail."),
    ] = None,
    frames: options.FrameCap = None,
    max_pixels: options.MaxPixels = None,
    draft: options.Draft = "pair",
    device: options.Device = "auto",
    models_file: options.ModelsPath = None,
    debug: options.Debug = False,
) -> None:
    """Show which pairs fit this machine. What they need of memory, and where they would go; no weights are
    loaded.

    lvspec models fit
    lvspec models fit qwen3.5-9b-0.8b --frames 64
    """
    with reporting(debug):
        quieten_libraries()
        from lvspec_cli.memory.resolve import check_device
        from lvspec_cli.pairs.registry import MTP, load_registry

        check_device(device)
        registry = load_registry(models_file)
        registry = registry.with_mtp() if draft == MTP else registry
        chosen = dict([registry.pair(pair)]) if pair else registry.pairs
        from lvspec_cli.memory.machine import this_machine
        from lvspec_cli.memory.resolve import fit_pair, nf4_rows, workload_of_pair
        from lvspec_cli.ui.pairs import context_note, first_choice, fit_details, fit_table, machine_line
        from lvspec_cli.ui.tables import for_stdout

        machine = this_machine(device)
        limit = nf4_rows(machine)
        fits = []
        for name, candidate in chosen.items():
            try:
                load = workload_of_pair(candidate, frames, max_pixels)
                fits.append(fit_pair(name, candidate, machine, load, limit))
            except PairError as error:
                if pair:
                    raise
                say(f"{name}: {error.cause}")
        for note in filter(None, map(context_note, fits)):
            say(note)
        say(machine_line(machine))
        if pair:
            write_out(fit_details(fits[0], machine))
        else:
            say(first_choice(fits))
            write_out(for_stdout(fit_table(fits)))


@app.command()
def verify(
    pair: PairArgument,
    self_test: Annotated[
        bool, typer.Option("--self-test/--no-self-test", help="Load the pair and compare exact mode with ar.")
    ] = True,
    models_file: options.ModelsPath = None,
    draft: options.Draft = "pair",
    device: options.Device = "auto",
    dtype: options.DataType = "auto",
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Check a pair. Its files' hashes, tokenizers, chat templates and configs, and that exact equals ar.

    lvspec models verify demo
    lvspec models verify qwen3.5-9b-0.8b --no-self-test
    """
    with reporting(debug):
        quieten_libraries()
        from lvspec_cli.memory.resolve import check_device
        from lvspec_cli.pairs.registry import MTP, load_registry

        name, chosen = load_registry(models_file).pair(pair)
        check_device(device)
        chosen = chosen.with_mtp() if draft == MTP else chosen
        failed = 0
        for check in _checks(name, chosen, self_test, device, dtype, quiet):
            if sys.stdout.isatty():
                write_line(f"{check.state}  {check.what}: {check.detail}", "    ")
            else:
                write_out(f"{check.state}\t{check.what}\t{visible_line(check.detail)}\n")
            failed += check.state == "failed"
        if failed:
            raise PairError(
                f"{name}: {counted(failed, 'check')} {'has' if failed == 1 else 'have'} failed",
                "see above; `lvspec models pull` repairs files, another draft the rest",
            )


def _checks(name: str, pair: Pair, self_test: bool, device: str, dtype: str, quiet: bool) -> Iterator[Check]:
    from lvspec_cli.pairs.files import require

    sources = (
        [("target", pair.target)] if pair.draft.mtp else [("target", pair.target), ("draft", pair.draft)]
    )
    folders = [require(source, name) for _, source in sources]
    from lvspec_cli.checks.verify import Check, LocalModel, check_configs, check_mtp, check_texts, guarded

    models = [LocalModel(*named, folder) for named, folder in zip(sources, folders, strict=True)]
    for model, known in zip(models, _known_hashes(models, quiet), strict=True):
        yield from guarded(f"{model.role}: files", partial(_files, model, known, quiet))
    if pair.draft.mtp:
        checks = guarded("prediction layer", partial(check_mtp, *models))
    else:
        checks = guarded("tokenizers", partial(check_texts, *models))
        checks += guarded("configs", partial(check_configs, *models))
    yield from checks
    if not self_test:
        yield Check("self-test", "not checked", "left out by --no-self-test")
    elif any(check.state == "failed" for check in checks):
        yield Check("self-test", "not checked", "the pair has to be right first")
    else:
        yield from guarded("self-test", partial(_self_test, name, pair, device, dtype))


def _known_hashes(models: Sequence[LocalModel], quiet: bool) -> Iterator[dict[str, str]]:
    """The hub's hashes of each model's files; none where it cannot be asked, which is said once."""
    from lvspec_cli.pairs.hub import HubUnreachableError, check_reachable, hashes_of

    answers: bool | None = None
    for model in models:
        known: dict[str, str] = {}
        try:
            if model.source.repo and answers is not False:
                if answers is None:
                    check_reachable()
                answers = True
                known = hashes_of(model.source, model.folder.name)
        except LvspecError as error:
            answers = not isinstance(error, HubUnreachableError)
            if not quiet:
                say(f"{error.cause}; the cache's own hashes are taken")
        yield known


def _files(model: LocalModel, known: dict[str, str], quiet: bool) -> Iterator[Check]:
    from lvspec_cli.checks.verify import check_files
    from lvspec_cli.ui.progress import PlainProgress

    progress = PlainProgress(None if quiet or not message_stream().isatty() else message_stream())
    stage = cache(partial(progress.staged, unit="B"))  # of each file
    yield check_files(model, known, lambda name, done, total: stage(name)(done, total))
    progress.close()


def _self_test(name: str, pair: Pair, device: str, dtype: str) -> Iterator[Check]:
    """Compares one answer about a bundled clip in mode ar and in mode exact."""
    from lvspec_cli.checks.verify import check_answers
    from lvspec_cli.memory.resolve import workload_of
    from lvspec_cli.models.prompt import build_prompts
    from lvspec_cli.pairs.registry import PACKAGE, settings_of_pair
    from lvspec_cli.pipeline import load, prepared
    from lvspec_cli.request import AskRequest, PairChoice
    from lvspec_cli.types import DEFAULT_PROMPT, VideoRequest
    from lvspec_cli.video.decode import read_clip

    clip = PACKAGE / "demo/clips/clip_0001.mp4"
    settings = replace(settings_of_pair(pair), max_new_tokens=TOKENS, fallback=False)
    video = VideoRequest(clip, max_frames=FRAMES, max_pixels=pair.defaults.max_pixels)
    request = AskRequest(video, (DEFAULT_PROMPT,), settings)
    plan, request = prepared(PairChoice(name, pair, device=device, dtype=dtype), request)
    loaded = load(plan, workload_of(request))
    yield check_answers(loaded, build_prompts(loaded, read_clip(video), DEFAULT_PROMPT), settings)
