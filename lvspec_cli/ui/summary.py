"""The few lines that stay after an answer."""

from __future__ import annotations

from lvspec_cli.output.records import Record
from lvspec_cli.types import FinishReason

ENDINGS = {
    FinishReason.LENGTH: "cut at --max-new-tokens",
    FinishReason.REPETITION: "stopped: it began to repeat itself",
    FinishReason.INTERRUPTED: "interrupted",
}


def answer_summary(record: Record) -> str:
    """Speed and acceptance of one answer, in one line."""
    stats = record.stats
    if stats is None:
        return ""
    facts = [f"{stats.output_tokens} tokens in {stats.decode_s:.1f} s"]
    if stats.tokens_per_s is not None:
        facts.append(f"{stats.tokens_per_s:.1f} tokens/s")
    if stats.mean_accepted_length is not None and stats.drafted:
        facts.append(f"mean accepted length {stats.mean_accepted_length:.2f}")
    if stats.acceptance_rate is not None:
        facts.append(f"{stats.acceptance_rate:.0%} accepted")
        facts.append(
            f"exact {stats.accepted_exact}, filler {stats.accepted_filler}, shift {stats.accepted_shift}"
        )
    if record.finish_reason in ENDINGS:
        facts.append(ENDINGS[record.finish_reason])
    return " | ".join(facts)


def clip_summary(record: Record) -> str:
    """What was asked of the video and what was taken, in one line."""
    sampling = record.sampling
    times = sampling.timestamps or (0.0,)
    return (
        f"{record.file_name}: {sampling.decoded} of {sampling.frames_expected} frames, "
        f"{times[0]:.1f} to {times[-1]:.1f} s, {sampling.width}x{sampling.height}, "
        f"{sampling.visual_tokens} visual tokens"
    )


def world_note(pair: str, world: str) -> str:
    """That a pair knows little, and how to choose another."""
    return f"{pair} knows only {world}: `lvspec models` lists other pairs, --pair NAME chooses one"
