"""What ``lvspec bench-relevance`` found, as rows of a table and a section of the report."""

from __future__ import annotations

from lvspec_cli.bench import charts
from lvspec_cli.bench.lines import estimate, number, percent
from lvspec_cli.bench.page import Row, Section, Table, chart
from lvspec_cli.bench.relevance import RelevanceResults, SchemeResult, best_of_each
from lvspec_cli.types import RelevanceName

SCHEME_HEADINGS = (
    "scheme", "AUC", "AUC of a caption", "best threshold", "precision", "recall", "precision at own",
    "recall at own", "µs a round", "ms a clip",
)  # fmt: skip


def scheme_rows(results: RelevanceResults) -> list[tuple[str, ...]]:
    """A row for each scheme and layer, and for the best single head, the best first."""
    heads = [each for each in results.schemes if each.head is not None]
    return [_scheme_cells(each) for each in results.schemes if each.head is None or each in heads[:1]]


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
        tables=(Table(SCHEME_HEADINGS, tuple(map(Row, scheme_rows(results)))),),
        code=results.command,
    )
