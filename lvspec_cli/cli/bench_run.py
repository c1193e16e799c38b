"""What ``lvspec bench`` does: the job that the flags describe, the run, and what is said about it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lvspec_cli.bench.items import BenchClip, clips_of, clips_of_questions
from lvspec_cli.bench.lines import notes
from lvspec_cli.bench.measure import Plan
from lvspec_cli.bench.results import Results
from lvspec_cli.bench.run import BENCH_CLIPS, MARKS, QUICK_CLIPS, BenchJob, demo_clips, run_bench
from lvspec_cli.bench.variants import (
    ALL_MODES,
    NamedRule,
    ablations,
    controls,
    parse_gammas,
    parse_modes,
    read_rules,
    rules_of,
    variants_of,
)
from lvspec_cli.cli.reporting import say, write_out
from lvspec_cli.cli.requests import (
    checked_text,
    chosen_pair,
    decode_settings,
    loading_of,
    tell,
    video_request,
)
from lvspec_cli.cli.signals import Stop
from lvspec_cli.demo.write import HELD_OUT_SEED
from lvspec_cli.errors import UsageError
from lvspec_cli.output.files import check_all_ours
from lvspec_cli.request import AskRequest
from lvspec_cli.types import DecodeSettings, Mode, RuleSettings, VideoRequest
from lvspec_cli.ui.bench import results_text
from lvspec_cli.ui.progress import PlainProgress

QUESTIONS, QUICK_QUESTIONS = 2, 1  # about each clip that has some
QUICK_TOKENS = 64

MEASURING = "measuring"


def bench_all(given: Mapping[str, Any], stop: Stop) -> int:
    """Runs the command and gives its exit code."""
    progress = None if given["quiet"] else PlainProgress(sys.stderr)
    try:
        job = read_job(given, progress)
        results = _run(job, progress)
    except KeyboardInterrupt:
        if progress:
            progress.close()
        say(f"what is measured stands in {given['out']}: the same command goes on from there")
        raise
    finally:
        if progress:
            progress.close()
    write_out(results_text(results))
    if not given["quiet"]:
        for note in notes(results):
            say(note)
        say(f"results: {job.out}")
    return 1 if any(item.error for item in results.items) else 0


def read_job(given: Mapping[str, Any], progress: PlainProgress | None) -> BenchJob:
    """Everything that can be wrong with the flags is found here; clips of the demo world are drawn.

    :raises UsageError: flags are wrong or exclude each other.
    :raises NoInputError: there is nothing to measure.
    :raises OutputError: files of others have the names of the results.
    """
    check_all_ours(given["out"], MARKS)
    name, pair, note = chosen_pair(given)
    if given["processes"] > 1 and not given["texts_only"]:
        raise UsageError("--processes would spoil what is timed", "add --texts-only, or leave it out")
    if given["questions"] is not None and (given["clips"] or given["prompt"]):
        raise UsageError("--questions names its own clips and questions", "leave out CLIPS and --prompt")
    settings = decode_settings({**given, "mode": Mode.LVSPEC, "temperature": 0.0, "gamma": None}, pair)
    if given["quick"]:
        settings = replace(settings, max_new_tokens=_quick_tokens(given, settings))
    named = _named_rules(given, settings.rule)
    others = controls(settings.rule) if given["controls"] else ()
    modes = tuple(dict.fromkeys((*parse_modes(given["modes"] or ",".join(ALL_MODES)), *others)))
    modes += tuple(each.variant for each in named)
    gammas = parse_gammas(given["gamma"]) if given["gamma"] else (settings.gamma,)
    system = None if given["system"] is None else checked_text(given["system"], "--system")
    request = AskRequest(
        video=video_request({**given, "video": ""}, pair.defaults),
        questions=(),
        pair_name=name,
        pair=pair,
        settings=settings,
        system=system,
        device=given["device"],
        dtype=given["dtype"],
        **loading_of(given),
        threads=given["threads"],
    )
    tell(note, given)
    return BenchJob(
        request=request,
        clips=chosen_clips(given, request.video, progress),
        modes=modes,
        gammas=gammas,
        plan=Plan(
            variants=variants_of(modes, gammas),
            settings=settings,
            draft_keep=given["draft_keep"],
            repeat=given["repeat"],
            system=system,
            rules=rules_of(named),
            timed=not given["texts_only"],
        ),
        out=given["out"],
        redo=given["redo"],
        processes=given["processes"],
        command=shlex.join(["lvspec", *sys.argv[1:]]),
    )


def _named_rules(given: Mapping[str, Any], rule: RuleSettings) -> tuple[NamedRule, ...]:
    """The rules that ``--variants`` and ``--ablate`` add."""
    own = read_rules(given["variants"], rule) if given["variants"] is not None else ()
    return (*own, *(ablations(rule) if given["ablate"] else ()))


def _quick_tokens(given: Mapping[str, Any], settings: DecodeSettings) -> int:
    return settings.max_new_tokens if given["max_new_tokens"] else min(QUICK_TOKENS, settings.max_new_tokens)


def chosen_clips(
    given: Mapping[str, Any],
    video: VideoRequest,
    progress: PlainProgress | None,
    *,
    drawn: int = BENCH_CLIPS,
    seed: int = HELD_OUT_SEED,
) -> tuple[BenchClip, ...]:
    """What the flags name; without any, ``drawn`` clips of the demo world are drawn.

    :raises LvspecError: there is nothing to measure, or what is named is wrong.
    """
    limit = given["limit"] or (QUICK_CLIPS if given["quick"] else None)
    if given["questions"] is not None:
        return clips_of_questions(given["questions"], video, limit=limit)
    asked = given["questions_per_clip"]
    if asked is None:
        asked = 0 if given["prompt"] else QUICK_QUESTIONS if given["quick"] else QUESTIONS
    sources = [Path(text) for text in given["clips"] or ()]
    if not sources:
        sources = _drawn(given["out"] / "clips", limit or drawn, progress, seed)
    prompts = [checked_text(text, "--prompt") for text in given["prompt"] or ()]
    return clips_of(sources, video, prompts=prompts, questions=asked, limit=limit)


def _drawn(folder: Path, count: int, progress: PlainProgress | None, seed: int) -> list[Path]:
    if progress is None:
        return demo_clips(folder, count, seed=seed)
    label = "drawing clips"
    progress.begin(label)
    try:
        return demo_clips(folder, count, lambda done, total: progress.advance(label, done, total), seed=seed)
    finally:
        progress.close()


def _run(job: BenchJob, progress: PlainProgress | None) -> Results:
    if progress is None:
        return run_bench(job, warn=_warn)
    begun = False

    def advance(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            begun = True
            progress.begin(MEASURING)
        progress.advance(MEASURING, done, total)

    return run_bench(job, listen=progress.listen, progress=advance, warn=_warn)


def _warn(message: str) -> None:
    say(f"warning: {message}")
