"""``results.json``: what ``lvspec bench`` measured, and two of them beside each other.

    items          what was asked of which clip, and what is known to be true of it
    blocks         one item, one repeat: every mode once, one after the other, in one process
    modes          figures of each mode and gamma over all blocks; the other parts are enough to compute them

Times are in seconds, rates in tokens a second, shares from 0 to 1. Absent facts are null.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from lvspec_cli import __version__
from lvspec_cli.errors import NoInputError, UsageError
from lvspec_cli.figures.answers import (
    BenchMode,
    Block,
    Contrast,
    Item,
    Measurement,
    ModeResult,
    Part,
    Variant,
)
from lvspec_cli.text_file import LISTS, read_file
from lvspec_cli.types import Gamma, KeepBy

SCHEMA: Final = "lvspec.bench.1"
FILE_NAME: Final = "results.json"


class Environment(Part):
    """What was measured where."""

    device: str  # cpu, cuda:0, ...
    device_name: str  # of the processor or the GPU
    cores: int
    threads: int
    target_dtype: str
    draft_dtype: str | None
    platform: str
    versions: dict[str, str]  # lvspec, python, torch, transformers, ...


class BenchSettings(Part):
    """What was asked for: with the items it decides every answer."""

    pair: str
    target: str
    draft: str | None
    revisions: tuple[str | None, ...] = ()
    modes: tuple[str, ...]  # as --modes takes them
    gammas: tuple[Gamma, ...]
    repeat: int
    max_new_tokens: int
    draft_keep: float  # the share of the video's tokens that a pruned draft sees
    draft_keep_by: KeepBy = KeepBy.EVEN  # and which those are; results of before had no other
    rule: dict[str, Any]
    rules: dict[str, dict[str, Any]] = Field(default_factory=dict)  # of lines with a name of their own
    words: str = ""  # a digest of the words that the rule treats in their own way
    timed: bool = True
    first: dict[str, int] = Field(
        default_factory=dict
    )  # lines that were run on so many clips only, the first ones
    adaptation: dict[str, Any] = Field(default_factory=dict)  # what gamma auto goes by
    fallback: bool = False  # no line falls back to the target alone
    quantisation: tuple[str, ...] = ()  # target's and draft's, as asked for
    draft_device: str | None = None  # as asked for
    cuda_graphs: bool = True  # passes were captured, where that works
    sampling: dict[str, Any]  # frames, fps, max_pixels, start, end, decoder
    system: str | None = None
    seed: int = 0
    device: str = "auto"  # as asked for
    dtype: str = "auto"
    threads: int | None = None


class Results(Part):
    """All of ``results.json``."""

    schema_: Literal["lvspec.bench.1"] = Field(default=SCHEMA, alias="schema")
    version: str = __version__
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    command: str = ""
    environment: Environment
    settings: BenchSettings
    reference: BenchMode  # ar or hf-ar: the faster one, on which speedups rest
    modes: tuple[ModeResult, ...]
    contrasts: tuple[Contrast, ...] = ()  # of the pair's own rule with every other
    items: tuple[Item, ...]
    blocks: tuple[Block, ...]

    def measurements(self, variant: Variant) -> Iterator[tuple[Item, Block, Measurement]]:
        """Every answer of a variant that was measured, with its item; blocks in the order they ran."""
        items = {item.id: item for item in self.items}
        for block in self.blocks:
            found = block.of(variant)
            if found is not None and found.error is None:
                yield items[block.item], block, found


def to_json(results: Results) -> str:
    """The file's text: a line for each mode, item and block, so that two files can be told apart by lines."""
    fields = results.model_dump(mode="json", by_alias=True)
    parts = [f"{json.dumps(name)}: {_by_line(value)}" for name, value in fields.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _by_line(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n " + ",\n ".join(_compact(each) for each in value) + "\n]"
    return _compact(value)


def _compact(value: Any) -> str:
    # Lone surrogates of a file's name have no UTF-8.
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def read_results(path: Path) -> Results:
    """The results in a file, or in the folder that ``lvspec bench --out`` wrote.

    :raises NoInputError: there is no such file.
    :raises UsageError: it holds something else.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        return Results.model_validate_json(read_file(file, LISTS))
    except OSError as error:
        raise NoInputError(
            f"{file}: {error.strerror or error}", "name a results.json of lvspec bench"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(
            f"{file}: {where}: {first['msg']}", "name a results.json of this version of lvspec bench"
        ) from error


@dataclass(frozen=True)
class Change:
    """One figure of one mode in both results. None where it is not known, or the mode could not run."""

    mode: str
    figure: str
    before: float | None
    after: float | None
    regression: bool

    @property
    def share(self) -> float | None:
        """Change as a share of what was before."""
        if self.before is None or self.after is None or self.before == 0:
            return None
        return self.after / self.before - 1


@dataclass(frozen=True)
class Margins:
    """By which share a figure may fall, and the retention by how much (as a share of ar's quality).

    Without labels there is no retention; how likely the target finds the texts is a figure like the others.
    """

    speed: float = 0.05
    retention: float = 0.002


# More is better in each. Tokens a second are shown and not judged: they change with the machine.
_FIGURES = ("speedup", "end-to-end speedup", "mean accepted length", "retention", "likelihood", "tokens/s")
_SHOWN_ONLY = ("tokens/s",)


def compare_results(before: Results, after: Results, margins: Margins) -> tuple[Change, ...]:
    """All figures of all modes of ``before``, then of those that are new in ``after``.

    A mode that is gone, or cannot run any more, is a regression.
    """
    old = {each.variant: each for each in before.modes}
    new = {each.variant: each for each in after.modes}
    return tuple(
        change
        for variant in (*old, *(variant for variant in new if variant not in old))
        for change in _changes(str(variant), old.get(variant), new.get(variant), margins)
    )


def _changes(
    name: str, before: ModeResult | None, after: ModeResult | None, margins: Margins
) -> Iterator[Change]:
    first, second = _figures(before), _figures(after)
    for figure in _FIGURES:
        old, new = first.get(figure), second.get(figure)
        if old is None and new is None:
            continue
        yield Change(name, figure, old, new, _is_worse(figure, old, new, margins))


def _figures(result: ModeResult | None) -> dict[str, float | None]:
    if result is None:
        return {}
    likelihood = result.fidelity.likelihood if result.fidelity else None
    spreads = (result.speedup_vs_ar, result.end_to_end_speedup_vs_ar)
    values = (
        *(spread.median if spread else None for spread in spreads),
        result.mean_accepted_length,
        result.retention.value if result.retention else None,
        likelihood.value if likelihood else None,
        result.tokens_per_s,
    )
    return dict(zip(_FIGURES, values, strict=True))


def _is_worse(figure: str, before: float | None, after: float | None, margins: Margins) -> bool:
    if before is None or figure in _SHOWN_ONLY:
        return False
    if after is None:
        return True
    if figure == "retention":
        return after < before - margins.retention
    return after < before * (1 - margins.speed)


def differing_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Whether two runs are the same run: of each fact in which two dumps of models differ, its name, what it
    was and what it is. What ``after`` does not know decides nothing."""
    for name, value in after.items():
        if before.get(name) != value:
            yield name, before.get(name), value


def differences(before: Results, after: Results) -> Iterator[str]:
    """What was not the same in both runs, in words: their figures may differ for that alone."""
    for part in ("environment", "settings"):
        old, new = (getattr(each, part).model_dump(mode="json") for each in (before, after))
        for name, was, now in differing_fields(old, new):
            yield f"{name}: {_short(was)}, now {_short(now)}"
    if [item.id for item in before.items] != [item.id for item in after.items]:
        yield f"items: {len(before.items)}, now {len(after.items)}, or others"


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
