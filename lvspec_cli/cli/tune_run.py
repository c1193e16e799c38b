"""What ``lvspec tune`` does: the job that the flags describe, the search, and what is said about it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lvspec_cli.bench.measure import Progress
from lvspec_cli.bench.run import TUNING_CLIPS
from lvspec_cli.bench.tune import Tuned, TuneJob, tune
from lvspec_cli.bench.tune_report import (
    MARKDOWN,
    MARKS,
    MODELS,
    RULES,
    markdown,
    models_yaml,
    notes,
    rules_yaml,
)
from lvspec_cli.bench.variants import parse_gammas
from lvspec_cli.cli.bench_run import chosen_clips
from lvspec_cli.cli.reporting import say, write_out
from lvspec_cli.cli.requests import (
    checked_text,
    chosen_pair,
    decode_settings,
    loading_of,
    tell,
    video_request,
)
from lvspec_cli.errors import OutputError, UsageError
from lvspec_cli.events import Listener
from lvspec_cli.output.files import check_all_ours, replacing
from lvspec_cli.pairs.registry import Pair
from lvspec_cli.pipeline import load, memory_errors, pinned_request
from lvspec_cli.request import AskRequest
from lvspec_cli.types import Looseness, Mode, RelevanceName, RuleSettings
from lvspec_cli.ui.bench import tuned_text
from lvspec_cli.ui.progress import PlainProgress

TUNING_SEED = 2_000_003  # of clips that are drawn: no others than the bench's, whose results are reported


def tune_all(given: Mapping[str, Any]) -> int:
    """Runs the command and gives its exit code."""
    progress = None if given["quiet"] else PlainProgress(sys.stderr)
    name, pair, note = chosen_pair(given)
    try:
        job = read_job(given, name, pair, progress)
        tell(note, given)
        tuned = _run(job, progress)
    except KeyboardInterrupt:
        if progress:
            progress.close()
        say(f"what is measured stands in {given['out']}: the same command goes on from there")
        raise
    finally:
        if progress:
            progress.close()
    _write(job, tuned)
    write_out(tuned_text(tuned) + _lines(job, tuned))
    if not given["quiet"]:
        for note in notes(job, tuned):
            say(note)
        say(f"results: {job.out}")
    reported = tuned.results.items if tuned.results else ()
    return 1 if tuned.failed or any(item.error for item in reported) else 0


def read_job(given: Mapping[str, Any], name: str, pair: Pair, progress: PlainProgress | None) -> TuneJob:
    """Everything that can be wrong with the flags is found here; clips of the demo world are drawn.

    :raises UsageError: flags are wrong or exclude each other.
    :raises NoInputError: there is nothing to measure.
    :raises OutputError: files of others have the names of the results.
    """
    check_all_ours(given["out"], MARKS)
    least = given["min_fidelity"]
    if not 0 < least <= 100:
        raise UsageError(f"--min-fidelity {least:g} is out of range", "give per cent: above 0, 100 at most")
    relevances = tuple(dict.fromkeys(given["relevance"] or [pair.rules.balanced.relevance]))
    if RelevanceName.NONE in relevances:
        raise UsageError("--relevance none has nothing to tune: it is exact mode", "name another")
    settings = decode_settings({**given, **_SILENT}, pair)
    video = video_request({**given, "video": ""}, pair.defaults)
    try:
        given["out"].mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "name a folder that can be written"
        raise OutputError(f"{given['out']}: {error.strerror or error}", remedy) from error
    return TuneJob(
        request=AskRequest(
            video=video,
            questions=(),
            pair_name=name,
            pair=pair,
            settings=settings,
            system=None if given["system"] is None else checked_text(given["system"], "--system"),
            device=given["device"],
            dtype=given["dtype"],
            **loading_of(given),
            threads=given["threads"],
        ),
        relevances=relevances,
        gammas=parse_gammas(given["gamma"]),
        clips=chosen_clips({**given, "quick": False}, video, progress, drawn=TUNING_CLIPS, seed=TUNING_SEED),
        budget=given["budget"],
        least=least / 100,
        seed=given["seed"],
        out=given["out"],
        redo=given["redo"],
        processes=given["processes"],
        reported=given["report"],
        find_layers=given["layer"] is None,
        command=shlex.join(["lvspec", *sys.argv[1:]]),
    )


# The pair's own rule is where the search begins.
_SILENT: Mapping[str, Any] = {
    "mode": Mode.LVSPEC,
    "temperature": 0.0,
    "draft_keep": 1.0,
    "gamma": None,
    "fallback": False,
    "looseness": Looseness.BALANCED,
    **dict.fromkeys(RuleSettings.__dataclass_fields__),
}


def _run(job: TuneJob, progress: PlainProgress | None) -> Tuned:
    listen: Listener = progress.listen if progress else lambda event: None
    request = pinned_request(job.request, listen)
    loaded = load(request, listen)
    with memory_errors(request):
        return tune(
            loaded,
            replace(job, request=request),
            progress=_stages(progress),
            warn=_warn,
            found=lambda tuned: _write(job, tuned),
        )


def _stages(progress: PlainProgress | None) -> Callable[[str], Progress]:
    """A stage after the other, each begun when it is first told of."""

    def stage(label: str) -> Progress:
        begun = False

        def advance(done: int, total: int) -> None:
            nonlocal begun
            if progress is None:
                return
            if not begun:
                begun = True
                progress.close()
                progress.begin(label)
            progress.advance(label, done, total)

        return advance

    return stage


def _lines(job: TuneJob, tuned: Tuned) -> str:
    """The pair's entry of a models.yaml; empty where nothing was found."""
    best, request = tuned.best, job.request
    if best is None:
        return ""
    return models_yaml(request.pair_name, request.pair, best, tuned.costs[best.rule.rule.relevance])


def _write(job: TuneJob, tuned: Tuned) -> None:
    texts = {MARKDOWN: markdown(job, tuned)}
    if lines := _lines(job, tuned):
        texts |= {MODELS: lines, RULES: rules_yaml(tuned)}
    for name, text in texts.items():
        with replacing(Path(job.out) / name) as stream:
            stream.write(text.encode())


def _warn(message: str) -> None:
    say(f"warning: {message}")
