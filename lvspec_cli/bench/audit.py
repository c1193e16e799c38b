"""One answer given once more in mode ar, and what the first one keeps of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lvspec_cli.bench.likeness import chrf, repetition, rouge_l, words
from lvspec_cli.bench.own import rest
from lvspec_cli.bench.score import score_text
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.output.records import Audit
from lvspec_cli.output.text import TextStream
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import DecodeSettings, DecodeStats, FinishReason, Generation, Mode, PairPrompts


def audited(
    session: Session,
    pair: LoadedPair,
    prompts: PairPrompts,
    settings: DecodeSettings,
    given: Generation,
    text: str,
    interrupted: Callable[[], bool] = lambda: False,
) -> Audit | None:
    """Answers in mode ar from the clip that the session has encoded; None where that was interrupted.

    :param settings: those of the answer ``given``, whose text is ``text``.
    """
    plain = replace(settings, mode=Mode.AR)
    ar = rest(session.answer(prompts, plain, interrupted=interrupted), [])
    if ar.finish_reason is FinishReason.INTERRUPTED:
        return None
    stream = TextStream(pair.target.tokenizer.backend_tokenizer)
    stream.feed(ar.tokens, ar.kinds)
    score, ar_score = (
        score_text(session.target, prompts.target, tokens) for tokens in (given.tokens, ar.tokens)
    )
    assert score  # an answer has a token at least
    assert ar_score
    return Audit(
        text=stream.text,
        finish_reason=ar.finish_reason,
        output_tokens=ar.stats.output_tokens,
        prefill_s=ar.stats.prefill_seconds,
        decode_s=ar.stats.decode_seconds,
        speedup=_speedup(given.stats, ar.stats),
        identical=stream.text == text,
        chrf=chrf(text, stream.text),
        rouge_l=rouge_l(text, stream.text),
        log_probability=score.mean,
        ar_log_probability=ar_score.mean,
        repetition=repetition(words(text)),
        ar_repetition=repetition(words(stream.text)),
    )


def _speedup(given: DecodeStats, ar: DecodeStats) -> float | None:
    rate, ar_rate = given.tokens_per_second, ar.tokens_per_second
    return rate / ar_rate if rate and ar_rate else None
