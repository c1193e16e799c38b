"""Writes the JSON schemas of what lvspec writes: records, traces, and the bench's results.json.

python -m tools.schemas
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

import lvspec_cli
from lvspec_cli.bench.results import Results
from lvspec_cli.output.records import Record
from lvspec_cli.output.text import TraceRow

FOLDER = Path(lvspec_cli.__file__).parent / "schemas"
COMMAND = "python -m tools.schemas"
MODELS: dict[str, type[BaseModel]] = {"record": Record, "trace": TraceRow, "results": Results}


def schema_text(name: str) -> str:
    """The schema of what is written: all fields are there, and no others."""
    schema = MODELS[name].model_json_schema(by_alias=True, mode="serialization")
    return json.dumps({"$schema": GenerateJsonSchema.schema_dialect, **schema}, indent=1) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in MODELS:
        (FOLDER / f"{name}.schema.json").write_text(schema_text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
