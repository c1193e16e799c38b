"""Facts and answers that a half of the bundled pair gets right: ``python -m lvspec_cli.demo.evaluate``.

Held-out scenes are written as mp4 and decoded as a user's would be; the model decodes greedily, in float32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lvspec_cli.demo.captions import CAPTION_PROMPTS
from lvspec_cli.demo.encode import encode_scene
from lvspec_cli.demo.facts import FACT_KINDS, FactScore, add_scores, read_facts, scene_facts, score_facts
from lvspec_cli.demo.halves import CLIP_FRAMES
from lvspec_cli.demo.questions import Question, is_right, questions
from lvspec_cli.demo.scenes import Scene
from lvspec_cli.demo.write import scene_of
from lvspec_cli.models.load import LoadedModel, load_model
from lvspec_cli.models.processing import video_metadata
from lvspec_cli.prompt import chat_text
from lvspec_cli.types import Clip, VideoRequest
from lvspec_cli.video.decode import read_clip

HELD_OUT_SEED = 1_000_003  # training draws its scenes from other streams
PAIR_FOLDER = Path(__file__).parent / "pair"


@dataclass(frozen=True)
class Report:
    """Scores of captions by kind of fact, and (right, asked) by kind of question."""

    scenes: int
    facts: dict[str, FactScore]
    answers: dict[str, tuple[int, int]]

    @property
    def accuracy(self) -> float:
        return sum(right for right, _ in self.answers.values()) / sum(
            asked for _, asked in self.answers.values()
        )


@torch.inference_mode()
def answer_batch(loaded: LoadedModel, asked: Sequence[tuple[Clip, str]], max_new_tokens: int) -> list[str]:
    """Greedy answers, by transformers' own ``generate``, to one question about each clip."""
    inputs = loaded.processor(
        text=[chat_text(loaded.processor, question, None) for _, question in asked],
        videos=[torch.from_numpy(clip.frames).permute(0, 3, 1, 2) for clip, _ in asked],
        video_metadata=[video_metadata(clip) for clip, _ in asked],
        do_sample_frames=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    ).to(loaded.device)
    inputs.pop("video_metadata", None)
    model: Any = loaded.model
    output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    return loaded.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def held_out_clips(count: int, folder: Path) -> Iterator[tuple[Scene, Clip, list[Question]]]:
    for number in range(1, count + 1):
        scene, rng = scene_of(HELD_OUT_SEED, number)
        path = folder / "clip.mp4"
        encode_scene(scene, path)
        yield scene, read_clip(VideoRequest(path, max_frames=CLIP_FRAMES)), questions(scene, rng)


def evaluate(loaded: LoadedModel, scenes: int, *, batch: int = 16, asked_per_scene: int = 5) -> Report:
    """Caption every scene and ask up to ``asked_per_scene`` questions about it."""
    with tempfile.TemporaryDirectory() as folder:
        held_out = list(tqdm(held_out_clips(scenes, Path(folder)), "clips", scenes, mininterval=5.0))
    captions = [
        (clip, CAPTION_PROMPTS[index % len(CAPTION_PROMPTS)]) for index, (_, clip, _) in enumerate(held_out)
    ]
    texts = _answers(loaded, captions, batch, 256)
    facts = add_scores(
        score_facts(read_facts(text), scene_facts(scene))
        for text, (scene, _, _) in zip(texts, held_out, strict=True)
    )
    asked = [(clip, item) for _, clip, items in held_out for item in items[:asked_per_scene]]
    replies = _answers(loaded, [(clip, item.question) for clip, item in asked], 2 * batch, 32)
    answers: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for reply, (_, item) in zip(replies, asked, strict=True):
        right, total = answers[item.kind]
        answers[item.kind] = (right + is_right(item, reply), total + 1)
    return Report(scenes, facts, dict(sorted(answers.items())))


def _answers(loaded: LoadedModel, asked: Sequence[tuple[Clip, str]], batch: int, longest: int) -> list[str]:
    texts = []
    for first in tqdm(range(0, len(asked), batch), "answers", mininterval=5.0):
        texts += answer_batch(loaded, asked[first : first + batch], longest)
    return texts


def report_lines(report: Report) -> Iterator[str]:
    """The report as a Markdown table."""
    yield f"{report.scenes} scenes"
    yield "| fact | precision | recall | F1 |"
    yield "| --- | --- | --- | --- |"
    for kind in ("all", *FACT_KINDS):
        score = report.facts[kind]
        yield f"| {kind} | {score.precision:.3f} | {score.recall:.3f} | {score.f1:.3f} |"
    yield ""
    yield "| question | right | asked | accuracy |"
    yield "| --- | --- | --- | --- |"
    right, asked = (sum(counts[index] for counts in report.answers.values()) for index in (0, 1))
    yield f"| all | {right} | {asked} | {report.accuracy:.3f} |"
    for kind, (right, asked) in report.answers.items():
        yield f"| {kind} | {right} | {asked} | {right / asked:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--half", choices=("target", "draft"), default="target")
    parser.add_argument("--model", type=Path, help="a folder to evaluate in place of the bundled half")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    loaded = load_model(given.model or PAIR_FOLDER / given.half, dtype="float32")
    report = evaluate(loaded, given.scenes)
    print("\n".join(report_lines(report)))
    if given.json:
        facts = {kind: score.f1 for kind, score in report.facts.items()}
        text = json.dumps({"scenes": report.scenes, "fact_f1": facts, "accuracy": report.accuracy}, indent=1)
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
