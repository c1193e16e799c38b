"""Language models that see a window only: the engine's cache, which holds every token, is not for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lvspec_cli.errors import PairError
from lvspec_cli.models.load import load_model
from tests.tiny_models import save_model


def test_mistral_with_a_window_is_refused(tmp_path: Path) -> None:
    """LLaVA-NeXT-Video exists with Mistral, whose config names no kinds of layers."""
    folder = save_model(tmp_path / "model", "llava_next_video")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for window in (None, 16):
        config["text_config"] |= {"model_type": "mistral", "sliding_window": window}
        path.write_text(json.dumps(config))
        if window is None:
            assert load_model(folder, device="cpu").family.model_type == "llava_next_video"
        else:
            with pytest.raises(PairError, match="windowed attention"):
                load_model(folder, device="cpu")
