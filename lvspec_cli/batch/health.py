"""Which answers count as failed although there is a text: ``--fail-on``."""

from __future__ import annotations

from collections.abc import Collection

from lvspec_cli.output.records import Failure, Record
from lvspec_cli.types import FinishReason, Gate


def gated(record: Record, gates: Collection[Gate]) -> Record:
    """The record, made an error that keeps its text where it meets one of the gates."""
    if record.status != "ok":
        return record
    met = next((gate for gate in Gate if gate in gates and _meets(record, gate)), None)
    if met is None:
        return record
    failure = Failure(kind=met.value, message=_message(record, met))
    return record.model_copy(update={"status": "error", "error": failure})


def _meets(record: Record, gate: Gate) -> bool:
    if gate is Gate.LENGTH:
        return record.finish_reason is FinishReason.LENGTH
    if gate is Gate.REPETITION:
        return record.finish_reason is FinishReason.REPETITION
    return (record.sampling.decoded or 0) < (record.sampling.frames_expected or 0)


def _message(record: Record, gate: Gate) -> str:
    if gate is Gate.LENGTH:
        return "the answer was cut at --max-new-tokens"
    if gate is Gate.REPETITION:
        return "the answer began to repeat itself"
    return f"{record.sampling.decoded} of {record.sampling.frames_expected} frames could be read"
