"""The tests of other folders with the models on a GPU, and transformers' own beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from lvspec_cli.models.families import FAMILIES
from lvspec_cli.models.load import load_pair
from tests.conformance.conftest import Subject
from tests.speculation.conftest import stock_model
from tests.tiny_models import save_pair

DEVICE = "cuda"
NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device here"
    ),
]


@dataclass(frozen=True)
class OnDevice:
    """A model whose ``generate`` takes what a processor gives, wherever that lies."""

    model: Any

    def generate(self, **values: Any) -> torch.Tensor:
        moved = {
            name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value
            for name, value in values.items()
        }
        return self.model.generate(**moved)


class GpuSubject(Subject):
    """A pair of which the target at least is on the GPU; ``generate`` runs there, too."""

    def generate(
        self, clip: str, question: str = "What moves?", *, model: Any = None, **values: Any
    ) -> list[int]:
        stock = OnDevice(model or stock_model(self.pair.target.name).to(DEVICE))
        return super().generate(clip, question, model=stock, **values)


@pytest.fixture(scope="session", params=FAMILIES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GpuSubject:
    folders = save_pair(tmp_path_factory.mktemp(request.param), request.param)
    return GpuSubject(request.param, folders, load_pair(*folders, device=DEVICE, dtype="float32"))
