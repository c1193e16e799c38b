"""Models on several devices, with tensors that only pretend one: an operation over two of them raises.

It shows that what is needed elsewhere is moved, and by what; it is no run on several devices.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.models.probe import hidden_states, video_attention
from lvspec_cli.speculation.draft import Drafting, propose
from lvspec_cli.speculation.draft_length import FixedLength
from lvspec_cli.speculation.logits import DraftRules
from lvspec_cli.types import Prompt

FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")


def on_devices(
    mode: FakeTensorMode, loaded: LoadedModel, main: torch.device, last: torch.device
) -> LoadedModel:
    """The model with its last decoder layer on ``last`` and all the rest on ``main``."""
    model = copy.deepcopy(loaded.model)
    inside = {id(part) for part in loaded.family.layers(model)[-1].modules()}
    for part in model.modules():
        device = last if id(part) in inside else main
        for name, value in part._parameters.items():
            if value is not None:
                fake = pretend(mode, value, device)
                part._parameters[name] = torch.nn.Parameter(fake, requires_grad=False)
        for name, value in part._buffers.items():
            part._buffers[name] = None if value is None else pretend(mode, value, device)
    return replace(loaded, model=model, device=main)


def pretend(mode: FakeTensorMode, value: torch.Tensor, device: torch.device) -> FakeTensor:
    return FakeTensor(mode, torch.empty_like(value, device="meta"), device)


def text_prompt(length: int = 6) -> Prompt:
    ids = torch.zeros(1, length, dtype=torch.long)
    return Prompt(
        text="",
        input_ids=ids,
        position_ids=torch.arange(length).expand(3, 1, -1),
        next_position=length,
        video_mask=torch.zeros(length, dtype=torch.bool),
        prefix_length=0,
        video_inputs={},
    )


def begun(loaded: LoadedModel) -> Decoder:
    """A decoder behind a prompt without a video: the tower is on one device, always."""
    decoder = Decoder(loaded)
    decoder.video = torch.zeros(3, dtype=torch.bool, device=loaded.device)
    passed = decoder.begin(text_prompt(), 8)
    assert passed.hidden.device == loaded.device
    return decoder


def test_a_target_on_two_devices(pairs: dict[str, LoadedPair]) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    target = on_devices(mode, pairs["qwen2_5_vl"].target, FIRST, SECOND)
    with mode, torch.no_grad():
        decoder = begun(target)
        last = decoder.layer_count - 1
        tokens = torch.zeros(4, dtype=torch.long, device=FIRST)
        passed = decoder.forward(tokens, watch=[last, last + 1])
        assert isinstance(passed.hidden, FakeTensor)
        assert passed.inputs[last].device == SECOND
        assert decoder.cache.keys(last, 4).device == SECOND
        assert decoder.cache.keys(0, 4).device == FIRST
        assert decoder.logits(passed, 4).device == FIRST
        # What relevance reads comes to the model's own device.
        assert video_attention(decoder, passed, last, 3).device == FIRST
        assert hidden_states(decoder, passed, last - 1).device == FIRST
        with pytest.raises(RuntimeError, match="device"):  # such tensors do tell when one is not moved
            passed.inputs[last] + passed.hidden


def test_a_draft_on_another_device(pairs: dict[str, LoadedPair]) -> None:
    mode, source = FakeTensorMode(allow_non_fake_inputs=True), pairs["qwen2_5_vl"].target
    loaded = on_devices(mode, source, SECOND, SECOND)
    with mode, torch.no_grad():
        draft = begun(loaded)
        seen = torch.zeros(400, dtype=torch.bool, device=FIRST)
        rules = DraftRules(seen, 1.3, torch.zeros(0, dtype=torch.long, device=FIRST), kind=1.3)
        pending = torch.zeros(2, dtype=torch.long, device=FIRST)
        generator = torch.Generator("cpu")
        (proposal,) = propose([Drafting(draft, pending, 3, 400, rules, 0.0, generator, FixedLength(3))])
        assert proposal.tokens.device == FIRST
        assert proposal.tokens.shape == (3,)
