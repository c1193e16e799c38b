"""Passes of several answers in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lvspec_cli.models.cache import SlotMemory
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.kernels.fused import MOST_ROWS
from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.models.together import Step, run_together
from lvspec_cli.types import Clip
from tests.tiny_models import make_clip

ROWS, PASSES = 90, 8  # so many that the memory of a prompt has to grow


@pytest.fixture(params=["float32", "bfloat16"])
def pair(pair_folders: dict[str, tuple[Path, Path]], request: pytest.FixtureRequest) -> LoadedPair:
    return load_pair(*pair_folders["qwen2_5_vl"], device="cpu", dtype=request.param)


def begun(pair: LoadedPair, clip: Clip, memory: SlotMemory | None) -> Decoder:
    decoder, prompt = Decoder(pair.target, memory), build_prompts(pair, clip, "What moves?").target
    decoder.encode(prompt)
    decoder.begin(prompt, ROWS * PASSES)
    return decoder


@torch.inference_mode()
def test_a_pass_of_several_is_theirs_also_where_their_memory_grows(pair: LoadedPair) -> None:
    memory, clips = SlotMemory(), (make_clip(4, seed=1, width=64), make_clip(8, seed=2, width=96))
    together, alone = ([begun(pair, clip, kept) for clip in clips] for kept in (memory, None))
    before = memory.capacity
    tokens = torch.randint(len(pair.target.tokenizer), (ROWS,), generator=torch.Generator().manual_seed(0))
    is_whole = pair.target.full_precision
    assert [decoder.exact_rows for decoder in together] == [None if is_whole else MOST_ROWS] * 2
    for _ in range(PASSES):
        found = run_together([Step(decoder, tokens, last=ROWS) for decoder in together])
        for decoder, passed in zip(alone, found, strict=True):
            own = decoder.forward(tokens)
            assert passed.start == own.start
            assert torch.allclose(passed.hidden, own.hidden, atol=1e-4 if is_whole else 0.1)
            assert passed.logits is not None
            assert len(passed.logits) == ROWS
    assert memory.capacity > before
    # In 16 bits rows of a pass that is not captured may depend on each other.
    assert [decoder.exact_rows for decoder in together] == [None if is_whole else 0] * 2
