"""Texts of the target alone about many clips, several at a time by transformers' own ``generate``.

What a token costs is mostly the reading of weights and the host's work, which a batch shares: so ``ar``'s
texts of thousands of clips take a fraction of the time, where nothing but the texts is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import open_journal
from lvspec_cli.bench.measure import Progress, check_measured
from lvspec_cli.bench.run import BenchJob, header_of
from lvspec_cli.figures.answers import BenchMode, Block, Item, Measurement, Variant
from lvspec_cli.figures.summary import Measured
from lvspec_cli.memory.resolve import workload_of_pair
from lvspec_cli.memory.short import memory_errors
from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.models.processing import quiet
from lvspec_cli.pipeline import load
from lvspec_cli.request import LoadPlan
from lvspec_cli.video.pool import reading
from tools.demo_report.drawing import parallel_map
from tools.train_demo.evaluate import batch_tokens

REFERENCE = Variant(BenchMode.HF_AR)
BATCH = 32  # answers at a time
CHUNK = 64  # clips that a process reads and answers before it gives what it has


def batched_of(
    loaded: LoadedPair, job: BenchJob, *, progress: Progress = lambda done, total: None
) -> Measured:
    """Answers what is left of a job whose only line is :data:`REFERENCE`, in its ``processes``.

    :raises LvspecError: a clip or the folder cannot be used.
    """
    items = {item.id: item for clip in job.clips for item in clip.items}
    with (
        memory_errors(job.load_plan, job.workload),
        open_journal(job.out, header_of(loaded, job), redo=job.redo) as kept,
    ):
        left = [clip for clip in job.clips if any((item.id, 0) not in kept.blocks for item in clip.items)]
        chunks = [left[start : start + CHUNK] for start in range(0, len(left), CHUNK)]
        limit = job.plan.settings.max_new_tokens
        progress(len(kept.blocks), len(items))
        with parallel_map(min(job.processes, len(chunks))) as mapped:
            for blocks in mapped(partial(answered, job.load_plan, limit), chunks):
                for block in blocks:
                    kept.add_item(items[block.item])
                    kept.add_block(block)
                progress(len(kept.blocks), len(items))
        check_measured(kept)
        return Measured(items, tuple(kept.blocks[item, 0] for item in items))


def answered(load_plan: LoadPlan, limit: int, clips: Sequence[BenchClip]) -> list[Block]:
    """Texts of ``limit`` tokens at most about all items of some clips, by a target that is loaded for it.

    :raises LvspecError: a clip cannot be read.
    """
    alone = replace(load_plan, draft=None, loading=replace(load_plan.loading, draft=None))
    target = load(alone, workload_of_pair(load_plan.choice.pair)).target
    with reading() as read:
        asked = [(item, frames) for clip in clips for frames in (read(clip.video),) for item in clip.items]
    asked.sort(key=lambda each: each[0].task)  # a batch takes as long as its longest answer
    found = []
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        with quiet():
            texts = batch_tokens(target, [(frames, item.prompt) for item, frames in batch], limit)
        found += [_block(item, tokens, target) for (item, _), tokens in zip(batch, texts, strict=True)]
    return found


def _block(item: Item, tokens: Sequence[int], target: LoadedModel) -> Block:
    said = Measurement(
        **asdict(REFERENCE),
        text=target.tokenizer.backend_tokenizer.decode(list(tokens), skip_special_tokens=True).lstrip(" "),
        finish_reason="stop" if tokens and tokens[-1] in target.generation.end_ids else "length",
        output_tokens=len(tokens),
        tokens=tuple(tokens),
    )
    return Block(item=item.id, repeat=0, measurements=(said,))
