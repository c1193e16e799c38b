"""Charts as inline SVG: deterministic bytes, text as text elements, lines in the page's text colour."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from lvspec_cli.bench.variants import gamma_order
from lvspec_cli.figures.answers import BenchMode, Estimate, Kinds, ModeResult, Spread
from lvspec_cli.figures.throughput import Throughput

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which are safe for colour-blind readers; each has its own marker, too.
_LOOKS = {
    BenchMode.AR: ("#666666", "s"),
    BenchMode.CONTROL: ("#666666", "d"),
    BenchMode.HF_AR: ("#999999", "D"),
    BenchMode.EXACT: ("#0072b2", "o"),
    BenchMode.EXACT_PRUNED: ("#56b4e9", "v"),
    BenchMode.LVSPEC: ("#d55e00", "^"),
    BenchMode.LVSPEC_PRUNED: ("#e69f00", "P"),
    BenchMode.HF_ASSISTED: ("#009e73", "X"),
    BenchMode.HF_BATCHED: ("#999999", "D"),
}
COLOURS = {mode: colour for mode, (colour, _) in _LOOKS.items()}
KIND_COLOURS = {"exact": "#009e73", "filler": "#e69f00", "shift": "#cc79a7", "target": "#999999"}
LINES = ("-", "--", ":", "-.")  # for the relevance schemes of one mode
ANNOTATED_COLUMNS = 14  # most columns of a heat map whose cells show their numbers
_INK = "#010203"  # placeholder for the page's text colour
_WIDTH = 8.0  # inches of 72 units
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lvspec",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid.axis": "both",
    "grid.color": _INK,
    "grid.alpha": 0.12,
    "legend.frameon": False,
    "text.parse_math": False,
}

Draw = Callable[["Figure"], None]


def svg(name: str, height: float, draw: Draw, *, width: float = _WIDTH) -> str:
    """An ``<svg>`` element for a page.

    :param name: prefix of its ids, unique in the page.
    :param height: inches, as ``width``.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r' xmlns(?::\w+)?="[^"]*"', "", text)  # implied in HTML
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    return text.replace("<svg", '<svg role="img"', 1)


# --- modes and gammas ----------------------------------------------------------------------


def speedup_bars(results: Sequence[ModeResult]) -> str | None:
    """Decoding and end-to-end speedup of every line, with intervals and the predicted speedup."""
    shown = [result for result in results if result.speedup_vs_ar is not None]
    if not shown:
        return None

    def draw(figure: Figure) -> None:
        axes = _rows(figure, [str(result.variant) for result in shown])
        for position, result in enumerate(shown):
            colour = COLOURS[result.mode]
            _bar(axes, position - 0.18, result.speedup_vs_ar, 0.34, colour)
            _bar(axes, position + 0.18, result.end_to_end_speedup_vs_ar, 0.26, colour, alpha=0.45)
            if result.predicted_speedup is not None:
                axes.plot(result.predicted_speedup, position - 0.18, "|", color=_INK, markersize=12, zorder=4)
        axes.axvline(1.0, color=_INK, linewidth=1)
        axes.set_xlim(left=0.0)
        axes.set_xlabel("speedup: decoding (full), end to end (pale); | predicted by c, v, o and t")

    return svg("speedups", 0.9 + 0.42 * len(shown), draw)


def _bar(
    axes: Axes, position: float, value: Spread | None, height: float, colour: str, *, alpha: float = 1.0
) -> None:
    if value is None:
        return
    axes.barh(position, value.median, height, color=colour, alpha=alpha, zorder=2)
    right = value.median
    if value.low is not None and value.high is not None:
        axes.plot([value.low, value.high], [position, position], color=_INK, linewidth=1, zorder=3)
        right = max(right, value.high)
    axes.annotate(
        f"{value.median:.2f}×", (right, position), (4, 0), textcoords="offset points", va="center", fontsize=8
    )


def lines_by_gamma(results: Sequence[ModeResult]) -> str | None:
    """Speedup and mean accepted length of each mode over gamma, side by side."""
    lines: dict[str, list[ModeResult]] = {}
    for result in results:
        if result.gamma is not None and result.answers:
            lines.setdefault(result.variant.name, []).append(result)
    if not lines:
        return None
    gammas = sorted({result.gamma for result in chain(*lines.values()) if result.gamma}, key=gamma_order)

    def plot(axes: Axes, range_of: Callable[[ModeResult], _Range | None]) -> None:
        for name, line in lines.items():
            points = [
                (gammas.index(result.gamma), range_)
                for result in line
                if result.gamma and (range_ := range_of(result))
            ]
            _line(axes, name, line[0], points)
        axes.set_xticks(range(len(gammas)), [str(gamma) for gamma in gammas])
        axes.set_xlim(-0.4, len(gammas) - 0.6)
        axes.set_xlabel("gamma")
        axes.grid(True)

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        plot(left, lambda result: _spread_range(result.speedup_vs_ar))
        left.axhline(1.0, color=_INK, linewidth=1)
        left.set_ylabel("decode speedup")
        plot(right, lambda result: _estimate_range(result.mean_accepted_length_interval))
        right.set_ylabel("mean accepted length")
        for axes in (left, right):
            axes.set_ylim(bottom=0.0)
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4)

    return svg("gammas", 3.6, draw)


def throughput_lines(rows: Sequence[Throughput]) -> str | None:
    """Clips an hour of each mode over the number of captions at once."""
    lines: dict[BenchMode, list[tuple[int, float]]] = {}
    for row in rows:
        if row.clips_per_hour is not None:
            lines.setdefault(row.mode, []).append((row.slots, row.clips_per_hour))
    if not lines:
        return None
    slots = sorted({slot for line in lines.values() for slot, _ in line})

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for mode, line in lines.items():
            colour, marker = _LOOKS[mode]
            positions = [slots.index(slot) for slot, _ in line]
            axes.plot(positions, [rate for _, rate in line], label=mode, color=colour, marker=marker)
        axes.set_xticks(range(len(slots)), list(map(str, slots)))
        axes.set_xlabel("captions at once")
        axes.set_ylabel("clips an hour")
        axes.set_ylim(bottom=0.0)
        axes.grid(True)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4)

    return svg("throughput", 3.6, draw)


_Range = tuple[float, float, float]  # value, low, high


def _spread_range(spread: Spread | None) -> _Range | None:
    if spread is None:
        return None
    return _range(spread.median, spread.low, spread.high)


def _estimate_range(estimate: Estimate | None, scale: float = 1.0) -> _Range | None:
    if estimate is None:
        return None
    value, low, high = _range(estimate.value, estimate.low, estimate.high)
    return value * scale, low * scale, high * scale


def _range(value: float, low: float | None, high: float | None) -> _Range:
    return value, value if low is None else low, value if high is None else high


def _line(axes: Axes, name: str, result: ModeResult, points: Sequence[tuple[float, _Range]]) -> None:
    if not points:
        return
    colour, marker, style = _style_of(name, result.mode)
    positions, ranges = [position for position, _ in points], [range_ for _, range_ in points]
    axes.errorbar(
        positions, [range_[0] for range_ in ranges], yerr=_error_bars(ranges),
        label=name, color=colour, marker=marker, linestyle=style, linewidth=1.4, elinewidth=1,
    )  # fmt: skip


def _style_of(name: str, mode: BenchMode) -> tuple[str, str, str]:
    """Colour and marker of the mode; a line style for its relevance or named rule."""
    suffix = name.removeprefix(mode)
    style = LINES[1 + zlib.crc32(suffix.encode()) % (len(LINES) - 1)] if suffix else LINES[0]
    return *_LOOKS[mode], style


# --- fidelity ------------------------------------------------------------------------------


def tradeoff(results: Sequence[ModeResult]) -> str | None:
    """Retention over speedup, a point for every line of the table; curves connect the gammas of a mode."""
    axis = quality_axis(results)
    if axis is None:
        return None
    label, quality_of = axis
    lines: dict[str, list[tuple[ModeResult, _Range, _Range]]] = {}
    for result in results:
        speed, quality = _spread_range(result.speedup_vs_ar), quality_of(result)
        if speed and quality:
            lines.setdefault(result.variant.name, []).append((result, speed, quality))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, points in lines.items():
            colour, marker, style = _style_of(name, points[0][0].mode)
            speeds, qualities = [speed for _, speed, _ in points], [quality for *_, quality in points]
            axes.errorbar(
                [speed[0] for speed in speeds], [quality[0] for quality in qualities],
                xerr=_error_bars(speeds), yerr=_error_bars(qualities),
                label=name, color=colour, marker=marker, linestyle=style, linewidth=1, elinewidth=0.8,
            )  # fmt: skip
            for result, speed, quality in points:
                if result.gamma is not None:
                    axes.annotate(
                        result.label or str(result.gamma),
                        (speed[0], quality[0]),
                        (5, 4),
                        textcoords="offset points",
                        fontsize=8,
                    )
        axes.grid(True)
        axes.set_xlabel("decode speedup (at the points: gamma, or the rule's name)")
        axes.set_ylabel(label)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4)

    return svg("tradeoff", 4.4, draw) if lines else None


def quality_axis(
    results: Sequence[ModeResult],
) -> tuple[str, Callable[[ModeResult], _Range | None]] | None:
    """The first known of retention, the target's log probability, and similarity to ar's text."""
    axes: tuple[tuple[str, Callable[[ModeResult], _Range | None]], ...] = (
        ("quality kept, % of ar", lambda result: _estimate_range(result.retention, 100.0)),
        (
            "log probability by the target, nats a token against ar",
            lambda result: (
                _estimate_range(result.fidelity.log_probability_change) if result.fidelity else None
            ),
        ),
        (
            "chrF to the text of ar",
            lambda result: _estimate_range(result.fidelity.chrf) if result.fidelity else None,
        ),
    )
    return next((axis for axis in axes if any(axis[1](result) for result in results)), None)


def _error_bars(ranges: Sequence[_Range]) -> list[list[float]]:
    """(2, points): lengths below and above the values."""
    return [
        [max(0.0, range_[0] - range_[1]) for range_ in ranges],
        [max(0.0, range_[2] - range_[0]) for range_ in ranges],
    ]


# --- rounds and tokens ---------------------------------------------------------------------


def length_histograms(results: Sequence[ModeResult]) -> str | None:
    """Histograms of accepted lengths (share of rounds), one for each line with rounds."""
    shown = [result for result in results if result.accepted_lengths]
    if not shown:
        return None
    longest = max(max(result.accepted_lengths) for result in shown)
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for axes, result in zip(grid, shown, strict=False):
            rounds = sum(result.accepted_lengths.values())
            lengths = list(result.accepted_lengths)
            shares = [100 * result.accepted_lengths[length] / rounds for length in lengths]
            axes.bar(lengths, shares, color=COLOURS[result.mode], zorder=2)
            if result.mean_accepted_length is not None:
                axes.axvline(result.mean_accepted_length, color=_INK, linewidth=1, linestyle="--")
            axes.set_title(str(result.variant), fontsize=9)
            axes.set_xlim(0.3, longest + 0.7)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.grid(True, axis="y")
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        figure.supxlabel("accepted length (dashed: mean)", fontsize=10)
        figure.supylabel("% of rounds", fontsize=10)

    return svg("histograms", 0.6 + 1.6 * rows, draw)


def kind_bars(results: Sequence[ModeResult]) -> str | None:
    """Output tokens by kind, in per cent."""
    shown = [(str(result.variant), kinds) for result in results if (kinds := result.kinds) and _total(kinds)]
    if not shown:
        return None

    def draw(figure: Figure) -> None:
        parts = {
            kind: [100 * getattr(kinds, kind) / _total(kinds) for _, kinds in shown] for kind in KIND_COLOURS
        }
        axes = _stacked(figure, [name for name, _ in shown], parts, KIND_COLOURS)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of output tokens")

    return svg("kinds", 1.1 + 0.3 * len(shown), draw)


def _total(kinds: Kinds) -> int:
    return kinds.exact + kinds.filler + kinds.shift + kinds.target


def round_costs(results: Sequence[ModeResult]) -> str | None:
    """The cost of a round in steps of ar (drafting, verification, rest), and the tokens that it gives."""
    shown = [result for result in results if result.costs and None not in (result.c, result.v, result.o)]
    if not shown:
        return None
    colours = {"drafting": "#0072b2", "verification": "#d55e00", "rest": "#999999"}

    def draw(figure: Figure) -> None:
        parts = {
            "drafting": [costs.drafted_a_round * (r.c or 0.0) for r in shown if (costs := r.costs)],
            "verification": [result.v or 0.0 for result in shown],
            "rest": [result.o or 0.0 for result in shown],
        }
        axes = _stacked(figure, [str(result.variant) for result in shown], parts, colours)
        for position, result in enumerate(shown):
            axes.plot(result.mean_accepted_length or 0.0, position, "d", color=_INK, markersize=6, zorder=4)
        axes.set_xlim(left=0.0)
        axes.set_xlabel("steps of ar that a round takes; ◆ tokens it brings")

    return svg("costs", 1.1 + 0.3 * len(shown), draw)


# --- relevance -----------------------------------------------------------------------------


def roc_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str | None:
    """ROC curves: false and true positive rates (0 to 1), by scheme name."""
    if not curves:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":")
        palette = list(COLOURS.values())
        for number, (name, (false, true)) in enumerate(curves.items()):
            colour, style = palette[(number + 2) % len(palette)], LINES[number // len(palette) % len(LINES)]
            axes.plot(false, true, label=name, color=colour, linestyle=style, linewidth=1.4)
        axes.set_aspect("equal")
        axes.set_xlabel("filler tokens taken for anchors")
        axes.set_ylabel("fact tokens found")
        axes.grid(True)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")

    return svg("roc", 4.6, draw)


def head_map(areas: Sequence[Sequence[float]]) -> str | None:
    """A heat map of AUCs: rows are layers; columns are the mean over heads, then each head."""
    if not areas or not areas[0]:
        return None
    height, width = len(areas), len(areas[0])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.pcolormesh(areas, cmap="cividis", vmin=0.5, vmax=1.0)
        if width <= ANNOTATED_COLUMNS:
            for row, line in enumerate(areas):
                for column, area in enumerate(line):
                    ink = "black" if area > 0.75 else "white"
                    centre = (column + 0.5, row + 0.5)
                    axes.text(*centre, f"{area:.2f}", ha="center", va="center", color=ink, fontsize=8)
        axes.set_yticks([row + 0.5 for row in range(height)], [str(row) for row in range(height)])
        names = ["largest", *(str(head) for head in range(width - 1))]
        axes.set_xticks([column + 0.5 for column in range(width)], names)
        axes.invert_yaxis()
        axes.set_xlabel("head")
        axes.set_ylabel("layer")

    return svg("heads", 0.9 + 0.28 * height, draw, width=min(_WIDTH, 1.6 + 0.55 * width))


# --- parts ---------------------------------------------------------------------------------


def _rows(figure: Figure, names: Sequence[str]) -> Axes:
    """Axes with one row for each name, from top to bottom."""
    axes: Any = figure.subplots()
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    return axes


def _stacked(
    figure: Figure, names: Sequence[str], parts: Mapping[str, Sequence[float]], colours: Mapping[str, str]
) -> Axes:
    axes = _rows(figure, names)
    ends = [0.0] * len(names)
    for name, values in parts.items():
        axes.barh(range(len(names)), values, 0.7, left=ends, color=colours[name], label=name, zorder=2)
        ends = [end + value for end, value in zip(ends, values, strict=True)]
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(parts))
    return axes
