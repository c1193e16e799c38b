"""``report.html``: all results of a folder as one self-contained page of charts, tables and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lvspec_cli.bench import charts
from lvspec_cli.bench.lines import (
    THROUGHPUT_TERMS,
    contrast_table,
    estimate,
    machine,
    notes,
    number,
    percent,
    result_table,
    retention,
    throughput_table,
    verdict,
    without_few,
)
from lvspec_cli.bench.relevance import FILE_NAME as RELEVANCE_NAME
from lvspec_cli.bench.relevance import RelevanceResults, SchemeResult, best_by_relevance, read_relevance
from lvspec_cli.bench.results import FILE_NAME as RESULTS_NAME
from lvspec_cli.bench.results import Results, read_results
from lvspec_cli.escape import visible
from lvspec_cli.figures.answers import (
    BenchMode,
    Block,
    Estimate,
    Fidelity,
    Item,
    Kinds,
    Measurement,
    ModeResult,
    RelativeQuality,
    Variant,
)
from lvspec_cli.figures.summary import median_speedup
from lvspec_cli.output.files import replacing
from lvspec_cli.table import Table, counted
from lvspec_cli.types import RelevanceName, TokenKind

LEGEND = (
    (TokenKind.EXACT.value, "the draft's token is the target's own"),
    (TokenKind.FILLER.value, "loosely accepted"),
    (TokenKind.SHIFT.value, "accepted in another place"),
    (TokenKind.TARGET.value, "the target's own: first, corrected or bonus"),
)


@dataclass(frozen=True)
class Chart:
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Piece:
    text: str
    kind: str  # of token


@dataclass(frozen=True)
class ExampleText:
    name: str
    pieces: tuple[Piece, ...]
    note: str = ""


@dataclass(frozen=True)
class Example:
    title: str
    prompt: str
    texts: tuple[ExampleText, ...]
    reference: str = ""


@dataclass(frozen=True)
class Section:
    title: str
    text: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    examples: tuple[Example, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    code: str = ""


def render_page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The page's HTML. All text is escaped, and control characters are made visible."""
    environment = Environment(
        loader=PackageLoader("lvspec_cli.bench", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_visible,
    )
    return environment.get_template("page.html.jinja").render(title=title, lead=lead, sections=sections)


def _visible(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def chart(svg: str | None, caption: str) -> tuple[Chart, ...]:
    """One chart; none if there is nothing to draw."""
    # We drew it ourselves: it holds no text from outside.
    return (Chart(Markup(svg), caption),) if svg else ()  # noqa: S704


FILE_NAME = "report.html"
MARK = b"<title>lvspec bench"
EXAMPLES = 4


def report(results: Results | None, relevance: RelevanceResults | None = None) -> str:
    """The page's HTML, from the results of ``lvspec bench`` and ``lvspec bench-relevance``."""
    lead = [
        f"Measured {source.created:%Y-%m-%d %H:%M} UTC: {machine(source.environment)}."
        for source in (results, relevance)
        if source is not None
    ]
    sections: list[Section | None] = [relevance_section(relevance)] if relevance is not None else []
    if results is not None:
        target, draft = results.settings.target, results.settings.draft
        lead.insert(0, f"{target} with {draft}" if draft else target)
        drawn = without_few(results)
        figures = (
            [_throughput(results)]
            if results.settings.slots
            else [_speed(results, drawn), _rounds(drawn), _fidelity(drawn), _examples(results)]
        )
        sections = [*figures, *sections, _setting(results)]
    pair = results.settings.pair if results else relevance.pair if relevance else ""
    return render_page(
        f"lvspec bench: {pair}", lead, [section for section in sections if section is not None]
    )


def write_report(folder: Path, results: Results | None = None) -> Path:
    """Writes the page for the results of a folder.

    :param results: the content of its results.json, if it is loaded already.
    :raises LvspecError: the results cannot be read, or the page cannot be written.
    """
    relevance = folder / RELEVANCE_NAME
    if results is None and (folder / RESULTS_NAME).exists():
        results = read_results(folder)
    text = report(results, read_relevance(relevance) if relevance.exists() else None)
    with replacing(folder / FILE_NAME) as stream:
        stream.write(text.encode())
    return folder / FILE_NAME


# --- speed ---------------------------------------------------------------------------------


def _speed(results: Results, drawn: Results) -> Section:
    """:param drawn: the same without the intervals that are not shown."""
    table = result_table(results)
    notes_of_rows = {
        row: f"cannot run: {mode.error}" for row, mode in enumerate(results.modes) if mode.error is not None
    }
    rows = [cells[:2] if row in notes_of_rows else cells for row, cells in enumerate(table.rows)]
    contrasts = contrast_table(results)
    return Section(
        "Speed",
        text=(
            verdict(results),
            *(note for note in notes(results) if note != machine(results.environment)),
        ),
        charts=(
            *chart(
                charts.speedup_bars(drawn.modes),
                f"Seconds of {results.reference} / seconds of the mode: median over clips, 95 % interval."
                " Full bars: decoding only, a token. Pale: from the video's file to an answer as long.",
            ),
            *chart(charts.lines_by_gamma(drawn.modes), "By the number of tokens that the draft proposes."),
        ),
        tables=(replace(table, rows=rows, notes=notes_of_rows), *([contrasts] if contrasts.rows else [])),
    )


def _throughput(results: Results) -> Section:
    return Section(
        "Throughput",
        text=(
            verdict(results),
            *(note for note in notes(results) if note != machine(results.environment)),
            THROUGHPUT_TERMS,
        ),
        charts=chart(
            charts.throughput_lines(results.throughput),
            "Clips an hour by how many are captioned together, from the first video to the last caption.",
        ),
        tables=(throughput_table(results),),
    )


def _rounds(results: Results) -> Section | None:
    drawn = (
        *chart(
            charts.length_histograms(results.modes),
            "Accepted length: tokens that a round adds to the output, the target's own included.",
        ),
        *chart(charts.kind_bars(results.modes), "Why the tokens of the output stand there."),
        *chart(
            charts.round_costs(results.modes),
            "What a round costs against what it brings: it pays where the mark stands right of its bar.",
        ),
    )
    if not drawn:
        return None
    rows = [
        (str(result.variant), *(str(getattr(result.kinds, kind)) for kind in Kinds.model_fields))
        for result in results.modes
        if result.kinds
    ]
    return Section(
        "Rounds",
        charts=drawn,
        tables=(Table(("tokens of the output", *Kinds.model_fields), rows),) if rows else (),
    )


# --- fidelity ------------------------------------------------------------------------------


def _fidelity(results: Results) -> Section | None:
    rows = [(result, result.fidelity) for result in results.modes if result.fidelity is not None]
    if not rows:
        return None
    drawn = chart(
        charts.tradeoff(results.modes),
        "Quality kept against speedup, for every setting; the upper right is best.",
    )
    tables = (
        _labelled(rows),
        _by_kind(rows, "facts_by_kind", "F1 of captions, by kind of fact"),
        _by_kind(rows, "questions_by_kind", "Right answers, by kind of question"),
        _unlabelled(rows),
    )
    return Section("Fidelity", charts=drawn, tables=tuple(table for table in tables if table is not None))


FidelityRows = Sequence[tuple[ModeResult, Fidelity]]


def _labelled(rows: FidelityRows) -> Table | None:
    """Quality by labels: facts and answers; None without labels."""
    if not any(fidelity.facts or fidelity.questions for _, fidelity in rows):
        return None
    return Table(
        ("mode", "facts", "F1", "ar", "kept", "questions", "right", "ar", "kept"),
        [
            (str(result.variant), *_quality_cells(fidelity.facts), *_quality_cells(fidelity.questions))
            for result, fidelity in rows
        ],
        "Where the right answer is known",
    )


def _quality_cells(quality: RelativeQuality | None) -> tuple[str, str, str, str]:
    if quality is None:
        return ("", "", "", "")
    return (str(quality.count), number(quality.mode, 3), number(quality.ar, 3), retention(quality.retention))


def _by_kind(rows: FidelityRows, field: str, title: str) -> Table | None:
    """A column for each kind; counts and ``ar`` in the first rows."""
    by_mode: list[tuple[str, dict[str, RelativeQuality]]] = [
        (str(result.variant), getattr(fidelity, field)) for result, fidelity in rows
    ]
    kinds = list(dict.fromkeys(kind for _, qualities in by_mode for kind in qualities))
    if not kinds:
        return None
    first = {kind: quality for _, qualities in reversed(by_mode) for kind, quality in qualities.items()}
    body = [
        ("how many", *(str(first[kind].count) for kind in kinds)),
        ("ar", *(number(first[kind].ar, 3) for kind in kinds)),
        *(
            (name, *(number(qualities[kind].mode, 3) if kind in qualities else "" for kind in kinds))
            for name, qualities in by_mode
            if name != BenchMode.AR
        ),
    ]
    return Table(("mode", *kinds), body, title)


def _unlabelled(rows: FidelityRows) -> Table:
    """Figures without labels: the target's score of the texts, and their similarity to ar's."""
    body = [
        (
            str(result.variant),
            _signed(fidelity.log_probability_change),
            percent(fidelity.content_kept.value, 1) if fidelity.content_kept else "",
            estimate(fidelity.chrf, 1),
            estimate(fidelity.rouge_l, 1),
            percent(fidelity.identical.value, 1) if fidelity.identical else "",
            percent(fidelity.same_answers.value, 1) if fidelity.same_answers else "",
            percent(fidelity.repetition, 2),
            number(fidelity.length, 1),
        )
        for result, fidelity in rows
    ]
    return Table(
        (
            "mode", "log probability against ar, nats a token", "content words kept", "chrF", "ROUGE-L",
            "identical texts", "same short answers", "repeated 4-grams", "tokens an answer",
        ),
        body,
        "Against the texts of ar",
    )  # fmt: skip


def _signed(value: Estimate | None) -> str:
    if value is None:
        return ""
    ends = "" if value.low is None or value.high is None else f" ({value.low:+.3f} to {value.high:+.3f})"
    return f"{value.value:+.3f}{ends}"


# --- texts ---------------------------------------------------------------------------------


def _examples(results: Results) -> Section | None:
    variants = shown_variants(results.modes)
    items = {item.id: item for item in results.items}
    shown = choose_examples(results, variants)
    if not shown:
        return None
    return Section(
        "Texts",
        text=("Of each mode its fastest setting. Texts that differ from ar's come first.",),
        examples=tuple(_example(items[block.item], block, variants) for block in shown),
        legend=LEGEND,
    )


def shown_variants(modes: Sequence[ModeResult]) -> tuple[Variant, ...]:
    """``ar``, then each of our own modes that drafts, at its fastest gamma; without named rules."""
    fastest: dict[str, ModeResult] = {}
    for result in modes:
        if result.error is not None or not result.answers or result.mode.is_plain or result.mode.is_peer:
            continue
        if result.label is not None:  # too many to show side by side
            continue
        name = result.variant.name
        fastest[name] = max(fastest.get(name, result), result, key=median_speedup)
    plain = [result.variant for result in modes if result.mode.is_plain and result.answers][:1]
    return (*plain, *(result.variant for result in fastest.values()))


def choose_examples(results: Results, variants: Sequence[Variant], count: int = EXAMPLES) -> list[Block]:
    """Blocks with texts stored token by token: those with most different texts first, one for each item."""
    chosen: dict[str, tuple[int, Block]] = {}
    for block in results.blocks:
        answers = [answer for _, answer in _answers(block, variants)]
        if block.item not in chosen and any(answer.pieces for answer in answers):
            chosen[block.item] = (len({answer.text for answer in answers}), block)
    ranked = sorted(chosen.values(), key=lambda candidate: -candidate[0])
    return [block for _, block in ranked[:count]]


def _answers(block: Block, variants: Sequence[Variant]) -> list[tuple[Variant, Measurement]]:
    """The block's answers with a text."""
    answers = ((variant, block.of(variant)) for variant in variants)
    return [(variant, answer) for variant, answer in answers if answer and answer.text is not None]


def _example(item: Item, block: Block, variants: Sequence[Variant]) -> Example:
    return Example(
        title=item.file_name,
        prompt=item.prompt,
        reference=item.reference or "",
        texts=tuple(_example_text(variant, answer) for variant, answer in _answers(block, variants)),
    )


def _example_text(variant: Variant, measured: Measurement) -> ExampleText:
    pieces = measured.pieces or ((measured.text or "", TokenKind.TARGET),)
    facts = [counted(measured.output_tokens, "token")]
    if measured.rounds:
        facts.append(counted(measured.rounds, "round"))
    plain = variant.mode.is_plain
    return ExampleText(
        name=str(variant),
        pieces=tuple(Piece(text, "" if plain else kind.value) for text, kind in pieces),
        note=", ".join(facts),
    )


# --- the setting ---------------------------------------------------------------------------


def _setting(results: Results) -> Section:
    return Section(
        "Setting",
        tables=(
            _facts(results.environment.model_dump(mode="json"), "Environment"),
            _facts(results.settings.model_dump(mode="json"), "Settings"),
        ),
        code=results.command,
    )


def _facts(values: dict[str, Any], title: str) -> Table:
    return Table((), [(name, _fact(value)) for name, value in values.items()], title)


def _fact(value: Any) -> str:
    """A value of the settings as text."""
    match value:
        case None:
            return "-"
        case dict():
            return ", ".join(f"{name} {_fact(item)}" for name, item in value.items())
        case list() | tuple():
            return ", ".join(map(_fact, value)) or "-"
        case float():
            return f"{value:g}"
    return str(value)


_SCHEME_HEADINGS = (
    "scheme", "AUC", "AUC of a caption", "best threshold", "precision", "recall", "precision at own",
    "recall at own", "µs a round", "ms a clip",
)  # fmt: skip
_SCHEME_OPTIONAL = ("ms a clip", "µs a round", "precision", "recall", "best threshold")


def scheme_table(results: RelevanceResults) -> Table:
    """A row for each scheme and layer, and for the best single head; the best first."""
    heads = [result for result in results.schemes if result.head is not None]
    rows = [_scheme_cells(result) for result in results.schemes if result.head is None or result in heads[:1]]
    return Table(_SCHEME_HEADINGS, rows, optional=_SCHEME_OPTIONAL, styles={0: "best"})


def _scheme_cells(result: SchemeResult) -> tuple[str, ...]:
    return (
        str(result.scheme),
        number(result.auc, 3),
        estimate(result.auc_by_clip, 3),
        f"{result.best.threshold:.4g}",
        percent(result.best.precision, 1),
        percent(result.best.recall, 1),
        percent(result.at_threshold.precision, 1),
        percent(result.at_threshold.recall, 1),
        number(result.score_us, 0),
        number(result.prepare_ms, 1),
    )


def relevance_section(results: RelevanceResults) -> Section:
    """How well each scheme separates facts from fillers."""
    curves = {
        f"{result.scheme} ({result.auc:.3f})": (
            [point[0] for point in result.roc],
            [point[1] for point in result.roc],
        )
        for result in best_by_relevance(results)
    }
    areas: dict[int, dict[int, float]] = {}
    for result in results.schemes:
        if result.relevance is RelevanceName.ATTENTION and result.layer is not None:
            areas.setdefault(result.layer, {})[-1 if result.head is None else result.head] = result.auc
    table = [[row[head] for head in sorted(row)] for _, row in sorted(areas.items())]
    return Section(
        "Relevance",
        text=(
            f"Pair {results.pair}: {results.facts} tokens of facts and {results.fillers} others in"
            f" {results.clips} captions by the"
            f" target itself. Own: the pair's threshold, {results.threshold:g}. A round has"
            f" {results.gamma + 1} rows.",
            *(f"Not measured: {name}: {cause}." for name, cause in results.unread.items()),
        ),
        charts=(
            *chart(
                charts.roc_curves(curves), "Of every scheme its best layer, with the area under its curve."
            ),
            *chart(
                charts.head_map(table),
                "Attention: area under the curve by layer and head; first the largest, as the rule takes it.",
            ),
        ),
        tables=(scheme_table(results),),
        code=results.command,
    )
