"""``report.html``: all results in a folder as one page of charts, tables and texts side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lvspec_cli.bench import charts
from lvspec_cli.bench.lines import (
    contrast_table,
    estimate,
    machine,
    notes,
    number,
    percent,
    result_table,
    retention,
)
from lvspec_cli.bench.page import LEGEND, Example, Piece, Said, Section, chart, render_page
from lvspec_cli.bench.relevance import FILE_NAME as RELEVANCE_NAME
from lvspec_cli.bench.relevance import RelevanceResults, SchemeResult, best_of_each, read_relevance
from lvspec_cli.bench.results import FILE_NAME as RESULTS_NAME
from lvspec_cli.bench.results import BenchSettings, Results, read_results
from lvspec_cli.figures.answers import (
    BenchMode,
    Block,
    Estimate,
    Fidelity,
    Item,
    Kept,
    Kinds,
    Measurement,
    ModeResult,
    Variant,
)
from lvspec_cli.output.files import replacing
from lvspec_cli.table import Table, counted
from lvspec_cli.types import RelevanceName, TokenKind

FILE_NAME = "report.html"
MARK = b"<title>lvspec bench"
EXAMPLES = 4


def report(results: Results | None, relevance: RelevanceResults | None = None) -> str:
    """The page's HTML, from what ``lvspec bench`` and ``lvspec bench-relevance`` measured."""
    lead = [
        f"Measured {each.created:%Y-%m-%d %H:%M} UTC: {machine(each.environment)}."
        for each in (results, relevance)
        if each is not None
    ]
    sections: list[Section | None] = [relevance_section(relevance)] if relevance is not None else []
    if results is not None:
        lead.insert(0, _halves(results.settings))
        before = [_speed(results), _rounds(results), _fidelity(results), _examples(results)]
        sections = [*before, *sections, _setting(results)]
    pair = results.settings.pair if results else relevance.pair if relevance else ""
    return render_page(
        f"lvspec bench: {pair}", lead, [section for section in sections if section is not None]
    )


def write_report(folder: Path, results: Results | None = None) -> Path:
    """Writes the page of the results that lie in a folder.

    :param results: those of its results.json, where they are at hand.
    :raises LvspecError: they cannot be read, or the page cannot be written.
    """
    relevance = folder / RELEVANCE_NAME
    if results is None and (folder / RESULTS_NAME).exists():
        results = read_results(folder)
    text = report(results, read_relevance(relevance) if relevance.exists() else None)
    with replacing(folder / FILE_NAME) as stream:
        stream.write(text.encode())
    return folder / FILE_NAME


def _halves(settings: BenchSettings) -> str:
    return f"{settings.target} with {settings.draft}" if settings.draft else settings.target


# --- speed ---------------------------------------------------------------------------------


def _speed(results: Results) -> Section:
    table = result_table(results)
    notes_of_rows = {
        row: f"cannot run: {mode.error}" for row, mode in enumerate(results.modes) if mode.error is not None
    }
    rows = [cells[:2] if row in notes_of_rows else cells for row, cells in enumerate(table.rows)]
    contrasts = contrast_table(results)
    return Section(
        "Speed",
        text=tuple(note for note in notes(results) if note != machine(results.environment)),
        charts=(
            *chart(
                charts.speedup_bars(results.modes),
                f"Seconds of {results.reference} / seconds of the mode: median over clips, 95 % interval."
                " Full bars: decoding only, a token. Pale: from the video's file to an answer as long.",
            ),
            *chart(charts.lines_by_gamma(results.modes), "By the number of tokens that the draft proposes."),
        ),
        tables=(replace(table, rows=rows, notes=notes_of_rows), *([contrasts] if contrasts.rows else [])),
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
        (str(each.variant), *(str(getattr(each.kinds, kind)) for kind in Kinds.model_fields))
        for each in results.modes
        if each.kinds
    ]
    return Section(
        "Rounds",
        charts=drawn,
        tables=(Table(("tokens of the output", *Kinds.model_fields), rows),) if rows else (),
    )


# --- fidelity ------------------------------------------------------------------------------


def _fidelity(results: Results) -> Section | None:
    found = [(each, each.fidelity) for each in results.modes if each.fidelity is not None]
    if not found:
        return None
    drawn = chart(
        charts.tradeoff(results.modes),
        "Quality kept against speedup, for every setting; the upper right is best.",
    )
    tables = (
        _labelled(found),
        _by_kind(found, "facts_by_kind", "F1 of captions, by kind of fact"),
        _by_kind(found, "questions_by_kind", "Right answers, by kind of question"),
        _unlabelled(found),
    )
    return Section("Fidelity", charts=drawn, tables=tuple(table for table in tables if table is not None))


Found = Sequence[tuple[ModeResult, Fidelity]]


def _labelled(found: Found) -> Table | None:
    """Facts and answers where the right ones are known."""
    if not any(each.facts or each.questions for _, each in found):
        return None
    return Table(
        ("mode", "facts", "F1", "ar", "kept", "questions", "right", "ar", "kept"),
        [
            (str(result.variant), *_kept_cells(each.facts), *_kept_cells(each.questions))
            for result, each in found
        ],
        "Where the right answer is known",
    )


def _kept_cells(kept: Kept | None) -> tuple[str, str, str, str]:
    if kept is None:
        return ("", "", "", "")
    return (str(kept.count), number(kept.mode, 3), number(kept.ar, 3), retention(kept.retention))


def _by_kind(found: Found, field: str, title: str) -> Table | None:
    """A column for each kind, ``ar`` in the first row."""
    by_mode: list[tuple[str, dict[str, Kept]]] = [
        (str(result.variant), getattr(each, field)) for result, each in found
    ]
    kinds = list(dict.fromkeys(kind for _, kept in by_mode for kind in kept))
    if not kinds:
        return None
    first = {kind: kept for _, each in reversed(by_mode) for kind, kept in each.items()}
    body = [
        ("how many", *(str(first[kind].count) for kind in kinds)),
        ("ar", *(number(first[kind].ar, 3) for kind in kinds)),
        *(
            (name, *(number(kept[kind].mode, 3) if kind in kept else "" for kind in kinds))
            for name, kept in by_mode
            if name != BenchMode.AR
        ),
    ]
    return Table(("mode", *kinds), body, title)


def _unlabelled(found: Found) -> Table:
    """What needs no label: the target's own score of a text, and likeness to ar's."""
    body = [
        (
            str(result.variant),
            _signed(each.log_probability_change),
            estimate(each.chrf, 1),
            estimate(each.rouge_l, 1),
            percent(each.identical.value, 1) if each.identical else "",
            percent(each.same_answers.value, 1) if each.same_answers else "",
            percent(each.repetition, 2),
            number(each.length, 1),
        )
        for result, each in found
    ]
    return Table(
        (
            "mode", "log probability against ar, nats a token", "chrF", "ROUGE-L", "identical texts",
            "same short answers", "repeated 4-grams", "tokens an answer",
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
    """``ar`` first, then each other mode of ours that drafts, at its fastest gamma."""
    fastest: dict[str, ModeResult] = {}
    for each in modes:
        if each.error is not None or not each.answers or each.mode.is_plain or each.mode.is_peer:
            continue
        if each.label is not None:  # they would be too many side by side
            continue
        best = fastest.get(each.variant.name)
        if best is None or _median(each) > _median(best):
            fastest[each.variant.name] = each
    plain = [each.variant for each in modes if each.mode.is_plain and each.answers][:1]
    return (*plain, *(each.variant for each in fastest.values()))


def _median(result: ModeResult) -> float:
    return result.speedup_vs_ar.median if result.speedup_vs_ar else 0.0


def choose_examples(results: Results, variants: Sequence[Variant], count: int = EXAMPLES) -> list[Block]:
    """Blocks whose texts were kept by tokens: those with most different texts first, each item once."""
    found: dict[str, tuple[int, Block]] = {}
    for block in results.blocks:
        said = [
            each for variant in variants if (each := block.of(variant)) is not None and each.text is not None
        ]
        if block.item not in found and any(each.pieces for each in said):
            found[block.item] = (len({each.text for each in said}), block)
    ranked = sorted(found.values(), key=lambda each: -each[0])
    return [block for _, block in ranked[:count]]


def _example(item: Item, block: Block, variants: Sequence[Variant]) -> Example:
    measured = [(variant, block.of(variant)) for variant in variants]
    return Example(
        title=item.file_name,
        prompt=item.prompt,
        reference=item.reference or "",
        texts=tuple(_said(variant, each) for variant, each in measured if each and each.text is not None),
    )


def _said(variant: Variant, measured: Measurement) -> Said:
    pieces = measured.pieces or ((measured.text or "", TokenKind.TARGET),)
    facts = [counted(measured.output_tokens, "token")]
    if measured.rounds:
        facts.append(counted(measured.rounds, "round"))
    plain = variant.mode.is_plain
    return Said(
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
    """A value of the settings in words."""
    match value:
        case None:
            return "-"
        case dict():
            return ", ".join(f"{name} {_fact(each)}" for name, each in value.items())
        case list() | tuple():
            return ", ".join(map(_fact, value)) or "-"
        case float():
            return f"{value:g}"
    return str(value)


_SCHEME_HEADINGS = (
    "scheme", "AUC", "AUC of a caption", "best threshold", "precision", "recall", "precision at own",
    "recall at own", "µs a round", "ms a clip",
)  # fmt: skip


def scheme_table(results: RelevanceResults) -> Table:
    """A row for each scheme and layer, and for the best single head, the best first."""
    heads = [each for each in results.schemes if each.head is not None]
    rows = [_scheme_cells(each) for each in results.schemes if each.head is None or each in heads[:1]]
    return Table(_SCHEME_HEADINGS, rows, wide="scheme", styles={0: "best"})


def _scheme_cells(each: SchemeResult) -> tuple[str, ...]:
    return (
        str(each.scheme),
        number(each.auc, 3),
        estimate(each.auc_by_clip, 3),
        f"{each.best.threshold:.4g}",
        percent(each.best.precision, 1),
        percent(each.best.recall, 1),
        percent(each.at_threshold.precision, 1),
        percent(each.at_threshold.recall, 1),
        number(each.score_us, 0),
        number(each.prepare_ms, 1),
    )


def relevance_section(results: RelevanceResults) -> Section:
    """How well each scheme tells facts from fillers."""
    curves = {
        f"{each.scheme} ({each.auc:.3f})": (
            [point[0] for point in each.roc],
            [point[1] for point in each.roc],
        )
        for each in best_of_each(results)
    }
    areas: dict[int, dict[int, float]] = {}
    for each in results.schemes:
        if each.relevance is RelevanceName.ATTENTION and each.layer is not None:
            areas.setdefault(each.layer, {})[-1 if each.head is None else each.head] = each.auc
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
