"""``--audit``: some captions are generated in mode ar as well, and compared with it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lvspec_cli.errors import UsageError
from lvspec_cli.figures.answers import Fidelity, Item, Spread, TimedText
from lvspec_cli.figures.fidelity import Comparison, fidelity_of
from lvspec_cli.figures.labels import chrf, read_scene_labels, repetition, rouge_l, with_labels, words
from lvspec_cli.figures.summary import speedup_over_clips
from lvspec_cli.output.records import THINKING, Audit, Failure, Record
from lvspec_cli.output.text import AnswerStream
from lvspec_cli.types import DecodeSettings, FinishReason, Generation, Mode, PairPrompts, Round

if TYPE_CHECKING:
    from lvspec_cli.speculation.engine import Rounds, Session


def audit_answer(
    session: Session,
    prompts: PairPrompts,
    settings: DecodeSettings,
    generation: Generation,
    stream: AnswerStream,
    ar_stream: AnswerStream,
    interrupted: Callable[[], bool] = lambda: False,
) -> Generator[Rounds, Round | None, Audit | Failure | None]:
    """Answers the same prompt in mode ar and compares; None if that was interrupted.

    Yields whose next round is wanted, and is sent it. The session must have encoded the clip already.
    Thoughts are not compared.

    :param settings: of the answer to audit.
    :param generation: the answer's tokens.
    :param stream: has read them.
    :param ar_stream: will read those of mode ar.
    """
    plain = replace(settings, mode=Mode.AR)
    rounds = session.answer(prompts, plain, interrupted=interrupted)
    while (yield rounds) is not None:
        pass
    ar = rounds.generation
    if ar.finish_reason is FinishReason.INTERRUPTED:
        return None
    ar_stream.feed(ar.tokens, ar.kinds)
    text, ar_text = stream.parts.answer, ar_stream.parts.answer
    score = _mean_score(session, prompts, generation.tokens, stream.thought_tokens)
    ar_score = _mean_score(session, prompts, ar.tokens, ar_stream.thought_tokens)
    if score is None or ar_score is None:
        return Failure(kind=THINKING, message="mode ar thought, and gave no answer to compare")
    rate, ar_rate = generation.stats.tokens_per_second, ar.stats.tokens_per_second
    return Audit(
        text=ar_text,
        finish_reason=ar.finish_reason,
        output_tokens=ar.stats.output_tokens,
        prefill_s=ar.stats.prefill_seconds,
        decode_s=ar.stats.decode_seconds,
        speedup=rate / ar_rate if rate and ar_rate else None,
        identical=ar_text == text,
        chrf=chrf(text, ar_text),
        rouge_l=rouge_l(text, ar_text),
        log_probability=score,
        ar_log_probability=ar_score,
        repetition=repetition(words(text)),
        ar_repetition=repetition(words(ar_text)),
    )


def _mean_score(
    session: Session, prompts: PairPrompts, tokens: Sequence[int], thought_tokens: int
) -> float | None:
    """Nats a token of an answer that has so many tokens of thoughts before it; None if there is no answer."""
    from lvspec_cli.models.probe import score_text

    whole = score_text(session.target, prompts.target, tokens)
    thoughts = score_text(session.target, prompts.target, tokens[:thought_tokens])
    if whole is None or thoughts is None:
        return None if whole is None else whole.mean
    count = whole.tokens - thoughts.tokens
    return (whole.log_probability - thoughts.log_probability) / count if count else None


@dataclass(frozen=True)
class AuditSummary:
    """Speed and fidelity relative to ar, over the clips whose captions were generated in both modes."""

    captions: int  # rows with a text
    audited: int
    failures: tuple[str, ...]  # messages of the audits that failed
    speedup: Spread | None
    fidelity: Fidelity | None


def summarise_audits(records: Iterable[Record], files: Mapping[str, Path]) -> AuditSummary:
    """Summarises the audits in the records of one mode and its settings; the last record of a key counts.

    :param files: by key, the videos that were captioned whole: a file of facts may lie next to one.
    """
    rows: dict[str, Record] = {}
    texts = set()
    for record in records:
        if record.text is not None:
            texts.add(record.key)
            if record.audit is not None:
                rows[record.key] = record
    failures = tuple(row.audit.message for row in rows.values() if isinstance(row.audit, Failure))
    comparisons = [
        _comparison(row, row.audit, files.get(row.key))
        for row in rows.values()
        if isinstance(row.audit, Audit)
    ]
    by_clip: dict[str, list[tuple[TimedText, TimedText]]] = defaultdict(list)
    for comparison in comparisons:
        by_clip[comparison.item.file_name].append((comparison.mode, comparison.ar))
    return AuditSummary(
        captions=len(texts),
        audited=len(comparisons),
        failures=failures,
        speedup=speedup_over_clips(by_clip.values()),
        fidelity=fidelity_of(comparisons),
    )


@dataclass(frozen=True)
class _Text:
    """A record's answer, or its audit's answer in mode ar, as a ``TimedText``."""

    text: str | None
    output_tokens: int
    decode_s: float
    log_probability: float
    loss: float | None
    first_tokens: int = 1
    tokens: None = None  # a record has none


def _comparison(row: Record, audit: Audit, file: Path | None) -> Comparison:
    stats = row.stats
    assert stats  # a row with a text has them
    loss = None if stats.loss_per_token is None else stats.loss_per_token * stats.output_tokens
    return Comparison(
        _item(row, file),
        _Text(row.text, stats.output_tokens, stats.decode_s, audit.log_probability, loss),
        _Text(audit.text, audit.output_tokens, audit.decode_s, audit.ar_log_probability, 0.0),
    )


def _item(row: Record, file: Path | None) -> Item:
    segment = row.segment
    clip = f"{row.file_name_b64 or row.file_name}@{segment.start:g}-{segment.end}"
    item = Item(id=row.key, file_name=clip, prompt=row.prompt)
    with suppress(UsageError):  # damaged facts are not an error of this command
        return with_labels(item, read_scene_labels(file) if file else None)
    return item


_DIGITS = 13  # hexadecimal digits of a key: a float represents that many exactly


def parse_share(text: str) -> float:
    """``5%`` or ``0.05`` as 0.05.

    :raises UsageError: the share is not in (0, 1], or it is a bare 1, which may mean 1 %.
    """
    match = re.fullmatch(r"(\d{0,9}\.?\d{1,9})\s*(%?)", text.strip(), re.ASCII)
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if 0 < share <= 1 and (share < 1 or "%" in text):
        return share
    raise UsageError(f"--audit {text!r} is not a share of the captions", "write 5% or 0.05, 100% for all")


def is_audited(key: str, share: float) -> bool:
    """Whether the caption with this key belongs to the audited share: the same in every run and shard.

    A larger share includes every caption of a smaller one.

    :param key: the record's key, whose hexadecimal digits are as good as random.
    """
    return int(key[:_DIGITS], 16) < share * 16**_DIGITS
