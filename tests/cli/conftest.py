from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def endless_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pair that goes on until it is stopped."""
    from tests.tiny_models import save_pair, set_generation

    folder = tmp_path_factory.mktemp("endless")
    for model in save_pair(folder, "qwen2_5_vl"):
        set_generation(model, eos_token_id=[424], repetition_penalty=1.3)
    models = folder / "models.yaml"
    models.write_text(
        "default: endless\npairs:\n  endless:\n    target: {folder: target}\n    draft: {folder: draft}\n"
        "    defaults: {frames: 2, max_new_tokens: 100000}\n"
    )
    return models
