"""Clips captioned per hour by how many are decoded together: runs over all clips, and what they come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from lvspec_cli.figures.answers import BenchMode, FrozenModel


class Run(FrozenModel):
    """All clips captioned once in one mode, ``slots`` answers at a time.

    Seconds are from the first request for a video to the last answer: decoding, processors, prefill, tokens.
    """

    mode: BenchMode
    slots: int  # of hf-batched: the size of a batch
    repeat: int  # from 0
    error: str | None = None  # why it failed; then nothing below is known
    clips: int = 0
    seconds: float = 0.0
    processor_s: float = 0.0  # processor time of this process, in which no video is decoded
    output_tokens: int = 0
    drafts: bool = False  # false also where the draft was left out, because it would not have paid
    texts: tuple[str, ...] = ()  # a digest of each answer's text, in the order of the items


class Throughput(FrozenModel):
    """One mode with one number of slots: medians over the repeats. Ratios are taken within a repeat."""

    mode: BenchMode
    slots: int
    error: str | None = None
    drafts: bool = False
    clips_per_hour: float | None = None
    seconds_per_clip: float | None = None
    processor_s_per_clip: float | None = None
    tokens_per_s: float | None = None
    vs_one: float | None = None  # clips an hour / those of the same mode with one slot
    vs_ar: float | None = None  # clips an hour / those of ar with one slot
    same_texts: float | None = None  # share of texts equal to those of one slot; of hf-batched: of ar there


def throughput_of(runs: Sequence[Run]) -> tuple[Throughput, ...]:
    """The figures of every mode and number of slots, in the order in which they first occur."""
    kinds = dict.fromkeys((run.mode, run.slots) for run in runs)
    return tuple(_figures(mode, slots, runs) for mode, slots in kinds)


def _figures(mode: BenchMode, slots: int, runs: Sequence[Run]) -> Throughput:
    own = [run for run in runs if (run.mode, run.slots) == (mode, slots)]
    failed = next((run.error for run in own if run.error is not None), None)
    if failed is not None:
        return Throughput(mode=mode, slots=slots, error=failed)
    origin = BenchMode.AR if mode is BenchMode.HF_BATCHED else mode  # of the texts
    equal = [
        one == other
        for run, base in _pairs(own, runs, origin)
        for one, other in zip(run.texts, base.texts, strict=True)
    ]
    return Throughput(
        mode=mode,
        slots=slots,
        drafts=own[0].drafts,
        clips_per_hour=median(3600 * run.clips / run.seconds for run in own),
        seconds_per_clip=median(run.seconds / run.clips for run in own),
        processor_s_per_clip=median(run.processor_s / run.clips for run in own),
        tokens_per_s=median(run.output_tokens / run.seconds for run in own),
        vs_one=_ratio(own, runs, mode),
        vs_ar=_ratio(own, runs, BenchMode.AR),
        same_texts=sum(equal) / len(equal) if equal else None,
    )


def _ratio(own: Sequence[Run], runs: Sequence[Run], mode: BenchMode) -> float | None:
    """How many times the clips an hour of a mode with one slot. None where that was not measured."""
    ratios = [base.seconds / run.seconds for run, base in _pairs(own, runs, mode)]
    return median(ratios) if ratios else None


def _pairs(own: Sequence[Run], runs: Sequence[Run], mode: BenchMode) -> Iterator[tuple[Run, Run]]:
    """Each run with that of a mode with one slot in the same repeat."""
    ones = {run.repeat: run for run in runs if (run.mode, run.slots, run.error) == (mode, 1, None)}
    return ((run, ones[run.repeat]) for run in own if run.repeat in ones)
