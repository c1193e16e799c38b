"""What is said of one pair, in lines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from lvspec_cli.escape import visible_line
from lvspec_cli.registry import Pair, Source
from lvspec_cli.storage import Stored
from lvspec_cli.types import RuleSettings
from lvspec_cli.ui.tables import model_size


def pair_facts(name: str, pair: Pair, target: Stored, draft: Stored) -> str:
    """A name and its fact a line."""
    rows = [("pair", name), ("about", pair.about), ("licence", pair.licence or "not said")]
    rows += [*_model("target", pair.target, target), *_model("draft", pair.draft, draft)]
    if pair.memory:
        least = ", ".join(f"{kind} {number:g}" for kind, number in pair.memory.items())
        rows.append(("memory", f"{least} GB on one device, with a clip of the defaults"))
    defaults = pair.defaults.model_dump(exclude_none=True, exclude={"adaptation"})
    rows.append(("defaults", _values(defaults)))
    plain = asdict(RuleSettings())
    for looseness in ("balanced", "loose"):
        rule = asdict(getattr(pair.rules, looseness))
        names = [field.name for field in fields(RuleSettings)]
        shown = {key: rule[key] for key in names if rule[key] != plain[key]}
        rows.append((f"rule {looseness}", _values(shown) or "as built in"))
    width = max(len(label) for label, _ in rows)
    return "".join(f"{label:{width}}  {visible_line(fact)}\n" for label, fact in rows if fact)


def _model(role: str, source: Source, stored: Stored) -> Iterator[tuple[str, str]]:
    revision = f" at {source.revision or 'main, no commit is pinned'}" if source.repo else ""
    yield role, f"{source.name}{revision}"
    yield (
        "",
        f"{model_size(source, stored)}, {stored.place}" + (f": {stored.folder}" if stored.folder else ""),
    )


def _values(values: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', '-')} {_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return "unlimited" if math.isinf(value) else f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
