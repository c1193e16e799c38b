"""Passes that several answers want, of decoders of one model: run as one where they share a memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lvspec_cli.models.cache import SlotCache, SlotMemory
from lvspec_cli.models.decoder import Decoder, Pass
from lvspec_cli.models.families.base import Rotary
from lvspec_cli.models.joined import (
    FusedRows,
    Grid,
    JoinedCaches,
    JoinedInputs,
    Layout,
    SlotRows,
    blocks_of,
    parts_of,
    told_of,
)
from lvspec_cli.models.steps import JOINED_WIDTHS, StepOutputs, width_of


@dataclass(frozen=True)
class Step:
    """A pass that an answer wants: tokens behind those that its decoder holds."""

    decoder: Decoder
    tokens: Tensor  # long (rows,)
    last: int = 1  # rows at the end whose logits are wanted
    watch: Collection[int] = ()
    by_itself: bool = False  # the same pass whatever else is decoded

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]


def run_together(steps: Sequence[Step]) -> list[Pass]:
    """The passes with their logits. Steps of decoders that share a memory run as one pass."""
    passes: dict[int, Pass] = {}
    by_memory: dict[int, list[int]] = {}
    for index, step in enumerate(steps):
        cache = step.decoder.cache
        by_memory.setdefault(id(cache.memory if isinstance(cache, SlotCache) else cache), []).append(index)
    for indices in by_memory.values():
        indices.sort(key=lambda index: steps[index].decoder.slot)
        group = [steps[index] for index in indices]
        if any(step.by_itself for step in group):
            found = [_single(step) for step in group]
        elif group[0].decoder.is_captured_with_others:
            found = [passed for some in _in_captured_widths(group) for passed in _joined(some)]
        else:
            found = _joined(group) if len(group) > 1 else [_single(group[0])]
        passes |= zip(indices, found, strict=True)
    return [passes[index] for index in range(len(steps))]


def _in_captured_widths(steps: Sequence[Step]) -> list[list[Step]]:
    """The steps in groups that have no more rows than a captured pass."""
    fused = steps[0].decoder.loaded.fused
    most = fused.joins if fused is not None and fused.joins else JOINED_WIDTHS[-1]
    groups: list[list[Step]] = [[]]
    for step in steps:
        if groups[-1] and sum(other.rows for other in groups[-1]) + step.rows > most:
            groups.append([])
        groups[-1].append(step)
    return groups


def _single(step: Step) -> Pass:
    passed = step.decoder.forward(step.tokens, step.watch, by_itself=step.by_itself)
    return replace(passed, logits=step.decoder.logits(passed, step.last))


@dataclass(frozen=True)
class _Joint:
    """A pass for several decoders of one model, in the order of their slots."""

    steps: Sequence[Step]
    rows: Sequence[int]  # of each step
    caches: Sequence[SlotCache]
    rotary: Rotary  # of all rows
    watch: tuple[int, ...]

    @classmethod
    def of(cls, steps: Sequence[Step]) -> _Joint:
        """Room for all rows is reserved."""
        caches = [step.decoder.cache for step in steps if isinstance(step.decoder.cache, SlotCache)]
        rows = [step.rows for step in steps]
        factors = [step.decoder.next_rotary(count) for step, count in zip(steps, rows, strict=True)]
        for cache, count in zip(caches, rows, strict=True):
            cache.reserve(cache.length + count)
        cosines, sines = (torch.cat(parts, 1) for parts in zip(*factors, strict=True))
        watch = set().union(*(step.watch for step in steps))
        return cls(steps, rows, caches, (cosines, sines), tuple(sorted(watch)))

    @property
    def any_of(self) -> Decoder:
        return self.steps[0].decoder

    def run(self) -> StepOutputs:
        """The pass, with logits of those rows for which they are wanted."""
        any_of, family = self.any_of, self.any_of.loaded.family
        if any_of.reads_target:
            embeddings = torch.cat([step.decoder.embedded(step.tokens) for step in self.steps], 1)
        else:
            embeddings = any_of.embedded(torch.cat([step.tokens for step in self.steps]))
        caches = JoinedCaches(self.caches, self.rows, any_of.groups, embeddings)
        hidden, inputs = any_of.through(embeddings, self.rotary, None, caches, self.watch)
        all_wanted = all(step.last == count for step, count in zip(self.steps, self.rows, strict=True))
        wanted = hidden[0] if all_wanted else self._wanted(hidden[0])
        logits = family.head(any_of.loaded.model, wanted).float()
        return StepOutputs(hidden, logits, inputs)

    def replayed(self) -> tuple[StepOutputs, bool] | None:
        """As :meth:`run`, of a pass that was captured; None if it cannot be. And whether rows stand alone."""
        decoder, total = self.any_of, sum(self.rows)
        loaded, width = decoder.loaded, width_of(total, JOINED_WIDTHS)
        if loaded.workspace is None or width is None or loaded.family.has_states or decoder.reads_target:
            return None
        last, memory = self.caches[-1], self.caches[0].memory
        last.reserve(last.length + self.rows[-1] + width - total)
        is_fused = loaded.fused is not None and loaded.fused.takes_joined(self.rotary[0], width)
        grid = 0, memory.slots, width_of(max(self.rows), JOINED_WIDTHS) or width
        padded = [*self.rows[:-1], self.rows[-1] + width - total]
        blocks = blocks_of(padded, decoder.groups) if is_fused else []
        room = (width_of(len(blocks), JOINED_WIDTHS) or len(blocks)) if blocks else 0
        layout = Layout.of(parts_of(self.caches, self.rows), grid, width)
        told = told_of(layout, blocks, room, pinned=loaded.device.type == "cuda")
        is_full = width == total == grid[1] * grid[2]
        tokens = torch.cat([step.tokens for step in self.steps])

        def made() -> tuple[JoinedInputs, Callable[[], StepOutputs]]:
            inputs = JoinedInputs.blank(width, room, self.rotary[0])
            inputs.fill(tokens, told, *self.rotary)  # a capture may write rows itself: to where these go
            bare = decoder.without_clip()
            if is_fused:
                return inputs, partial(_fused, bare, inputs, memory, self.watch)
            return inputs, partial(_fixed, bare, inputs, memory, grid, is_full, self.watch)

        key = (width, room, self.watch) if is_fused else (width, grid[2], is_full, self.watch)
        captured = loaded.workspace.step_together(key, memory, made, finds_rows=is_fused)
        if captured is None:
            return None
        inputs, replay = captured
        inputs.fill(tokens, told, *self.rotary)
        found = replay()
        # Copies: it may be replayed for other sequences before these rows are read.
        watched, shares = (
            {layer: kept.clone() for layer, kept in some.items()} for some in (found.inputs, found.shares)
        )
        copied = StepOutputs(found.hidden.clone(), self._wanted(found.logits), watched, shares)
        return copied, is_fused and loaded.fused is not None and loaded.fused.rows_stand_alone

    def _wanted(self, rows: Tensor) -> Tensor:
        """The rows for which logits are wanted, of those of the pass and maybe of padding."""
        parts = rows[: sum(self.rows)].split(self.rows)
        return torch.cat([part[-step.last :] for part, step in zip(parts, self.steps, strict=True)])


def _joined(steps: Sequence[Step]) -> list[Pass]:
    """One pass of one model for several decoders, or for one whose passes are captured with others'."""
    joint = _Joint.of(steps)
    starts, total = [cache.length for cache in joint.caches], sum(joint.rows)
    found, rows_alone = joint.replayed() or (joint.run(), False)
    hidden = found.hidden[:, :total].split(joint.rows, 1)
    rotary = zip(*(factors.split(joint.rows, 1) for factors in joint.rotary), strict=True)
    logits = found.logits.split([step.last for step in steps])
    passes = []
    first = 0
    for index, (step, own_rotary) in enumerate(zip(steps, rotary, strict=True)):
        rows = slice(first, first := first + step.rows)
        inputs = {layer: found.inputs[layer][:, rows] for layer in step.watch if layer in found.inputs}
        shares = {layer: found.shares[layer][:, rows] for layer in step.watch if layer in found.shares}
        passes.append(Pass(hidden[index], starts[index], own_rotary, inputs, logits[index], shares))
        joint.caches[index].advance(step.rows)
        step.decoder.rows_alone = step.decoder.rows_alone and rows_alone
        step.decoder.has_run(passes[-1])
    return passes


def _fixed(
    decoder: Decoder,
    inputs: JoinedInputs,
    memory: SlotMemory,
    grid: Grid,
    is_full: bool,
    watch: Collection[int],
) -> StepOutputs:
    """A captured pass by transformers' layers."""
    family, model = decoder.loaded.family, decoder.loaded.model
    embeddings = family.embed(model, inputs.ids.view(1, -1))
    cache = SlotRows(
        memory, inputs.rows, grid, length=memory.capacity, groups=decoder.groups,
        dtype=embeddings.dtype, is_full=is_full, split_k=True,
    )  # fmt: skip
    hidden, kept = decoder.through(embeddings, (inputs.cosines, inputs.sines), None, cache, watch)
    return StepOutputs(hidden, family.head(model, hidden[0]).float(), kept)


def _fused(decoder: Decoder, inputs: JoinedInputs, memory: SlotMemory, watch: Collection[int]) -> StepOutputs:
    """A captured pass by fused layers."""
    loaded, rotary = decoder.loaded, (inputs.cosines, inputs.sines)
    assert loaded.fused is not None
    embeddings = loaded.family.embed(loaded.model, inputs.ids.view(1, -1))
    return loaded.fused(embeddings, rotary, FusedRows(memory, inputs.rows), watch)
