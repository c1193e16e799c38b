"""Measures clips an hour by how many are captioned together: ``lvspec bench --throughput``.

The loop of ``lvspec caption`` runs over all clips in every mode with every number of slots, one run after the
other in this process; in every second repeat they run in reverse. ``hf-batched`` is ``generate`` over batches
of as many clips, whose videos are decoded ahead in the same way.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from lvspec_cli.batch.answer import release_memory
from lvspec_cli.batch.company import clip_costs, company_of
from lvspec_cli.batch.serve import WorkerPlan, decoders_of, serving_with, threads_of_decoder
from lvspec_cli.batch.slots import Finished
from lvspec_cli.batch.work import make_work
from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import Journal
from lvspec_cli.bench.measure import WARM_TOKENS, Plan, Progress
from lvspec_cli.bench.peers import generate_batch, one_line_error, text_of_answer
from lvspec_cli.errors import LvspecError, NoInputError, PairError
from lvspec_cli.events import Event, Noted
from lvspec_cli.figures.answers import Variant
from lvspec_cli.figures.throughput import Run
from lvspec_cli.host import usable_cores
from lvspec_cli.memory.resolve import plan_request_of, sizes_of, workload_of
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.output.records import Record
from lvspec_cli.request import AskRequest, Company, LoadPlan
from lvspec_cli.types import Clip, DecodeSettings
from lvspec_cli.video.pool import DecodePool

DECODED_BYTES = 512 * 2**20  # of frames decoded ahead, as caption has it
WARM_CLIPS = 2


def measure_runs(
    pair: LoadedPair,
    load_plan: LoadPlan,
    clips: Sequence[BenchClip],
    plan: Plan,
    slots: Sequence[int],
    fitting: int,
    journal: Journal,
    *,
    progress: Progress = lambda done, total: None,
    warn: Callable[[str], None] = lambda message: None,
) -> None:
    """Measures the runs that are missing in the journal; every finished run is stored immediately.

    Clips that cannot be read are stored with their error and left out. So are numbers of slots for which
    there are too few clips, or too little memory, but with a warning alone.

    :param fitting: how many captions at once there is memory for.
    :raises NoInputError: no clip can be read.
    """
    readable = _readable(clips, load_plan.loading.device, journal, warn)
    runner = _Runner(pair, load_plan, readable, plan)
    chosen = usable_slots(slots, sum(len(clip.items) for clip in readable), fitting, warn)
    wanted = [
        (variant, count, repeat)
        for repeat in range(plan.repeat)
        for variant, count in _in_turns([(v, count) for v in plan.variants for count in chosen], repeat)
    ]
    missing = [turn for turn in wanted if (turn[0].mode, turn[1], turn[2]) not in journal.runs]
    progress(done := len(wanted) - len(missing), len(wanted))
    for variant in dict.fromkeys(variant for variant, _, _ in missing):
        runner.warmed_up(variant)
    for variant, count, repeat in missing:
        run = runner.run(variant, count, repeat)
        journal.add_run(run)
        if run.error is not None:
            warn(f"{variant.mode}, {count} at once: {run.error}")
        progress(done := done + 1, len(wanted))


def _in_turns(kinds: list[tuple[Variant, int]], repeat: int) -> list[tuple[Variant, int]]:
    return kinds if repeat % 2 == 0 else kinds[::-1]


def _decoders(device: str) -> DecodePool:
    return DecodePool(decoders_of(device, usable_cores()), DECODED_BYTES, threads=threads_of_decoder(device))


def _readable(
    clips: Sequence[BenchClip], device: str, journal: Journal, warn: Callable[[str], None]
) -> tuple[BenchClip, ...]:
    """The clips that can be read. Each is decoded once, unless the journal has what came of it.

    After that the files are in the system's cache, for the first run, too.
    """
    unknown = [clip for clip in clips if any(item.id not in journal.items for item in clip.items)]
    with _decoders(device) as pool:
        for clip, decoded in zip(unknown, pool.clips(clip.video for clip in unknown), strict=True):
            facts: dict[str, object] = {"error": decoded.error.cause if decoded.error else None}
            if decoded.clip is not None:
                facts["frames"] = len(decoded.clip.timestamps)
            else:
                warn(f"{clip.items[0].file_name}: {facts['error']}")
            for item in clip.items:
                journal.add_item(item.model_copy(update=facts))
    readable = tuple(clip for clip in clips if journal.items[clip.items[0].id].error is None)
    if not readable:
        raise NoInputError("nothing could be measured: no clip can be read", "name videos that can be read")
    return readable


def usable_slots(
    slots: Sequence[int], answers: int, fitting: int, warn: Callable[[str], None]
) -> tuple[int, ...]:
    """The numbers of slots that can be filled and that fit; 1 if there is none."""
    chosen = tuple(count for count in slots if count <= min(answers, fitting)) or (1,)
    few = [count for count in slots if count > answers]
    large = [count for count in slots if fitting < count <= answers]
    if few:
        warn(f"not measured: {', '.join(map(str, few))} at once, of {answers} captions in all")
    if large:
        warn(f"not measured: {', '.join(map(str, large))} at once: there is memory for {fitting}")
    return chosen


@dataclass(frozen=True)
class _Runner:
    """Captions the same clips again and again."""

    pair: LoadedPair
    load_plan: LoadPlan
    clips: Sequence[BenchClip]
    plan: Plan

    def warmed_up(self, variant: Variant) -> None:
        """Captions few clips shortly, for what is prepared only once. Failures show again when measured."""
        limit = min(WARM_TOKENS, self.plan.settings.max_new_tokens)
        short = replace(self.plan, settings=replace(self.plan.settings, max_new_tokens=limit))
        replace(self, plan=short, clips=self.clips[:WARM_CLIPS]).run(variant, WARM_CLIPS, 0)

    def run(self, variant: Variant, slots: int, repeat: int) -> Run:
        """All clips once. Whatever fails becomes the run's ``error``."""
        gc.collect()  # so that no run is charged for the garbage of others
        run = Run(mode=variant.mode, slots=slots, repeat=repeat)
        try:
            if variant.mode.is_peer:
                return run.model_copy(update=self._peer(slots))
            return run.model_copy(update=self._own(variant, slots))
        except PairError:  # nothing can be measured with this pair any more
            raise
        except Exception as error:  # of a clip, of memory, of the peer: each is a result
            release_memory(self.pair)
            cause = error.cause if isinstance(error, LvspecError) else one_line_error(error)
            return run.model_copy(update={"error": cause})

    def _own(self, variant: Variant, slots: int) -> dict[str, object]:
        """
        :raises LvspecError: a clip failed, or memory was short.
        """
        settings, pair, device = self.plan.settings_of(variant), self.pair, self.load_plan.loading.device
        company = self._company(settings, slots)
        if not variant.mode.drafts:
            pair = replace(pair, draft=None)  # as caption loads it
        requests = [self._request(clip, settings) for clip in self.clips]
        works = [make_work(self.load_plan, request) for request in requests]
        plan = WorkerPlan(
            self.load_plan,
            requests[0],
            decoders_of(device, usable_cores()),
            DECODED_BYTES,
            "fail",
            company=company,
        )
        with serving_with(pair, plan, _complain, lambda: False) as serve, closing(serve(works)) as done:
            watch = _Watch()
            records = [record for record in done if not isinstance(record, Finished)]
            seconds = watch.read()
        for record in records:
            if record.error is not None:
                raise LvspecError(f"{record.id}: {record.error.message}")
        by_key = {record.key: record for record in records}
        texts = [by_key[key].text or "" for work in works for key in work.keys]
        tokens = sum(_tokens_of(record) for record in records)
        drafts = variant.mode.drafts and company.drafts
        return {**seconds, **self._facts(texts, tokens), "drafts": drafts}

    def _peer(self, size: int) -> dict[str, object]:
        target, ends = self.pair.target, self.plan.settings.max_new_tokens
        found: list[tuple[int, ...]] = []
        watch = _Watch()
        with _decoders(self.load_plan.loading.device) as pool:
            for batch in _batches(self._prompts(pool), size):
                clips, questions = zip(*batch, strict=True)
                found += generate_batch(self.pair, clips, questions, ends, system=self.plan.system)
        seconds = watch.read()
        texts = [text_of_answer(target, tokens) for tokens in found]
        return {**seconds, **self._facts(texts, sum(map(len, found)))}

    def _facts(self, texts: Sequence[str], tokens: int) -> dict[str, object]:
        return {"clips": len(self.clips), "output_tokens": tokens, "texts": tuple(map(_digest, texts))}

    def _prompts(self, pool: DecodePool) -> Iterator[tuple[Clip, str]]:
        with closing(pool.clips(clip.video for clip in self.clips)) as decoded:
            for clip, done in zip(self.clips, decoded, strict=True):
                if done.clip is None:
                    raise done.error or LvspecError("nothing was decoded")
                for item in clip.items:
                    yield done.clip, item.prompt

    def _company(self, settings: DecodeSettings, slots: int) -> Company:
        """As ``caption --at-once`` has it."""
        if slots == 1:
            return Company()
        plan, load = self.load_plan, workload_of(self._request(self.clips[0], settings))
        costs = clip_costs(sizes_of(plan), plan_request_of(plan), load, settings, plan.loading.device)
        return company_of(costs, slots)

    def _request(self, clip: BenchClip, settings: DecodeSettings) -> AskRequest:
        questions = tuple(item.prompt for item in clip.items)
        return AskRequest(clip.video, questions, settings, self.plan.system, task="caption")


class _Watch:
    """Reads seconds, and this process's own processor seconds, since it was made."""

    def __init__(self) -> None:
        self._began, self._own = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {
            "seconds": time.perf_counter() - self._began,
            "processor_s": time.process_time() - self._own,
        }


def _complain(event: Event) -> None:
    """A run that does not go as planned, for example because memory is short, measures nothing."""
    if isinstance(event, Noted):
        raise LvspecError(event.text)


def _batches(prompts: Iterator[tuple[Clip, str]], size: int) -> Iterator[list[tuple[Clip, str]]]:
    batch = []
    for prompt in prompts:
        batch.append(prompt)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _tokens_of(record: Record) -> int:
    return record.stats.output_tokens if record.stats is not None else 0


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:12]
