"""The target's score of a text is what one plain forward pass of the model says."""

from pathlib import Path

import pytest
import torch

from lvspec_cli.models import probe as score
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.load import LoadedModel, LoadedPair, load_pair
from lvspec_cli.models.probe import TextScore, score_text
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.types import DecodeSettings, Mode, Prompt
from tests.speculation.conftest import decode, model_inputs, stock_model
from tests.tiny_models import FAMILIES, make_clip, save_pair


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedPair:
    folders = save_pair(tmp_path_factory.mktemp(request.param), request.param)
    return load_pair(*folders, device="cpu", dtype="float32")


def score_texts(
    target: LoadedModel, asked: list[tuple[Prompt, list[list[int]]]]
) -> list[list[TextScore | None]]:
    """Texts behind prompts about one and the same clip, which is encoded once."""
    decoder = Decoder(target)
    with torch.inference_mode():
        decoder.encode(asked[0][0])
    return [[score_text(decoder, prompt, text) for text in texts] for prompt, texts in asked]


def by_the_model(pair: LoadedPair, prompt: Prompt, text: list[int]) -> float:
    """Nats of the whole text, by transformers' own model over prompt and text at once."""
    inputs = model_inputs(prompt, pair.target.family.model_type)
    ids = torch.cat((prompt.input_ids, torch.tensor([text])), dim=1)
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(text)))
    with torch.inference_mode():
        rows = stock_model(pair.target.name)(**inputs).logits[0, prompt.length - 1 : -1].log_softmax(dim=-1)
    return float(rows[torch.arange(len(text)), torch.tensor(text)].sum())


@pytest.mark.parametrize("rows", [2, 128])
def test_the_score_is_the_models_own(pair: LoadedPair, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "_ROWS", rows)
    clip = make_clip(4)
    asked = [build_prompts(pair, clip, question).target for question in ("What moves?", "how many red balls")]
    texts = [[[30, 31, 32, 33, 34], [40], [], [30, 31, 32, 33, 34]], [[50, 51, 52]]]
    found = score_texts(pair.target, list(zip(asked, texts, strict=True)))
    for prompt, given, scores in zip(asked, texts, found, strict=True):
        for text, scored in zip(given, scores, strict=True):
            if not text:
                assert scored is None
                continue
            assert scored is not None
            assert scored.tokens == len(text)
            assert scored.log_probability == pytest.approx(by_the_model(pair, prompt, text), abs=1e-3)
            assert scored.mean == pytest.approx(scored.log_probability / len(text))


def test_a_greedy_text_is_the_targets_first_choice_throughout(pair: LoadedPair) -> None:
    prompts = build_prompts(pair, make_clip(4), "What moves?")
    greedy = decode(pair, prompts, DecodeSettings(mode=Mode.AR, max_new_tokens=12))[0].tokens
    changed = (*greedy[:3], (greedy[3] + 1) % 400, *greedy[4:])
    scores = score_texts(pair.target, [(prompts.target, [list(greedy), list(changed)])])[0]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0].own == len(greedy)
    assert scores[1].own < len(greedy)
    assert scores[1].mean < scores[0].mean


def test_a_clip_is_scored_from_a_folder_of_its_own(tmp_path: Path) -> None:
    """A clip of another picture gives other scores: the video is read, not only the text."""
    pair = load_pair(save_pair(tmp_path, "qwen2_5_vl")[0], None, device="cpu", dtype="float32")
    scores = [
        score_texts(
            pair.target, [(build_prompts(pair, make_clip(4, seed=seed), "What moves?").target, [[30, 31]])]
        )[0][0]
        for seed in (0, 1)
    ]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0].log_probability != pytest.approx(scores[1].log_probability, abs=1e-4)
