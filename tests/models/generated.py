"""What transformers' own greedy ``generate`` says: the reference for ar and exact mode."""

from __future__ import annotations

from lvspec_cli.models.load import LoadedModel
from lvspec_cli.models.processing import features_of
from lvspec_cli.models.read import chat_text
from lvspec_cli.types import Clip


def generated(loaded: LoadedModel, clip: Clip, question: str, count: int) -> list[int]:
    """At most ``count`` tokens about a clip."""
    inputs = features_of(loaded.processor, chat_text(loaded.processor, question, None), clip)
    inputs = {
        name: each.to(loaded.dtype) if each.is_floating_point() else each for name, each in inputs.items()
    }
    tokens = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=count)
    found: list[int] = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    return found
