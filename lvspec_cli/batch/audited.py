"""What the audits of a file's captions say together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lvspec_cli.bench.fidelity import compare_blocks, fidelity_of
from lvspec_cli.bench.items import labelled
from lvspec_cli.bench.labels import labels_beside
from lvspec_cli.bench.results import BenchMode, Block, Fidelity, Item, Measurement, Spread
from lvspec_cli.bench.summary import Measured, speedup
from lvspec_cli.errors import UsageError
from lvspec_cli.output.records import Audit, Failure, Record
from lvspec_cli.types import Mode


@dataclass(frozen=True)
class AuditSummary:
    """Speed and fidelity against ar of the captions that were answered in both modes, over clips."""

    captions: int  # rows with a text
    audited: int
    failures: tuple[str, ...]  # why others could not be
    speedup: Spread | None
    fidelity: Fidelity | None


def summarise_audits(records: Iterable[Record], files: Mapping[str, Path]) -> AuditSummary:
    """The audits among records of one mode and its settings; of two with the same key the later counts.

    :param files: by key the videos that were taken whole, for the facts that may lie beside one.
    """
    rows: dict[str, Record] = {}
    texts = set()
    for record in records:
        if record.text is not None:
            texts.add(record.key)
            if record.audit is not None:
                rows[record.key] = record
    failures = tuple(row.audit.message for row in rows.values() if isinstance(row.audit, Failure))
    pairs = [(row, row.audit) for row in rows.values() if isinstance(row.audit, Audit)]
    if not pairs:
        return AuditSummary(len(texts), 0, failures, None, None)
    items = {row.key: _item(row, files.get(row.key)) for row, _ in pairs}
    blocks = [Block(item=row.key, repeat=0, measurements=_measurements(row, audit)) for row, audit in pairs]
    mode, ar = (each.variant for each in blocks[0].measurements)
    return AuditSummary(
        captions=len(texts),
        audited=len(pairs),
        failures=failures,
        speedup=speedup(Measured(items, blocks), mode, ar),
        fidelity=fidelity_of(compare_blocks(items, blocks, mode, ar)),
    )


def _item(row: Record, file: Path | None) -> Item:
    segment = row.segment
    clip = f"{row.file_name_b64 or row.file_name}@{segment.start:g}-{segment.end}"
    item = Item(id=row.key, file_name=clip, prompt=row.prompt)
    with suppress(UsageError):  # facts that are damaged are no matter of this command
        return labelled(item, labels_beside(file) if file else None)
    return item


def _measurements(row: Record, audit: Audit) -> tuple[Measurement, Measurement]:
    stats = row.stats
    assert stats  # a row with a text has them
    mode = BenchMode.EXACT if row.mode is Mode.EXACT else BenchMode.LVSPEC
    return (
        Measurement(
            mode=mode,
            text=row.text,
            output_tokens=stats.output_tokens,
            decode_s=stats.decode_s,
            log_probability=audit.log_probability,
        ),
        Measurement(
            mode=BenchMode.AR,
            text=audit.text,
            output_tokens=audit.output_tokens,
            decode_s=audit.decode_s,
            log_probability=audit.ar_log_probability,
        ),
    )
