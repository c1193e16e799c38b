"""Holds rows against the JSON schemas that ship with the package."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

PINNED = Path(__file__).parent / "data" / "pinned"


def schema_of(name: str) -> dict[str, Any]:
    """The schema of a ``record``, a row of a ``trace``, or a ``results`` file."""
    text = (resources.files("lvspec_cli") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


@cache
def _validator(name: str) -> Draft202012Validator:
    Draft202012Validator.check_schema(schema_of(name))
    return Draft202012Validator(schema_of(name))


def check(name: str, row: Any) -> None:
    """
    :raises ValidationError: the row is not what the schema says.
    """
    _validator(name).validate(row)
