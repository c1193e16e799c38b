"""Results as text: the tables of the terminal, of pipes and of ``results.md``, and their notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from lvspec_cli.bench.results import Environment, Results
from lvspec_cli.figures.answers import (
    RULE_OF_THREE,
    BenchMode,
    Estimate,
    Fidelity,
    FrozenModel,
    ModeResult,
    RelativeQuality,
    Spread,
    Variant,
)
from lvspec_cli.figures.summary import (
    MIN_RETENTION,
    keeps_quality,
    leader,
    median_speedup,
    winner,
)
from lvspec_cli.figures.throughput import Throughput
from lvspec_cli.table import Style, Table, counted, markdown_lines, markdown_text

HEADINGS = (
    "mode", "γ", "speedup", "end to end", "tokens/s", "accepted length", "acceptance", "retention",
    "c", "v", "o", "predicted",
)  # fmt: skip
_OPTIONAL = ("end to end", "tokens/s", "accepted length", "predicted", "acceptance")
_LEGEND = {
    "ar": "the large model alone",
    "γ": "tokens that the draft proposes in a round",
    "end to end": "speedup from the file to the last token",
    "accepted length": "tokens that a round adds",
    "acceptance": "share of the proposed tokens that stay",
    "retention": "quality kept of ar's",
    "c": "a draft step, in steps of the target alone",
    "v": "a verification",
    "o": "the rest of a round",
    "predicted": "the speedup that these give",
}
WINNER = "*"
FEW_CLIPS = 20  # fewer are too few for a bootstrap, and no interval is shown


def result_table(results: Results, *, drafting: bool = False) -> Table:
    """A row for each mode; the winner is marked.

    :param drafting: only modes with profiled rounds.
    """
    best, clips = winner(results.modes), _clips(results)
    modes = [result for result in results.modes if not drafting or result.c is not None]
    styles: dict[int, Style] = {row: "best" for row, result in enumerate(modes) if result.variant == best}
    rows = [_cells(trusted(result, clips), best) for result in modes]
    return Table(HEADINGS, rows, optional=_OPTIONAL, legend=_LEGEND, styles=styles)


def _cells(result: ModeResult, best: Variant | None) -> tuple[str, ...]:
    name = result.variant.name + (f" {WINNER}" if result.variant == best else "")
    gamma = "" if result.gamma is None else str(result.gamma)
    return (
        name,
        gamma,
        spread(result.speedup_vs_ar),
        spread(result.end_to_end_speedup_vs_ar),
        number(result.tokens_per_s, 1),
        number(result.mean_accepted_length, 2),
        percent(result.acceptance_rate, 0),
        retention(result.retention),
        number(result.c, 3),
        number(result.v, 2),
        number(result.o, 2),
        number(result.predicted_speedup, 2),
    )


def throughput_table(results: Results) -> Table:
    """A row for each mode and number of captions at once."""
    legend = {
        "at once": "captions that are decoded together; of hf-batched, clips in a batch",
        "to one": "clips an hour, in those of the same mode one at a time",
        "to ar": "in those of ar one at a time",
        "CPU s/clip": "processor time of the process, without decoding videos",
        "same": "texts that are those of one at a time; of hf-batched, those of ar",
    }
    headings = ("mode", "at once", "clips/h", "to one", "to ar", "s/clip", "CPU s/clip", "tokens/s", "same")
    rows = [
        (
            str(row.mode) + (", no draft" if _goes_without(row) else ""),
            str(row.slots),
            number(row.clips_per_hour, 0),
            number(row.vs_one, 2),
            number(row.vs_ar, 2),
            number(row.seconds_per_clip, 3),
            number(row.processor_s_per_clip, 3),
            number(row.tokens_per_s, 1),
            percent(row.same_texts, 0),
        )
        for row in results.throughput
    ]
    return Table(headings, rows, optional=("CPU s/clip", "tokens/s", "s/clip"), legend=legend)


def _goes_without(row: Throughput) -> bool:
    return row.error is None and row.mode.drafts and not row.drafts


def _throughput_verdict(rows: Sequence[Throughput]) -> str:
    """Of the pair's own modes the number of captions at once with the most clips an hour."""
    own = [row for row in rows if not row.mode.is_peer and row.clips_per_hour is not None]
    best = max(own, key=lambda row: row.clips_per_hour or 0.0, default=None)
    if best is None:
        return "nothing was captioned"
    compared = [
        f"{ratio:.2f} times {what} one at a time"
        for ratio, what in ((best.vs_one, "as many as"), (best.vs_ar, "those of ar"))
        if ratio is not None
    ]
    if best.mode is BenchMode.AR:
        del compared[1:]
    told = f"{best.mode}, {best.slots} at once: {best.clips_per_hour:.0f} clips an hour"
    return ", ".join([told, *compared])


def contrast_table(results: Results) -> Table:
    """The pair's own rule against every other line; values above 1 or 100 % are in its favour."""
    return Table(
        ("line", "against", "speed", "accepted length", "quality"),
        [
            (
                contrast.line,
                contrast.other,
                spread(contrast.speed),
                estimate(contrast.accepted_length, 2),
                retention(contrast.quality),
            )
            for contrast in (trusted(contrast, _clips(results)) for contrast in results.contrasts)
        ],
        "Over the same answers, by so much the first is faster, accepts more, and keeps more",
        optional=("accepted length",),
    )


def spread(value: Spread | None) -> str:
    """``2.31 (2.20-2.44)``."""
    if value is None:
        return ""
    return f"{value.median:.2f}" + _ends(value.low, value.high, 1, 2)


def retention(value: Estimate | None, digits: int = 1) -> str:
    """``99.9 % (99.1-100.0)``."""
    if value is None:
        return ""
    return f"{100 * value.value:.{digits}f} %" + _ends(value.low, value.high, 100, digits)


def estimate(value: Estimate | None, digits: int) -> str:
    """``0.935 (0.921-0.948)``."""
    if value is None:
        return ""
    return f"{value.value:.{digits}f}" + _ends(value.low, value.high, 1, digits)


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int) -> str:
    return "" if value is None else f"{100 * value:.{digits}f} %"


def _ends(low: float | None, high: float | None, factor: float, digits: int) -> str:
    if low is None or high is None:
        return ""
    return f" ({factor * low:.{digits}f}-{factor * high:.{digits}f})"


def verdict(results: Results) -> str:
    """In one sentence which mode to take, by how much it is faster, and what that costs in quality."""
    if results.settings.slots:
        return _throughput_verdict(results.throughput)
    drafting = [result for result in results.modes if result.mode.drafts]
    if not results.settings.timed:
        kept = [f"{_name(result, drafting)}: {_kept(result)}" for result in drafting if result.mode.is_loose]
        return "; ".join([*kept[:1], "nothing was timed"])
    if best := leader(results.modes):
        times = f"{median_speedup(best):.1f} times as fast as {results.reference}"
        return f"{_name(best, drafting)}: {times}; {_kept(best)}"
    fastest = max(drafting, key=median_speedup, default=None)
    if fastest is None or fastest.speedup_vs_ar is None:
        return f"nothing was compared with {results.reference}"
    name, speed = _name(fastest, drafting), median_speedup(fastest)
    if speed <= 1:
        return (
            f"nothing is faster than {results.reference}: {name}, the fastest, is {speed:.2f} times as fast"
        )
    return (
        f"nothing is faster than {results.reference} and keeps {percent(MIN_RETENTION, 1)} of ar's quality:"
        f" {name} is {speed:.1f} times as fast; {_kept(fastest)}"
    )


def _name(result: ModeResult, among: Sequence[ModeResult]) -> str:
    """With its gamma only where the mode was run with several."""
    name = result.variant.name
    return name if [other.variant.name for other in among].count(name) == 1 else str(result.variant)


FACTS_TO_BE_SURE = round(RULE_OF_THREE / (1 - MIN_RETENTION))


def _kept(result: ModeResult) -> str:
    """What became of ar's quality, and how many facts would prove that it is kept."""
    if not result.mode.is_loose:
        return "it gives the target's own text"
    fidelity = result.fidelity or Fidelity(answers=0, clips=0)
    labelled = {"fact": fidelity.facts, "answer": fidelity.questions}
    qualities = {noun: quality for noun, quality in labelled.items() if quality is not None}
    if not qualities:
        if fidelity.content_kept is None:
            return "nothing is known of its quality"
        words = f"{percent(fidelity.content_kept.value, 1)} of the content words of ar's texts"
        if fidelity.freedom is None:
            return f"no right answers are known; it keeps {words}, and no control says whether that is enough"
        control = percent(fidelity.freedom.control_content, 1)
        told = f"no right answers are known; it keeps {words}, the target's own second choices {control}"
        return told if keeps_quality(result) else f"{told}; that it is enough is not shown"
    said = [_lost(noun, quality) for noun, quality in qualities.items()]
    if result.retention and result.retention.value >= MIN_RETENTION and not keeps_quality(result):
        few = any(quality.count < FACTS_TO_BE_SURE for quality in qualities.values())
        needed = f"{FACTS_TO_BE_SURE:,}" + (" of each" if len(qualities) > 1 else "")
        said.append(f"{needed if few else 'more clips'} are needed to be sure")
    return "; ".join(said)


def _lost(noun: str, quality: RelativeQuality) -> str:
    """``no fact of 38 lost``; a share where they were not counted, or where wrong ones were added."""
    if quality.lost is None or (quality.lost == 0 and quality.mode < quality.ar):
        return f"{percent(quality.mode / quality.ar if quality.ar else None, 1)} of ar's {noun}s"
    return f"{quality.lost or 'no'} {noun}{'s' if quality.lost > 1 else ''} of {quality.count:,} lost"


def notes(results: Results) -> Iterator[str]:
    """Remarks needed to read the table, one sentence each."""
    if results.settings.slots:
        yield from _throughput_notes(results)
        return
    for result in results.modes:
        if result.error is not None:
            yield f"{result.variant} cannot run: {result.error}"
        elif result.failed:
            yield f"{result.variant}: {result.failed} of {result.failed + result.answers} answers failed"
    read = [item for item in results.items if item.error is None]
    clips = _clips(results)
    ends = ", with 95 % intervals" if clips >= FEW_CLIPS else ""
    yield (
        f"{counted(len(read), 'prompt')} about {counted(clips, 'clip')}, measured"
        f" {'once' if results.settings.repeat == 1 else f'{results.settings.repeat} times'}, at most"
        f" {results.settings.max_new_tokens} tokens; speedups are medians over clips against"
        f" {results.reference}{ends}"
    )
    yield from few_clips(clips)
    for item in results.items:
        if item.error is not None:
            yield f"not measured: {item.id}: {item.error}"
    best = leader(results.modes)
    if best is not None and best.variant == winner(results.modes):
        if best.retention is None and best.mode.is_loose:
            yield (
                f"{WINNER} the fastest; its texts keep at least {percent(MIN_RETENTION, 1)} of the content"
                " words of ar's that the control keeps, and are no shorter and no more repetitive"
            )
        else:
            yield f"{WINNER} the fastest of those that keep {percent(MIN_RETENTION, 1)} of ar's quality"
    sure = max(filter(_is_sure, results.modes), key=median_speedup, default=None)
    if best is not None and sure is not None and not keeps_quality(best):
        speed = f"{median_speedup(sure):.1f} times as fast as {results.reference}"
        yield f"sure already: {_name(sure, results.modes)}, {speed}"
    if best is not None:
        yield from _faster(results.modes, best)
    yield machine(results.environment)


def _faster(modes: Sequence[ModeResult], best: ModeResult) -> Iterator[str]:
    """What is faster than the mode to take, and why it is not taken."""
    faster = [result for result in modes if median_speedup(result) > median_speedup(best)]
    for result in faster:
        if result.retention is not None:
            kept = percent(result.retention.value, 1)
            yield f"{result.variant} is faster, and keeps {kept} of ar's quality"
    unknown = [result for result in faster if result.mode.is_loose and result.retention is None]
    if fastest := max(unknown, key=median_speedup, default=None):
        yield f"{_name(fastest, modes)} is {median_speedup(fastest):.1f} times as fast; {_kept(fastest)}"


def _throughput_notes(results: Results) -> Iterator[str]:
    for row in results.throughput:
        if row.error is not None:
            yield f"{row.mode}, {row.slots} at once, cannot run: {row.error}"
    if any(_goes_without(row) for row in results.throughput):
        yield "no draft: beside so many it would cost more than it saves, and caption goes without it"
    repeat, clips = results.settings.repeat, _clips(results)
    yield (
        f"{counted(clips, 'clip')}, captioned {'once' if repeat == 1 else f'{repeat} times'} in each line,"
        f" at most {results.settings.max_new_tokens} tokens; from the first video to the last caption, in"
        " turns in one process" + ("; medians" if repeat > 1 else "")
    )
    most = max((row.slots for row in results.throughput), default=1)
    if most > 1 and clips < 2 * most:
        yield (
            f"{counted(clips, 'clip')} for {most} at once: the larger part of such a run is its end, at which"
            " slots are empty; name more clips"
        )
    for item in results.items:
        if item.error is not None:
            yield f"not measured: {item.id}: {item.error}"
    yield machine(results.environment)


def _is_sure(result: ModeResult) -> bool:
    return result.mode.drafts and keeps_quality(result) and median_speedup(result) > 1


def few_clips(clips: int) -> Iterator[str]:
    """Says that there are no intervals, if there are too few clips for them."""
    if clips < FEW_CLIPS:
        over = counted(clips, "clip")
        yield f"no intervals: over {over} they would be too narrow; {FEW_CLIPS} are the least"


def _clips(results: Results) -> int:
    """How many could be read."""
    return len({item.file_name for item in results.items if item.error is None})


def without_few(results: Results) -> Results:
    """The results with the intervals that are shown."""
    clips = _clips(results)
    return results.model_copy(update={"modes": tuple(trusted(result, clips) for result in results.modes)})


M = TypeVar("M", bound=FrozenModel)


def trusted(value: M, clips: int) -> M:
    """The figures without their intervals, if there are too few clips: a bootstrap makes them too narrow."""
    return value if clips >= FEW_CLIPS else _bare(value)


def _bare(value: M) -> M:
    parts = {name: getattr(value, name) for name in type(value).model_fields}
    bare: dict[str, object] = {
        name: _bare(part) for name, part in parts.items() if isinstance(part, FrozenModel)
    }
    if isinstance(value, Spread | Estimate):
        bare |= {"low": None, "high": None}
    return value.model_copy(update=bare)


def machine(environment: Environment) -> str:
    """The machine, dtypes and versions in one line."""
    dtypes = environment.target_dtype
    if environment.draft_dtype not in (None, environment.target_dtype):
        dtypes += f" and {environment.draft_dtype}"
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    return (
        f"{environment.device_name} ({environment.device}), {counted(environment.cores, 'core')},"
        f" {counted(environment.threads, 'thread')}, {dtypes}; {environment.platform}; {versions}"
    )


def markdown(results: Results) -> str:
    """``results.md``."""
    settings = results.settings
    if settings.slots:
        tables, explained = [throughput_table(results)], THROUGHPUT_TERMS
    else:
        tables = [result_table(results), contrast_table(results), fidelity_table(results)]
        explained = _TERMS
    lines = [
        "# lvspec bench",
        "",
        f"Pair {code(settings.pair)}: {code(settings.target)}"
        + (f" with {code(settings.draft)}" if settings.draft else ""),
        "",
        markdown_text(verdict(results)),
        "",
        *(line for table in tables for line in markdown_lines(table)),
        *(f"- {markdown_text(note)}" for note in notes(results)),
        "",
        f"Measured {results.created:%Y-%m-%d} with:",
        "",
        f"    {results.command}",
        "",
        explained,
    ]
    return "\n".join(lines) + "\n"


_TERMS = (
    "speedup: decoding only, seconds a token of the reference / of the mode. end to end: video, prefill"
    " and an answer as long as the reference's. c, v, o: a draft step, a verification and the overhead of"
    " a round, in steps of the reference; predicted: accepted length / (γ c + v + o)."
)
THROUGHPUT_TERMS = (
    "clips/h: from the first video to the last caption. to one: in clips an hour of the same mode one at a"
    " time; to ar: of ar one at a time. CPU s/clip: processor time of the process, without decoding videos."
    " same: texts that are those of one at a time; of hf-batched, those of ar."
)


def fidelity_table(results: Results) -> Table:
    """Quality relative to ar, for the modes with a comparison."""
    return Table(
        (
            "mode",
            "facts F1",
            "questions",
            "log probability",
            "content",
            "chrF",
            "ROUGE-L",
            "identical",
            "same answer",
        ),
        [
            (
                str(result.variant),
                number(fidelity.facts.mode, 3) if fidelity.facts else "",
                number(fidelity.questions.mode, 3) if fidelity.questions else "",
                number(fidelity.log_probability.value, 3) if fidelity.log_probability else "",
                percent(fidelity.content_kept.value, 1) if fidelity.content_kept else "",
                number(fidelity.chrf.value, 1) if fidelity.chrf else "",
                number(fidelity.rouge_l.value, 1) if fidelity.rouge_l else "",
                percent(fidelity.identical.value, 0) if fidelity.identical else "",
                percent(fidelity.same_answers.value, 0) if fidelity.same_answers else "",
            )
            for result in results.modes
            if (fidelity := result.fidelity) is not None
        ],
    )


def code(text: str) -> str:
    return "`" + text.replace("`", "'") + "`"
