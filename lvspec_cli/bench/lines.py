"""Results as text: the tables of the terminal, of pipes and of ``results.md``, and their notes."""

from __future__ import annotations

from collections.abc import Iterator

from lvspec_cli.bench.results import Environment, Results
from lvspec_cli.figures.answers import Estimate, ModeResult, Spread, Variant
from lvspec_cli.figures.summary import MIN_RETENTION, fastest_unproven, winner
from lvspec_cli.table import Style, Table, counted, markdown_lines, markdown_text

HEADINGS = (
    "mode", "γ", "speedup", "end to end", "tokens/s", "accepted length", "acceptance", "retention",
    "c", "v", "o", "predicted",
)  # fmt: skip
WINNER = "*"
FEW_CLIPS = 20  # fewer are too few for a bootstrap


def result_table(results: Results, *, drafting: bool = False) -> Table:
    """A row for each mode; the winner is marked.

    :param drafting: only modes with profiled rounds.
    """
    best = winner(results.modes)
    modes = [result for result in results.modes if not drafting or result.c is not None]
    styles: dict[int, Style] = {row: "best" for row, result in enumerate(modes) if result.variant == best}
    return Table(HEADINGS, [_cells(result, best) for result in modes], styles=styles)


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
            for contrast in results.contrasts
        ],
        "Over the same answers, by so much the first is faster, accepts more, and keeps more",
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


def notes(results: Results) -> Iterator[str]:
    """Remarks needed to read the table, one sentence each."""
    for result in results.modes:
        if result.error is not None:
            yield f"{result.variant} cannot run: {result.error}"
        elif result.failed:
            yield f"{result.variant}: {result.failed} of {result.failed + result.answers} answers failed"
    read = [item for item in results.items if item.error is None]
    clips = len({item.file_name for item in read})
    yield (
        f"{len(read)} prompts about {clips} clips, {results.settings.repeat} times each, at most"
        f" {results.settings.max_new_tokens} tokens; speedups are medians over clips against"
        f" {results.reference}, with 95 % intervals"
    )
    yield from few_clips(clips)
    for item in results.items:
        if item.error is not None:
            yield f"not measured: {item.id}: {item.error}"
    if not results.settings.timed:
        yield "nothing was timed: texts alone were wanted"
    elif best := winner(results.modes):
        best_result = next(result for result in results.modes if result.variant == best)
        if best_result.retention is None and best_result.mode.is_loose:
            yield (
                f"{WINNER} the fastest; no right answers are known, and its texts keep as many of the content"
                f" words of ar's as those of the control do, by at least {percent(MIN_RETENTION, 1)} (lower"
                " end of the interval), are no shorter and no more repetitive"
            )
        else:
            yield (
                f"{WINNER} the fastest of those that keep {percent(MIN_RETENTION, 1)} of ar's quality"
                " (lower end of the interval)"
            )
    else:
        least = percent(MIN_RETENTION, 1)
        yield f"none is faster than {results.reference} and shown to keep {least} of its quality"
    if unproven := fastest_unproven(results.modes):
        yield (
            f"{unproven.variant} is faster and keeps {retention(unproven.retention)} here:"
            " more clips could show that it keeps enough"
        )
    yield machine(results.environment)


def few_clips(clips: int) -> Iterator[str]:
    """A warning that the intervals are too narrow, if there are few clips."""
    if clips < FEW_CLIPS:
        yield f"intervals over fewer than {FEW_CLIPS} clips ({clips} here) are narrower than they should be"


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
    lines = [
        "# lvspec bench",
        "",
        f"Pair {code(settings.pair)}: {code(settings.target)}"
        + (f" with {code(settings.draft)}" if settings.draft else ""),
        "",
        *markdown_lines(result_table(results)),
        *markdown_lines(contrast_table(results)),
        *markdown_lines(fidelity_table(results)),
        *(f"- {markdown_text(note)}" for note in notes(results)),
        "",
        f"Measured {results.created:%Y-%m-%d} with:",
        "",
        f"    {results.command}",
        "",
        "speedup: decoding only, seconds a token of the reference / of the mode. end to end: video, prefill"
        " and an answer as long as the reference's. c, v, o: a draft step, a verification and the overhead of"
        " a round, in steps of the reference; predicted: accepted length / (γ c + v + o).",
    ]
    return "\n".join(lines) + "\n"


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
