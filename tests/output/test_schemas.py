"""The JSON schemas that ship: they are those of the models, and what was really written keeps to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lvspec_cli.bench.results import read_results, to_json
from lvspec_cli.output.records import read_record, to_line
from tests.output.rows import failure, record
from tests.schemas import PINNED, check, schema_of
from tools.schemas import COMMAND, FOLDER, MODELS, schema_text

DOCS = Path(__file__).parents[2] / "docs" / "records.md"


@pytest.mark.parametrize("name", MODELS)
def test_a_schema_is_that_of_the_program(name: str) -> None:
    there = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    assert there == json.loads(schema_text(name)), f"make it anew: {COMMAND}"


def test_rows_of_earlier_versions_are_written_by_the_schemas() -> None:
    rows = [line for name in ("captions", "segments") for line in (PINNED / f"{name}.jsonl").open("rb")]
    assert len(rows) > 2
    for row in (*map(read_record, rows), record(), failure(b"\xff.mp4"), record(value={"a": [1]})):
        check("record", json.loads(to_line(row)))
    for line in (PINNED / "rounds.jsonl").open():
        check("trace", {"loss": 0.0, **json.loads(line)})  # earlier ones have no loss
    check("results", json.loads(to_json(read_results(PINNED / "bench"))))


@pytest.mark.parametrize("name", ["record", "trace"])
def test_the_page_says_what_each_field_means(name: str) -> None:
    page, schema = DOCS.read_text(encoding="utf-8"), schema_of(name)
    parts = [schema, *(part for part in schema["$defs"].values() if "properties" in part)]
    assert [field for part in parts for field in part["properties"] if f"`{field}`" not in page] == []


def test_the_page_says_what_a_mode_of_the_results_has() -> None:
    page, schema = DOCS.read_text(encoding="utf-8"), schema_of("results")
    parts = (schema, schema["$defs"]["ModeResult"], schema["$defs"]["Throughput"])
    fields = [field for part in parts for field in part["properties"]]
    assert [field for field in fields if f"`{field}`" not in page] == []
