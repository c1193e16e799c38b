"""All that ``lvspec caption`` is asked for, checked before anything slow begins, and laid out as works."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from lvspec_cli.batch.cutting import check_lengths
from lvspec_cli.batch.history import PastRun
from lvspec_cli.batch.inputs import collect
from lvspec_cli.batch.layout import Cutting, check_file, check_template, lay_out, request_for
from lvspec_cli.batch.lists import read_paths
from lvspec_cli.batch.names import Collected, Input
from lvspec_cli.batch.serve import WorkerPlan
from lvspec_cli.batch.work import Again, Outstanding, Work, make_work, parse_shard
from lvspec_cli.cli.reporting import say_note
from lvspec_cli.cli.requests import chosen_pair, decode_settings, loading_of, video_request
from lvspec_cli.cores import usable_cores
from lvspec_cli.errors import NoInputError, UsageError
from lvspec_cli.figures.audit import parse_share
from lvspec_cli.output.files import sweep
from lvspec_cli.pipeline import check_prompts, pinned_request
from lvspec_cli.request import AskRequest
from lvspec_cli.text_file import LISTS, read_file, read_stream
from lvspec_cli.types import Gate, Mode
from lvspec_cli.user_folders import state_folder

DEFAULT_PROMPT = "Describe this video in detail."


@dataclass(frozen=True)
class Job:
    """All that the command line asks for, checked."""

    base: AskRequest
    collected: Collected
    cutting: Cutting
    again: Again
    plans: tuple[WorkerPlan, ...]
    gates: frozenset[Gate]
    out: Path | None  # None for stdout


def read_job(given: Mapping[str, Any]) -> Job:
    """Everything that can be wrong is found here, before anything slow begins.

    :raises UsageError: flags are wrong or exclude each other.
    :raises NoInputError: there is nothing to caption.
    """
    name, pair, note = chosen_pair(given)
    _check_together(given)
    devices, prompts = _devices(given), _prompts(given)
    base = pinned_request(
        AskRequest(
            video=video_request({**given, "video": ""}, pair.defaults),
            questions=tuple(prompts),
            pair_name=name,
            pair=pair,
            pair_note=note,
            settings=decode_settings(given, pair),
            system=given["system"],
            device=devices[0],
            side_by_side=_side_by_side(given, devices[0]),
            dtype=given["dtype"],
            **loading_of(given),
            threads=given["threads"],
            task="caption",
            audit=_audit(given),
        ),
        listen=lambda event: None if given["quiet"] else say_note(event),
    )
    collected = _collected(given)
    check_prompts(base, prompts | _origins(collected))
    return Job(
        base=base,
        collected=collected,
        cutting=Cutting(given["segment"], given["overlap"], given["scenes"]),
        again=Again.ALL if given["redo"] else Again.ERRORS if given["retry_errors"] else Again.NOTHING,
        plans=_plans(given, base),
        gates=_gates(given["fail_on"] or ()),
        out=None if given["out"] == "-" else Path(given["out"]),
    )


def _check_together(given: Mapping[str, Any]) -> None:
    if given["segment"] is not None and given["scenes"]:
        raise UsageError("--segment and --scenes exclude each other", "choose one")
    if given["segment"] is not None:
        check_lengths(given["segment"], given["overlap"])
    elif given["overlap"]:
        raise UsageError("--overlap goes with --segment only", "add --segment, or leave it out")
    if given["redo"] and given["retry_errors"]:
        raise UsageError("--redo and --retry-errors exclude each other", "--redo does all of it again")
    if not all(map(str.strip, (given["devices"] or "cpu").split(","))):
        raise UsageError(f"--devices {given['devices']!r} has an empty place", "write cuda:0,cuda:1")
    if given["devices"] and (given["workers"] > 1 or given["device"] != "auto"):
        raise UsageError("--devices excludes --device and --workers", "name each device in --devices")
    if given["out"] in ("/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"):
        raise UsageError(f"--out {given['out']}: messages go there", "send the records to stdout: --out -")
    if given["out"] == "-" and (given["to"] or given["retry_errors"] or given["redo"]):
        raise UsageError("--out - leaves no file to go on from or to export", "name a file with --out")


def _prompts(given: Mapping[str, Any]) -> dict[str, str]:
    """The texts, each once, and where they come from."""
    from lvspec_cli.cli.requests import checked_text, read_text

    texts = {checked_text(text, "--prompt"): "--prompt" for text in given["prompt"] or ()}
    for text in texts:
        check_template(text, "--prompt")
    if given["prompt_file"] is not None:
        file, text = str(given["prompt_file"]), read_text(given["prompt_file"])
        texts.setdefault(checked_text(text, file), file)
        check_file(text, file)
    if given["system"] is not None:
        checked_text(given["system"], "--system")
    return texts or {DEFAULT_PROMPT: "the prompt"}


def _audit(given: Mapping[str, Any]) -> float:
    if given["audit"] is None:
        return 0.0
    share = parse_share(given["audit"])
    if given["mode"] is Mode.AR:
        raise UsageError("--audit compares with mode ar, and --mode ar is that", "leave out one of them")
    if given["temperature"] > 0:
        raise UsageError("--audit compares greedy answers", "leave out --audit or --temperature")
    return share


def _gates(texts: Sequence[str]) -> frozenset[Gate]:
    words = [word.strip() for text in texts for word in text.split(",")]
    unknown = next((word for word in words if word not in list(Gate)), None)
    if unknown is not None:
        raise UsageError(f"--fail-on does not know {unknown!r}", f"choose among {', '.join(Gate)}")
    return frozenset(map(Gate, words))


def _collected(given: Mapping[str, Any]) -> Collected:
    if "" in (given["paths"] or ()):
        raise NoInputError("a video's name is empty", "name files or folders; . is this folder")
    sources = [Path(text) for text in given["paths"] or () if text != "-"]
    lists = [given["from_list"]] if given["from_list"] else []
    lists += [Path("-")] * (given["paths"] or []).count("-")
    for name in lists:
        said = "stdin" if name == Path("-") else str(name)
        sources += read_paths(_bytes_of(name), said, nul=given["null"])
    if not sources:
        raise NoInputError("no video was named", "name files or folders: lvspec caption ./clips")
    collected = collect(sources, recursive=given["recursive"], glob=given["glob"])
    for text, origin in _origins(collected).items():
        check_template(text, origin)
    if not given["shard"]:
        return collected
    shard = parse_shard(given["shard"])
    return Collected(
        tuple(item for item in collected.inputs if shard.holds(item.name)),
        tuple(item for item in collected.problems if shard.holds(item.name)),
    )


def _origins(collected: Collected) -> dict[str, str]:
    """The jobs' own prompts, and the file and line of the first job that has each."""
    return {text: item.origin for item in reversed(collected.inputs) for text in item.prompts}


def _bytes_of(name: Path) -> bytes:
    if name == Path("-"):
        if sys.stdin is None:
            raise UsageError("stdin is closed", "name the paths as arguments")
        return read_stream(sys.stdin.buffer, "stdin", LISTS)
    try:
        return read_file(name, LISTS)
    except OSError as error:
        raise NoInputError(f"{name}: {error.strerror}", "name a file of paths, one a line") from error


def _plans(given: Mapping[str, Any], base: AskRequest) -> tuple[WorkerPlan, ...]:
    cores = usable_cores()
    devices = _devices(given)
    decoding = given["decode_workers"] or max(1, min(4, cores // 2) // len(devices))
    if len(devices) > 1 and base.threads is None:
        base = replace(base, threads=max(1, cores // len(devices)))
    return tuple(
        WorkerPlan(
            base=replace(base, device=device, side_by_side=_side_by_side(given, device)),
            decode_workers=decoding,
            decode_bytes=given["decode_memory"] * 2**20 // len(devices),
            on_out_of_memory=given["on_oom"],
        )
        for device in devices
    )


def _devices(given: Mapping[str, Any]) -> list[str]:
    """One for each worker."""
    if given["devices"]:
        return [name.strip() for name in given["devices"].split(",")]
    return [given["device"]] * given["workers"]


def _side_by_side(given: Mapping[str, Any], device: str) -> int:
    """Workers that share a device: all of them where their drafts go to one that is named."""
    devices = _devices(given)
    return len(devices) if given["draft_device"] else devices.count(device)


def lay_out_job(job: Job, quiet: bool) -> list[Work]:
    """The works of all inputs, and of those that can only fail."""
    from lvspec_cli.batch.cutting import known_scenes, scene_segments
    from lvspec_cli.ui.progress import PlainProgress
    from lvspec_cli.video.pool import DecodePool

    progress, label = PlainProgress(sys.stderr), "looking at the videos"
    folder = state_folder()
    if folder is not None:  # what killed runs left there
        sweep(folder)
        sweep(folder / "scenes")
    if not quiet:
        progress.begin(label)
    try:
        with DecodePool(job.plans[0].decode_workers, job.plans[0].decode_bytes) as pool:
            works = lay_out(
                job.collected.inputs,
                job.base,
                job.cutting,
                probes=partial(pool.probes, timeout=job.base.video.timeout),
                scenes=lambda video: known_scenes(video, folder and folder / "scenes", scene_segments),
                progress=lambda done, total: progress.advance(label, done, total),
            )
    finally:
        progress.close()
    broken = [
        replace(make_work(request_for(job.base, Input(problem.path, problem.name))), error=problem.error)
        for problem in job.collected.problems
    ]
    return [*works, *broken]


def moved_lines(left: Outstanding) -> Iterator[str]:
    """What is said of rows under other names; nothing where there are none."""
    for first in islice(left.moved.values(), 1):
        old, new = map(os.fsdecode, (first.old, first.new))
        what = f"{len(left.moved)} of these rows stand under other names"
        yield f"{what} ({old} is {new} here) and are skipped; --redo does them again"


def past_run(job: Job, rows: int, seconds: float) -> PastRun:
    """What is remembered of a run of this kind."""
    base = job.base
    return PastRun(
        pair=base.pair_name,
        mode=base.settings.mode.value,
        device=",".join(plan.base.device for plan in job.plans),
        workers=len(job.plans),
        frames=base.video.max_frames,
        rows=rows,
        seconds=round(seconds, 3),
        audit=base.audit,
    )
