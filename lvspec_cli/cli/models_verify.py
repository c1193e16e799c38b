"""``lvspec models verify``: whether a pair is whole, consistent, and decodes as it should."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.reporting import reporting, say, write_out
from lvspec_cli.cores import quieten_libraries
from lvspec_cli.errors import LvspecError, PairError
from lvspec_cli.escape import visible_line
from lvspec_cli.units import counted

if TYPE_CHECKING:
    from lvspec_cli.checks.verify import Check, Half, Told
    from lvspec_cli.pairs.registry import Pair

TOKENS = 48  # of the self-test's answer
FRAMES = 8


def verify(
    pair: Annotated[
        str, typer.Argument(metavar="PAIR", autocompletion=options.complete_pair, help="A pair's name.")
    ],
    self_test: Annotated[
        bool, typer.Option("--self-test/--no-self-test", help="Load the pair and compare exact mode with ar.")
    ] = True,
    models_file: options.ModelsPath = None,
    device: options.Device = "auto",
    dtype: options.DataType = "auto",
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Check a pair: its files' hashes, tokenizers, chat templates and configs, and that exact equals ar."""
    with reporting(debug):
        quieten_libraries()
        from lvspec_cli.pairs.registry import load_registry

        name, chosen = load_registry(models_file).pair(pair)
        failed = 0
        for check in _checks(name, chosen, self_test, device, dtype, quiet):
            write_out(f"{check.state}\t{check.what}\t{visible_line(check.detail)}\n")
            failed += check.state == "failed"
        if failed:
            raise PairError(
                f"{name}: {counted(failed, 'check')} {'has' if failed == 1 else 'have'} failed",
                "see above; `lvspec models pull` mends files, another draft the rest",
            )


def _checks(name: str, pair: Pair, self_test: bool, device: str, dtype: str, quiet: bool) -> Iterator[Check]:
    from lvspec_cli.pairs.files import require

    folders = require(pair.target, name), require(pair.draft, name)
    from lvspec_cli.checks.verify import Check, Half, check_configs, check_texts, guarded

    target = Half("target", pair.target, folders[0])
    draft = Half("draft", pair.draft, folders[1])
    for half in (target, draft):
        yield from guarded(f"{half.role}: files", partial(_files, half, quiet))
    found = guarded("tokenizers", partial(check_texts, target, draft))
    found += guarded("configs", partial(check_configs, target, draft))
    yield from found
    if not self_test:
        yield Check("self-test", "not checked", "left out by --no-self-test")
    elif any(check.state == "failed" for check in found):
        yield Check("self-test", "not checked", "the pair has to be right first")
    else:
        yield from guarded("self-test", partial(_self_test, name, pair, device, dtype))


def _files(half: Half, quiet: bool) -> Iterator[Check]:
    from lvspec_cli.checks.verify import check_files
    from lvspec_cli.pairs.hub import hashes_of

    known: dict[str, str] = {}
    if half.source.repo:
        try:
            known = hashes_of(half.source, half.folder.name)
        except LvspecError as error:
            if not quiet:
                say(f"{error.cause}; the cache's own hashes are taken")
    yield check_files(half, known, _telling(quiet))


def _telling(quiet: bool) -> Told:
    """Shows which file is being read, where that takes a while."""
    if quiet or not sys.stderr.isatty():
        return lambda name, done, total: None
    from lvspec_cli.ui.progress import PlainProgress

    progress, label = PlainProgress(sys.stderr), ""

    def told(name: str, done: int, total: int) -> None:
        nonlocal label
        if label != name:
            progress.begin(name)
            label = name
        progress.advance(name, done, total, "B")
        if done >= total:
            progress.close()
            label = ""

    return told


def _self_test(name: str, pair: Pair, device: str, dtype: str) -> Iterator[Check]:
    """One answer about a clip that the package brings, by the target alone and in exact mode."""
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
    asked = AskRequest(video, (DEFAULT_PROMPT,), settings)
    plan, request = prepared(PairChoice(name, pair, device=device, dtype=dtype), asked)
    loaded = load(plan, workload_of(request))
    yield check_answers(loaded, build_prompts(loaded, read_clip(video), DEFAULT_PROMPT), settings)
