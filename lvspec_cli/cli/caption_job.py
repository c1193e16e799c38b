"""Reads and checks the flags of ``lvspec caption`` before anything slow starts, and makes works of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from lvspec_cli.batch.answer import OnOutOfMemory
from lvspec_cli.batch.cluster import Cluster, check_here, joined
from lvspec_cli.batch.company import best_company, clip_costs, company_of
from lvspec_cli.batch.cutting import check_lengths
from lvspec_cli.batch.history import PastRun
from lvspec_cli.batch.inputs import collect
from lvspec_cli.batch.layout import Cutting, check_file, check_template, lay_out, request_for
from lvspec_cli.batch.lists import read_paths
from lvspec_cli.batch.names import Collected, Input
from lvspec_cli.batch.serve import WorkerPlan, decoders_of
from lvspec_cli.batch.work import Again, Outstanding, Work, make_work, parse_shard
from lvspec_cli.cli.caption_options import CaptionDecoding, CaptionFlags, Inputs, Prompts, Workers
from lvspec_cli.cli.reporting import say
from lvspec_cli.cli.requests import (
    argument_of,
    caption_mistake,
    check_effects,
    checked_system,
    checked_text,
    chosen_pair,
    constraint_of,
    decode_settings,
    read_text,
    video_request,
)
from lvspec_cli.errors import NoInputError, UsageError
from lvspec_cli.events import Event, Noted
from lvspec_cli.figures.audit import parse_share
from lvspec_cli.host import STDERR_NAMES, message_stream, state_folder, usable_cores
from lvspec_cli.memory.choose import choose_pair
from lvspec_cli.memory.resolve import (
    MOST_SLOTS,
    check_device,
    fitting_slots,
    plan_request_of,
    sizes_of,
    workload_of,
)
from lvspec_cli.output.files import check_room, sweep
from lvspec_cli.pipeline import check_prompts, check_thinking, prepared
from lvspec_cli.request import ALONE, AskRequest, Company, LoadPlan, PairChoice
from lvspec_cli.table import counted
from lvspec_cli.text_file import LISTS, read_file, read_stream
from lvspec_cli.types import DEFAULT_PROMPT, DecodeSettings, Gate, Mode

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """The checked request of the command line."""

    load_plan: LoadPlan
    base: AskRequest
    collected: Collected
    cutting: Cutting
    again: Again
    plans: tuple[WorkerPlan, ...]
    gates: frozenset[Gate]
    out: Path | None  # None for stdout
    notes: tuple[Event, ...] = ()  # for the user, when nothing is wrong with the command
    cluster: Cluster | None = None  # whose nodes the workers run on


def read_job(flags: CaptionFlags, stack: ExitStack) -> Job:
    """Reads and checks all flags and inputs, before anything slow starts.

    :param stack: keeps this process in a cluster until it is closed.
    :raises UsageError: flags are wrong or exclude each other.
    :raises NoInputError: there is nothing to caption.
    """
    records, inputs = flags.records, flags.inputs
    mistake = caption_mistake([argument_of(text) for text in inputs.paths or ()])
    if mistake is not None:
        raise mistake
    _check_together(flags)
    cluster = _cluster(flags, stack)
    choice = chosen_pair(flags.loading, partial(_there, cluster, choose_pair) if cluster else None)
    devices, prompts = devices_of(flags.workers, choice.device), _prompts(flags.prompts)
    request = AskRequest(
        video_request(flags.sampling, choice.pair),
        tuple(prompts),
        replace(
            decode_settings(flags.decoding, flags.rule, choice.pair),
            constraint=constraint_of(flags.prompts.choices, flags.prompts.schema, think=flags.prompts.think),
        ),
        flags.prompts.system,
        flags.prompts.think,
        task="caption",
        audit=_audit(records.audit, flags.decoding),
    )
    check_effects(flags.loading, flags.decoding, flags.rule, request.settings)
    if records.out != "-":
        check_room(Path(records.out).absolute().parent)
    at_once = _at_once(flags.workers.at_once, request.settings)
    collected = _collected(inputs)
    texts = prompts | _origins(collected)
    if cluster is None:
        planned = plan_workers(choice, request, flags.workers, devices, records.on_oom, at_once, texts)
    else:
        planned = _planned_there(cluster, choice, request, flags, at_once, texts)
    return Job(
        load_plan=planned.load_plan,
        base=planned.base,
        collected=collected,
        cutting=Cutting(inputs.segment, inputs.overlap, inputs.scenes),
        again=Again.ALL if records.redo else Again.ERRORS if records.retry_errors else Again.NOTHING,
        plans=planned.workers,
        gates=_gates(records.fail_on or ()),
        out=None if records.out == "-" else Path(records.out),
        notes=planned.notes,
        cluster=cluster,
    )


@dataclass(frozen=True)
class Planned:
    """How the pair is loaded, the request that suits it, and the plan of each worker."""

    load_plan: LoadPlan
    base: AskRequest
    workers: tuple[WorkerPlan, ...]
    notes: tuple[Event, ...] = ()


def plan_workers(
    choice: PairChoice,
    request: AskRequest,
    workers: Workers,
    devices: Sequence[str],
    on_out_of_memory: OnOutOfMemory,
    at_once: int | None,
    texts: Mapping[str, str],
) -> Planned:
    """The plan of a worker on each device of this machine, before any weights are read.

    :param texts: the prompts, each with its origin.
    """
    notes: list[Event] = []
    load_plan, base = prepared(_for_worker(choice, devices[0], devices), request, listen=notes.append)
    check_thinking(load_plan, base)
    company, said = chosen_company(load_plan, base, at_once)
    check_prompts(load_plan, base, texts)
    plans = worker_plans(load_plan, base, workers, devices, on_out_of_memory, company)
    return Planned(load_plan, base, plans, (*notes, *map(Noted, said)))


def _cluster(flags: CaptionFlags, stack: ExitStack) -> Cluster | None:
    """The cluster of ``--ray``, which this process stays in until the stack is closed."""
    workers = flags.workers
    if workers.ray is None:
        return None
    count = None if workers.workers == "auto" else int(workers.workers)
    return stack.enter_context(joined(workers.ray, count, workers.gpus_per_worker, flags.loading.threads))


def _there(cluster: Cluster, function: Callable[..., T], *arguments: object) -> T:
    """The result of a function that depends on the machine, on one of the cluster's nodes."""
    return cluster.call(function, *arguments, tell=say)


def _planned_there(
    cluster: Cluster,
    choice: PairChoice,
    request: AskRequest,
    flags: CaptionFlags,
    at_once: int | None,
    texts: Mapping[str, str],
) -> Planned:
    """As ``plan_workers``, made on a node: the pair is loaded there, on GPUs that this machine may lack.

    :raises MachineError: the models are at other paths there.
    """
    share, workers = cluster.share, flags.workers
    choice = replace(choice, threads=share.threads)
    there = ["auto"] * share.side_by_side
    planned = _there(
        cluster, plan_workers, choice, request, workers, there, flags.records.on_oom, at_once, texts
    )
    check_here(planned.load_plan)
    plan = planned.workers[0]
    if workers.decode_workers is None:
        plan = replace(plan, decode_workers=decoders_of(planned.load_plan.loading.device, share.threads))
    memory = workers.decode_memory * 2**20 // share.on_a_node
    return replace(planned, workers=(replace(plan, decode_bytes=memory),) * cluster.workers)


def _check_together(flags: CaptionFlags) -> None:
    inputs, records, devices = flags.inputs, flags.records, flags.workers.devices
    if inputs.segment is not None and inputs.scenes:
        raise UsageError("--segment and --scenes exclude each other", "choose one")
    if inputs.segment is not None:
        check_lengths(inputs.segment, inputs.overlap)
    elif inputs.overlap:
        raise UsageError("--overlap goes with --segment only", "add --segment, or leave it out")
    if records.redo and records.retry_errors:
        raise UsageError("--redo and --retry-errors exclude each other", "--redo does all of it again")
    if inputs.null and not (inputs.from_list or "-" in (inputs.paths or ())):
        raise UsageError("--null has no effect without a list of paths", "add --from-list, or leave out -0")
    if not all(map(str.strip, (devices or "cpu").split(","))):
        raise UsageError(f"--devices {devices!r} has an empty place", "write cuda:0,cuda:1")
    if devices and (flags.workers.workers not in ("auto", "1") or flags.loading.device != "auto"):
        raise UsageError("--devices excludes --device and --workers", "name each device in --devices")
    if flags.workers.ray is not None:
        _check_ray(flags)
    elif flags.workers.gpus_per_worker is not None:
        raise UsageError("--gpus-per-worker goes with --ray only", "add --ray, or leave it out")
    if records.out in STDERR_NAMES:
        raise UsageError(f"--out {records.out}: messages go there", "send the records to stdout: --out -")
    if records.out == "-" and (flags.export.to or records.retry_errors or records.redo):
        raise UsageError("--out - leaves no file to go on from or to export", "name a file with --out")


def _check_ray(flags: CaptionFlags) -> None:
    named = {
        "--devices": flags.workers.devices,
        "--device": flags.loading.device != "auto",
        "--draft-device": flags.loading.draft_device,
    }
    if flag := next((flag for flag, is_named in named.items() if is_named), None):
        raise UsageError(f"--ray excludes {flag}: Ray gives each worker its GPUs", "take --gpus-per-worker")
    gpus = flags.workers.gpus_per_worker
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise UsageError(
            f"--gpus-per-worker {gpus:g} is no number of GPUs", "give a whole number, or less than 1"
        )


def _prompts(prompts: Prompts) -> dict[str, str]:
    """The texts, each once, and their origins."""
    texts = {checked_text(text, "--prompt"): "--prompt" for text in prompts.prompt or ()}
    for text in texts:
        check_template(text, "--prompt")
    if prompts.prompt_file is not None:
        file, text = str(prompts.prompt_file), read_text(prompts.prompt_file)
        texts.setdefault(checked_text(text, file), file)
        check_file(text, file)
    checked_system(prompts.system)
    return texts or {DEFAULT_PROMPT: "the prompt"}


def _audit(text: str | None, decoding: CaptionDecoding) -> float:
    if text is None:
        return 0.0
    share = parse_share(text)
    if decoding.mode is Mode.AR:
        raise UsageError("--audit compares with mode ar, and --mode ar is that", "leave out one of them")
    if decoding.temperature > 0:
        raise UsageError("--audit compares greedy answers", "leave out --audit or --temperature")
    return share


def _at_once(text: str, settings: DecodeSettings) -> int | None:
    """The number of captions that are decoded together; None: as many as fit and gain.

    :raises UsageError: it is no number, or does not go with --fallback.
    """
    if text == "auto":
        return 1 if settings.fallback else None
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MOST_SLOTS):
        raise UsageError(
            f"--at-once {text!r} is neither auto nor a number", f"write a number from 1 to {MOST_SLOTS}"
        )
    if settings.fallback and int(text) > 1:
        raise UsageError(
            "--fallback measures one caption at a time, and --at-once decodes several together",
            "leave out one of them",
        )
    return int(text)


def chosen_company(plan: LoadPlan, base: AskRequest, at_once: int | None) -> tuple[Company, list[str]]:
    """How many captions each pair decodes together, whether the draft pays then, and what to tell of it.

    ``auto`` is 1 where what is beside an answer could change its text: where tokens are drawn, for what is
    drafted changes what is drawn, and in 16 bits, for which a pair on a GPU knows it when it is loaded. It
    never leaves out the draft of loose answers. So rows are the same for any number.

    :param at_once: the number, if the user has named one.
    """
    loading, is_drawn = plan.loading, base.settings.temperature > 0
    is_open = not is_drawn and (loading.device != "cpu" or loading.dtype == "float32")
    if at_once == 1 or (at_once is None and not is_open):
        return ALONE, []
    load = workload_of(base)
    fitting = fitting_slots(plan, load, at_once or MOST_SLOTS)
    clip = clip_costs(sizes_of(plan), plan_request_of(plan), load, base.settings, loading.device)
    if at_once is None:
        best = best_company(clip, fitting, keeps_draft=base.settings.mode is Mode.LVSPEC)
        company = replace(best, keeps_texts=True)
    else:
        company = company_of(clip, fitting)
    notes = []
    if at_once is not None and fitting < at_once:
        notes.append(f"there is memory for {counted(fitting, 'caption')} at once, not {at_once}")
    if not company.drafts:
        notes.append(
            f"{company.slots} captions at once go without the draft: it would cost more than it saves"
        )
    return company, notes


def _gates(texts: Sequence[str]) -> frozenset[Gate]:
    words = [word.strip() for text in texts for word in text.split(",")]
    unknown = next((word for word in words if word not in list(Gate)), None)
    if unknown is not None:
        raise UsageError(f"--fail-on does not know {unknown!r}", f"choose among {', '.join(Gate)}")
    return frozenset(map(Gate, words))


def _collected(inputs: Inputs) -> Collected:
    paths = inputs.paths or []
    if "" in paths:
        raise NoInputError("a video's name is empty", "name files or folders; . is this folder")
    sources = [Path(text) for text in paths if text != "-"]
    lists = [inputs.from_list] if inputs.from_list else []
    lists += [Path("-")] * paths.count("-")
    for name in lists:
        label = "stdin" if name == Path("-") else str(name)
        sources += read_paths(_bytes_of(name), label, nul=inputs.null)
    if not sources:
        raise NoInputError("no video was named", "name files or folders: lvspec caption ./clips")
    collected = collect(sources, recursive=inputs.recursive, glob=inputs.glob)
    for text, origin in _origins(collected).items():
        check_template(text, origin)
    if not inputs.shard:
        return collected
    shard = parse_shard(inputs.shard)
    return Collected(
        tuple(item for item in collected.inputs if shard.holds(item.name)),
        tuple(item for item in collected.problems if shard.holds(item.name)),
    )


def _origins(collected: Collected) -> dict[str, str]:
    """The jobs' own prompts, each with the file and line of the first job that has it."""
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


def worker_plans(
    load_plan: LoadPlan,
    base: AskRequest,
    workers: Workers,
    devices: Sequence[str],
    on_out_of_memory: OnOutOfMemory,
    company: Company,
) -> tuple[WorkerPlan, ...]:
    """The plan of each worker, with its share of the machine."""
    cores = usable_cores()
    decoding = workers.decode_workers or decoders_of(load_plan.loading.device, cores, len(devices))
    choice = load_plan.choice
    if len(devices) > 1 and choice.threads is None:
        choice = replace(choice, threads=max(1, cores // len(devices)))
    return tuple(
        WorkerPlan(
            load_plan=replace(load_plan, choice=_for_worker(choice, device, devices)),
            base=base,
            decode_workers=decoding,
            decode_bytes=workers.decode_memory * 2**20 // len(devices),
            on_out_of_memory=on_out_of_memory,
            company=company,
        )
        for device in devices
    )


def devices_of(workers: Workers, device: str) -> list[str]:
    """The device of each worker."""
    if workers.devices:
        names = [name.strip() for name in workers.devices.split(",")]
        for name in names:
            check_device(name, "--devices")
        return names
    return [device] * (1 if workers.workers == "auto" else int(workers.workers))


def _for_worker(choice: PairChoice, device: str, devices: Sequence[str]) -> PairChoice:
    """The pair of a worker on a device. With ``--draft-device`` all drafts share that device."""
    count = len(devices) if choice.draft_device else devices.count(device)
    return replace(choice, device=device, side_by_side=count)


def lay_out_job(job: Job, quiet: bool) -> list[Work]:
    """The works of all inputs, including those that cannot be read."""
    from lvspec_cli.batch.cutting import known_scenes, scene_segments
    from lvspec_cli.ui.progress import PlainProgress
    from lvspec_cli.video.pool import DecodePool

    progress = PlainProgress(None if quiet else message_stream())
    folder = state_folder()
    if folder is not None:  # temporary files of killed runs
        sweep(folder)
        sweep(folder / "scenes")
    with (
        progress.counting("looking at the videos") as advance,
        DecodePool(job.plans[0].decode_workers, job.plans[0].decode_bytes) as pool,
    ):
        works = lay_out(
            job.collected.inputs,
            job.load_plan,
            job.base,
            job.cutting,
            probes=partial(pool.probes, timeout=job.base.video.timeout),
            subtitles=partial(pool.subtitles, timeout=job.base.video.timeout),
            scenes=lambda video: known_scenes(video, folder and folder / "scenes", scene_segments),
            progress=advance,
        )
    broken = [
        replace(
            make_work(job.load_plan, request_for(job.base, Input(problem.path, problem.name))),
            error=problem.error,
        )
        for problem in job.collected.problems
    ]
    return [*works, *broken]


def moved_lines(remaining: Outstanding) -> Iterator[str]:
    """A line about rows under other names, if there are any."""
    for example in islice(remaining.moved.values(), 1):
        old, new = map(os.fsdecode, (example.old, example.new))
        what = f"{len(remaining.moved)} of these rows stand under other names"
        yield f"{what} ({old} is {new} here) and are skipped; --redo does them again"


def past_run(job: Job, rows: int, seconds: float) -> PastRun:
    """The entry of a run like this one in the history."""
    base = job.base
    return PastRun(
        pair=job.load_plan.choice.name,
        mode=base.settings.mode.value,
        device="ray" if job.cluster else ",".join(plan.load_plan.choice.device for plan in job.plans),
        workers=len(job.plans),
        frames=base.video.max_frames,
        rows=rows,
        seconds=round(seconds, 3),
        audit=base.audit,
        think=base.think,
        at_once=job.plans[0].company.slots,
    )
