"""Normalisations in one kernel each: the same formula, in the place of transformers' own."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from lvspec_cli.models.families import FAMILIES
from lvspec_cli.models.kernels.norms import fuse_norms
from lvspec_cli.models.load import load_model
from tests.tiny_models import save_model


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"qwen3_5", "qwen3_5_moe"}))
def test_a_models_norms_are_replaced_by_the_same(
    family: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    loaded = load_model(save_model(tmp_path_factory.mktemp(family), family), device="cpu", dtype="float32")
    language = loaded.family.language(loaded.model)
    for part in language.modules():
        if type(part).__name__.endswith("RMSNorm"):
            nn.init.normal_(part.weight)
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        expected = language(input_ids=ids, use_cache=False).last_hidden_state
        before = deepcopy(sorted(name for name, _ in language.named_parameters()))
        count = fuse_norms(language)
        found = language(input_ids=ids, use_cache=False).last_hidden_state
    layers = len(loaded.family.layers(loaded.model))
    assert count >= 2 * layers + 1
    assert sorted(name for name, _ in language.named_parameters()) == before
    kinds = {type(part) for part in language.modules() if type(part).__name__.endswith("RMSNorm")}
    assert kinds == {nn.RMSNorm}
    assert torch.allclose(found, expected, atol=1e-4)
    assert fuse_norms(language) == 0


def test_norms_whose_weights_count_from_one_stay(tmp_path: Path) -> None:
    loaded = load_model(save_model(tmp_path / "model", "qwen3_5"), device="cpu", dtype="float32")
    assert fuse_norms(loaded.family.language(loaded.model)) == 0


class ShiftedRMSNorm(nn.Module):
    """Gemma's: the weight counts from one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.zeros(16)), 1e-6

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class NamelessRMSNorm(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def test_another_formula_stays() -> None:
    model = nn.ModuleDict({"shifted": ShiftedRMSNorm(), "nameless": NamelessRMSNorm()})
    assert fuse_norms(model) == 0
    assert type(model["shifted"]) is ShiftedRMSNorm
