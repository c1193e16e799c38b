"""A tiny pair of every family of lvspec's own table, beside transformers' own model and processor."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from lvspec_cli.models.families import FAMILIES
from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.models.processing import features_of
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.models.read import chat_text
from lvspec_cli.types import Clip, PairPrompts
from tests.speculation.conftest import stock_model
from tests.tiny_models import make_clip, save_pair

CLIPS: dict[str, Clip] = {
    "one-frame": make_clip(1),
    "two-frames": make_clip(2, seed=1, spacing=1.0),
    # A second for two frames: early releases of transformers 5 cut fractions (tests/models/test_prompt.py).
    "odd": make_clip(5, seed=2),
    "wide": make_clip(4, seed=3, width=100),
    "tall-and-odd": make_clip(3, seed=4, size=100, width=60, spacing=2.0),
    "12-seconds": make_clip(25, seed=5, spacing=0.5),
    "over-a-minute": make_clip(9, seed=6, spacing=8.0),
}


def clip_of(name: str) -> Clip:
    """One of CLIPS, or noise by ``frames/seed/width``."""
    if name in CLIPS:
        return CLIPS[name]
    frames, seed, width = map(int, name.split("/"))
    return make_clip(frames, seed=seed, width=width)


@dataclass(frozen=True)
class Subject:
    """One family: the pair as lvspec loads it, and the target as transformers does."""

    family: str
    folders: tuple[Path, Path]
    pair: LoadedPair
    _prompts: dict[tuple[str, str], PairPrompts] = field(default_factory=dict)
    _generated: dict[tuple[str, str, int], list[int]] = field(default_factory=dict)

    @functools.cached_property
    def processor(self) -> Any:
        return AutoProcessor.from_pretrained(self.folders[0])

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Those of the target's layers that attend."""
        return self.pair.target.family.attention_layers(self.pair.target.model.config)

    def prompts(self, clip: str, question: str = "What moves?") -> PairPrompts:
        if (clip, question) not in self._prompts:
            self._prompts[clip, question] = build_prompts(self.pair, clip_of(clip), question)
        return self._prompts[clip, question]

    def generate(
        self, clip: str, question: str = "What moves?", *, model: Any = None, **values: Any
    ) -> list[int]:
        """Greedy tokens of transformers' own loop over what its own processor makes of frames and text."""
        inputs = features_of(self.processor, chat_text(self.processor, question, None), clip_of(clip))
        tokens = (model or stock_model(self.pair.target.name)).generate(**inputs, do_sample=False, **values)
        return tokens[0, inputs["input_ids"].shape[1] :].tolist()

    def generated(self, clip: str, question: str, tokens: int) -> list[int]:
        """At most so many tokens of ``generate``, computed once."""
        key = (clip, question, tokens)
        if key not in self._generated:
            self._generated[key] = self.generate(clip, question, max_new_tokens=tokens)
        return self._generated[key]


@pytest.fixture(scope="session", params=FAMILIES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folders = save_pair(tmp_path_factory.mktemp(request.param), request.param)
    return Subject(request.param, folders, load_pair(*folders, device="cpu", dtype="float32"))
