"""``results.json``: the results of ``lvspec bench``, and the comparison of two of them.

    items          the prompts about each clip, with labels where the right answer is known
    blocks         one item in one repeat: every mode once, one after the other, in one process
    modes          figures of each mode and gamma over all blocks, computed from the other parts

With ``--throughput`` there are ``throughput`` and ``runs`` in place of ``modes`` and ``blocks``.

Times are in seconds, rates in tokens a second, shares from 0 to 1. Unknown values are null.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator

from lvspec_cli import __version__
from lvspec_cli.errors import NoInputError, UsageError
from lvspec_cli.figures.answers import (
    BenchMode,
    Block,
    Contrast,
    FrozenModel,
    Item,
    Measurement,
    ModeResult,
    Variant,
)
from lvspec_cli.figures.throughput import Run, Throughput
from lvspec_cli.output.records import with_null, without_null
from lvspec_cli.text_file import LISTS, read_file
from lvspec_cli.types import Gamma, KeepBy

SCHEMA: Final = "lvspec.bench.1"
FILE_NAME: Final = "results.json"


class Environment(FrozenModel):
    """The machine and the libraries of a run."""

    device: str  # cpu, cuda:0, ...
    device_name: str  # of the processor or the GPU
    cores: int
    threads: int
    target_dtype: str
    draft_dtype: str | None
    platform: str
    versions: dict[str, str]  # lvspec, python, torch, transformers, ...


class BenchSettings(FrozenModel):
    """The settings of a run: together with the items they determine every answer."""

    pair: str
    target: str
    draft: str | None
    revisions: tuple[str | None, ...] = ()
    modes: tuple[str, ...]  # as in --modes
    gammas: tuple[Gamma, ...]
    repeat: int
    max_new_tokens: int
    draft_keep: float  # the share of the video's tokens that a pruned draft sees
    draft_keep_by: KeepBy = KeepBy.EVEN  # how they are chosen; older results always chose evenly
    rule: dict[str, Any]
    draft_frames: int | None = None  # the most that the draft is shown in the other modes
    draft_pixels: int | None = None
    draft_vocabulary: int | None = None  # it proposes ids below this one only
    rules: dict[str, dict[str, Any]] = Field(default_factory=dict)  # of the named lines
    views: dict[str, dict[str, int | None]] = Field(default_factory=dict)  # what their draft is shown
    words: str = ""  # a digest of the words that the rule treats specially
    slots: tuple[int, ...] = ()  # captions at once, of --throughput
    timed: bool = True
    first: dict[str, int] = Field(
        default_factory=dict
    )  # lines run only on the first clips, with the number of clips
    adaptation: dict[str, Any] = Field(default_factory=dict)  # the settings of gamma auto
    fallback: bool = False  # the bench never falls back to the target alone
    quantisation: tuple[str, ...] = ()  # target's and draft's, as asked for
    draft_device: str | None = None  # as asked for
    cuda_graphs: bool = True  # passes are captured where that is possible
    sampling: dict[str, Any]  # frames, fps, max_pixels, start, end, decoder
    system: str | None = None
    seed: int = 0
    device: str = "auto"  # as asked for
    dtype: str = "auto"
    threads: int | None = None

    @field_validator("rule", "rules", mode="before")
    @classmethod
    def _limits(cls, value: Any) -> Any:
        return without_null(value)


class Results(FrozenModel):
    """All of ``results.json``."""

    schema_: Literal["lvspec.bench.1"] = Field(default=SCHEMA, alias="schema")
    version: str = __version__
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    command: str = ""
    environment: Environment
    settings: BenchSettings
    reference: BenchMode  # the baseline of speedups: the faster of ar and hf-ar
    modes: tuple[ModeResult, ...]
    contrasts: tuple[Contrast, ...] = ()  # the pair's own rule against every other line
    throughput: tuple[Throughput, ...] = ()  # of each mode and number of captions at once
    items: tuple[Item, ...]
    blocks: tuple[Block, ...]
    runs: tuple[Run, ...] = ()  # over all clips, one after the other in one process

    @field_validator("modes", mode="before")
    @classmethod
    def _limits(cls, value: Any) -> Any:
        for mode in value:
            if isinstance(mode, dict) and "rule" in mode.get("settings", {}):
                mode["settings"]["rule"] = without_null(mode["settings"]["rule"])
        return value

    def measurements(self, variant: Variant) -> Iterator[tuple[Item, Block, Measurement]]:
        """Every answer of a variant without error, with its item and block, in the order of the blocks."""
        items = {item.id: item for item in self.items}
        for block in self.blocks:
            measurement = block.of(variant)
            if measurement is not None and measurement.error is None:
                yield items[block.item], block, measurement


def to_json(results: Results) -> str:
    """The file's text: a line for each mode, item and block, so that a line-based diff is useful."""
    fields = results.model_dump(mode="json", by_alias=True)
    fields["settings"] |= {name: with_null(fields["settings"][name]) for name in ("rule", "rules")}
    for mode in fields["modes"]:
        mode["settings"] = with_null(mode["settings"])
    parts = [f"{json.dumps(name)}: {_by_line(value)}" for name, value in fields.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _by_line(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n " + ",\n ".join(_compact(item) for item in value) + "\n]"
    return _compact(value)


def _compact(value: Any) -> str:
    # ASCII only: lone surrogates in a file name cannot be encoded as UTF-8.
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def read_results(path: Path) -> Results:
    """The results in a file, or in the folder that ``lvspec bench --out`` wrote.

    :raises NoInputError: there is no such file.
    :raises UsageError: it has another content.
    """
    file = path / FILE_NAME if path.is_dir() else path
    name = "name a results.json of"
    return read_model(file, Results, f"{name} lvspec bench", f"{name} this version of lvspec bench")


M = TypeVar("M", bound=FrozenModel)


def read_model(file: Path, model: type[M], if_missing: str, if_other: str) -> M:
    """The model in a JSON file. The last two parameters are the remedies of the errors.

    :raises NoInputError: the file cannot be read.
    :raises UsageError: it has another content.
    """
    try:
        return model.model_validate_json(read_file(file, LISTS))
    except OSError as error:
        raise NoInputError(f"{file}: {error.strerror or error}", if_missing) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"{file}: {where}: {first['msg']}", if_other) from error


@dataclass(frozen=True)
class Change:
    """One figure of one mode in two results. None where it is unknown, or the mode could not run."""

    mode: str
    figure: str
    before: float | None
    after: float | None
    regression: bool

    @property
    def share(self) -> float | None:
        """The relative change."""
        if self.before is None or self.after is None or self.before == 0:
            return None
        return self.after / self.before - 1


@dataclass(frozen=True)
class Margins:
    """How far a figure may fall before it is a regression.

    :param speed: relative, for every figure but the retention, the content words kept included.
    :param retention: absolute, as a share of ar's quality; there is no retention without labels.
    """

    speed: float = 0.05
    retention: float = 0.002


# In all of them more is better. Tokens a second depend on the machine: they are shown but not judged.
_FIGURES = ("speedup", "end-to-end speedup", "mean accepted length", "retention", "content kept", "tokens/s")
_THROUGHPUT_FIGURES = ("against one at once", "against ar", "clips/h")
_SHOWN_ONLY = ("tokens/s", "clips/h")


def compare_results(before: Results, after: Results, margins: Margins) -> tuple[Change, ...]:
    """The changes of all figures, of the modes in both.

    A mode that cannot run in ``after`` is a regression; a figure that was not measured there is none.
    """
    old, new = _by_name(before), _by_name(after)
    return tuple(
        change for name in old if name in new for change in _changes(name, old[name], new[name], margins)
    )


def _by_name(results: Results) -> dict[str, ModeResult | Throughput]:
    modes: dict[str, ModeResult | Throughput] = {str(result.variant): result for result in results.modes}
    return modes | {f"{row.mode}, {row.slots} at once": row for row in results.throughput}


def unmeasured(before: Results, after: Results) -> Iterator[str]:
    """The modes that were run for one of the two only, in words."""
    old, new = _by_name(before), _by_name(after)
    for name, modes, others in (("B", old, new), ("A", new, old)):
        if missing := [variant for variant in modes if variant not in others]:
            yield f"not measured in {name}: {', '.join(missing)}"


def _changes(
    name: str, before: ModeResult | Throughput, after: ModeResult | Throughput, margins: Margins
) -> Iterator[Change]:
    first, second = _figures(before), _figures(after)
    for figure, old in first.items():
        new = second[figure]
        if old is None and new is None:
            continue
        fails = old is not None and after.error is not None and figure not in _SHOWN_ONLY
        yield Change(name, figure, old, new, fails or _is_worse(figure, old, new, margins))


def _figures(result: ModeResult | Throughput) -> dict[str, float | None]:
    if isinstance(result, Throughput):
        ratios = (result.vs_one, result.vs_ar, result.clips_per_hour)
        return dict(zip(_THROUGHPUT_FIGURES, ratios, strict=True))
    content = result.fidelity.content_kept if result.fidelity else None
    spreads = (result.speedup_vs_ar, result.end_to_end_speedup_vs_ar)
    values = (
        *(spread.median if spread else None for spread in spreads),
        result.mean_accepted_length,
        result.retention.value if result.retention else None,
        content.value if content else None,
        result.tokens_per_s,
    )
    return dict(zip(_FIGURES, values, strict=True))


def _is_worse(figure: str, before: float | None, after: float | None, margins: Margins) -> bool:
    if before is None or after is None or figure in _SHOWN_ONLY:
        return False
    if figure == "retention":
        return after < before - margins.retention
    return after < before * (1 - margins.speed)


def differing_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The fields in which two model dumps differ: name, value before, value after.

    Fields missing in ``after`` are ignored.
    """
    for name, value in after.items():
        if before.get(name) != value:
            yield name, before.get(name), value


def differences(before: Results, after: Results) -> Iterator[str]:
    """The differences of two runs' conditions, in words: they alone may change the figures."""
    for part in ("environment", "settings"):
        old, new = (getattr(results, part).model_dump(mode="json") for results in (before, after))
        for name, earlier, later in differing_fields(old, new):
            yield f"{name}: {_short(earlier)}, now {_short(later)}"
    if [item.id for item in before.items] != [item.id for item in after.items]:
        yield f"items: {len(before.items)}, now {len(after.items)}, or others"


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
