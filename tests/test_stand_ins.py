"""What stands in for GPUs and their graphs refuses what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lvspec_cli.models.steps import StepOutputs
from tests.recorded import Recorder
from tests.stand_in import gpus


def outputs(result: Tensor) -> StepOutputs:
    return StepOutputs(result, result, {})


def test_tensors_of_two_devices_do_not_mix() -> None:
    with gpus():
        there = torch.arange(3.0, device="cuda")
        assert str(there.device) == "cuda:0"
        for other in (torch.ones(3), torch.ones(3, device="cuda:1")):
            with pytest.raises(RuntimeError, match="same device"):
                there + other
            with pytest.raises(RuntimeError, match="same device"):
                torch.cat((there, other))
        assert (there + torch.tensor(1.0)).tolist() == [1.0, 2.0, 3.0]  # a number goes along


@pytest.mark.parametrize(
    ("act", "waits"),
    [
        (lambda there: there + 1, 0),
        (lambda there: there[1:].add_(1), 0),
        (lambda there: there.to("cuda:1"), 0),
        (lambda there: there.new_zeros(2), 0),
        (lambda there: torch.tensor([1, 2], pin_memory=True).to(there.device, non_blocking=True), 0),
        (lambda there: there.copy_(torch.zeros(3).pin_memory(), non_blocking=True), 0),
        (lambda there: torch.tensor([1, 2], device=there.device), 1),
        (lambda there: torch.tensor([1, 2]).to(there.device, non_blocking=True), 1),
        (lambda there: torch.tensor([1, 2], pin_memory=True).to(there.device), 1),
        (lambda there: there.copy_(torch.zeros(3)), 1),
        (lambda there: torch.zeros(3).copy_(there), 1),
        (lambda there: there.tolist(), 1),
        (lambda there: there.cpu(), 1),
        (lambda there: int(there[0]), 1),
        (lambda there: bool((there > 1).any()), 1),
        (lambda there: there.nonzero(), 1),
        (lambda there: there[there > 1], 1),
        (lambda there: there[torch.tensor([0])], 1),
    ],
)
def test_what_the_host_waits_for_is_counted(act: Callable[[Tensor], object], waits: int) -> None:
    with gpus() as made:
        there = torch.arange(3.0, device="cuda")
        act(there)
        assert sum(made.waits.values()) == waits


def test_what_is_on_a_gpu_is_a_copy() -> None:
    here = torch.zeros(2)
    with gpus():
        there = here.to("cuda")
        there.add_(1)
        back = there.cpu()
        there.add_(1)
    assert (here.tolist(), back.tolist()) == ([0.0, 0.0], [1.0, 1.0])


@torch.inference_mode()
def test_a_recorded_pass_reads_its_memory_anew_and_no_number_of_the_host() -> None:
    memory, written, number = torch.ones(3), torch.zeros(3), [1]

    def run() -> StepOutputs:
        written.copy_(memory[1:].sum() + number[0])
        return outputs(written * 2)

    replay = Recorder()(run)
    written.zero_()
    memory.fill_(5.0)
    number[0] = 100
    first = replay()
    assert (first.hidden.tolist(), written.tolist()) == ([22.0] * 3, [11.0] * 3)
    memory.fill_(0.0)
    assert replay().hidden is first.hidden
    assert first.hidden.tolist() == [2.0] * 3, "where the first one's lay"


@torch.inference_mode()
def test_nothing_is_computed_while_a_pass_is_recorded() -> None:
    counted = torch.zeros(1)
    kept: list[Tensor] = []

    def run() -> StepOutputs:
        counted.add_(1)
        kept.append(counted + 1)
        return outputs(kept[-1])

    replay = Recorder()(run)
    assert counted.item() == 1, "by the warm-up"
    assert kept[-1].isnan().all()
    replay()
    assert counted.item() == 2
    assert kept[-1].item() == 3


@torch.inference_mode()
def test_a_replay_spoils_what_others_gave() -> None:
    recorder, memory = Recorder(), torch.ones(2)
    first, second = recorder(lambda: outputs(memory * 2)), recorder(lambda: outputs(memory * 3))
    found = first().hidden
    assert found.tolist() == [2.0, 2.0]
    second()
    assert found.isnan().all()
    assert first().hidden.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    "run",
    [
        lambda memory: memory.sum().item(),
        lambda memory: memory.tolist(),
        lambda memory: memory.nonzero(),
        lambda memory: memory[memory > 0],
        lambda memory: memory * torch.tensor([1.0, 2.0]),
        lambda memory: memory if memory[0] else None,
        lambda memory: torch.repeat_interleave(memory.long()),
    ],
)
@torch.inference_mode()
def test_a_pass_for_which_the_host_waits_cannot_be_recorded(run: Callable[[Tensor], object]) -> None:
    memory = torch.ones(2)
    with pytest.raises(RuntimeError, match="not permitted"):
        Recorder()(lambda: outputs(run(memory)))  # type: ignore[arg-type]
    with gpus(), pytest.raises(RuntimeError, match=r"not permitted|same device"):
        there = torch.ones(2, device="cuda")
        Recorder()(lambda: outputs(run(there)))  # type: ignore[arg-type]
    with gpus(), pytest.raises(RuntimeError, match="not permitted"):
        Recorder()(lambda: outputs(memory.to("cuda")))
