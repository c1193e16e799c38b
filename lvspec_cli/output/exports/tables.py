"""CSV and Parquet: one row a caption, with the same columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, fields
from typing import IO, Any, get_args, get_type_hints

from lvspec_cli.errors import OutputError
from lvspec_cli.output.exports.captions import Caption

COLUMNS = tuple(field.name for field in fields(Caption))
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_CODED = "file_name_b64"  # base64 may begin with +, and calls nothing
ROWS = 10_000  # of one group of a Parquet file


def write_csv(captions: Sequence[Caption], stream: IO[bytes]) -> None:
    """CSV as RFC 4180 has it, in UTF-8, headings first; absent facts are empty.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
    rows = csv.writer(text)
    rows.writerow(COLUMNS)
    rows.writerows(map(_harmless, captions))
    text.detach()


def _harmless(caption: Caption) -> list[Any]:
    texts = zip(COLUMNS, astuple(caption), strict=True)
    return [
        f"'{value}" if isinstance(value, str) and name != _CODED and value.startswith(_FORMULA) else value
        for name, value in texts
    ]


def write_parquet(captions: Sequence[Caption], stream: IO[bytes]) -> None:
    """Parquet with a type for each column, the same whatever the rows hold.

    :raises OutputError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise OutputError(
            "Parquet is written by pyarrow, which is not here", "pip install 'lvspec[parquet]'"
        ) from error
    types = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64(), bool: pyarrow.bool_()}
    hints = get_type_hints(Caption)
    schema = pyarrow.schema([(name, types[(get_args(hints[name]) or (hints[name],))[0]]) for name in COLUMNS])
    with parquet.ParquetWriter(stream, schema) as writer:
        for start in range(0, len(captions), ROWS):
            columns = zip(*map(astuple, captions[start : start + ROWS]), strict=True)
            writer.write_table(pyarrow.table(list(map(list, columns)), schema=schema))
