"""Facts and answers that a half of the bundled pair gets right: ``python -m tools.train_demo.evaluate``.

Held-out scenes are written as mp4 and decoded as a user's would be; the model decodes greedily, in float32.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from lvspec_cli.demo.facts import FACT_KINDS, FactScore, read_facts, scene_facts, score_facts
from lvspec_cli.demo.scenes import Scene
from lvspec_cli.demo.texts import CAPTION_PROMPTS, Question, is_right, questions
from lvspec_cli.demo.write import HELD_OUT_SEED, encode_scene, scene_of
from lvspec_cli.models.load import LoadedModel, load_model
from lvspec_cli.models.processing import video_metadata
from lvspec_cli.models.read import chat_text
from lvspec_cli.types import Clip, VideoRequest
from lvspec_cli.video.decode import read_clip
from tools.train_demo.halves import CLIP_FRAMES

PAIR_FOLDER = Path(__file__).parents[2] / "lvspec_cli" / "demo" / "pair"


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


def answer_batch(loaded: LoadedModel, asked: Sequence[tuple[Clip, str]], max_new_tokens: int) -> list[str]:
    """Greedy answers, by transformers' own ``generate``, to one question about each clip."""
    tokens = batch_tokens(loaded, asked, max_new_tokens)
    return loaded.processor.batch_decode(tokens, skip_special_tokens=True)


@torch.inference_mode()
def batch_tokens(
    loaded: LoadedModel, asked: Sequence[tuple[Clip, str]], max_new_tokens: int
) -> list[list[int]]:
    """The tokens of these answers, each with the end that it has come to."""
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
    ends = loaded.generation.end_ids
    return [_to_end(row, ends) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]


def _to_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Without what pads an answer that is shorter than others of its batch."""
    last = next((place for place, token in enumerate(tokens, 1) if token in ends), len(tokens))
    return tokens[:last]


@dataclass(frozen=True)
class HeldOut:
    """One held-out scene, its mp4 as decoded, and questions about it."""

    scene: Scene
    clip: Clip
    questions: list[Question]


def held_out_scenes(count: int) -> list[HeldOut]:
    """Write each scene as mp4 and decode it."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for number in tqdm(range(1, count + 1), "clips", mininterval=5.0):
            scene, rng = scene_of(HELD_OUT_SEED, number)
            encode_scene(scene, path)
            clip = read_clip(VideoRequest(path, max_frames=CLIP_FRAMES))
            found.append(HeldOut(scene, clip, questions(scene, rng)))
    return found


def evaluate(
    loaded: LoadedModel, held_out: Sequence[HeldOut], *, batch: int = 16, asked_per_scene: int = 5
) -> Report:
    """Caption every scene and ask up to ``asked_per_scene`` questions about it."""
    prompts = [CAPTION_PROMPTS[index % len(CAPTION_PROMPTS)] for index in range(len(held_out))]
    clips = [item.clip for item in held_out]
    captions = _answers(loaded, list(zip(clips, prompts, strict=True)), batch, 256)
    facts = add_scores(
        score_facts(read_facts(text), scene_facts(item.scene))
        for text, item in zip(captions, held_out, strict=True)
    )
    asked = [(item.clip, question) for item in held_out for question in item.questions[:asked_per_scene]]
    replies = _answers(loaded, [(clip, question.question) for clip, question in asked], 2 * batch, 32)
    answers: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for reply, (_, question) in zip(replies, asked, strict=True):
        right, total = answers[question.kind]
        answers[question.kind] = (right + is_right(question, reply), total + 1)
    return Report(len(held_out), facts, dict(sorted(answers.items())))


def _answers(loaded: LoadedModel, asked: Sequence[tuple[Clip, str]], batch: int, longest: int) -> list[str]:
    texts = []
    for first in tqdm(range(0, len(asked), batch), "answers", mininterval=5.0):
        texts += answer_batch(loaded, asked[first : first + batch], longest)
    return texts


def report_lines(reports: Mapping[str, Report]) -> Iterator[str]:
    """The reports of several models side by side, as two Markdown tables."""
    yield "| fact of a caption | " + " | ".join(f"F1 of the {name}" for name in reports) + " |"
    yield "| --- |" + " --- |" * len(reports)
    for kind in ("all", *FACT_KINDS):
        yield (
            f"| {kind} | " + " | ".join(f"{report.facts[kind].f1:.3f}" for report in reports.values()) + " |"
        )
    yield ""
    yield "| question | asked | " + " | ".join(f"right, {name}" for name in reports) + " |"
    yield "| --- | --- |" + " --- |" * len(reports)
    asked = sum(total for _, total in next(iter(reports.values())).answers.values())
    accuracies = [f"{report.accuracy:.3f}" for report in reports.values()]
    yield f"| all | {asked} | " + " | ".join(accuracies) + " |"
    for kind, (_, total) in next(iter(reports.values())).answers.items():
        rights = [report.answers[kind][0] / total for report in reports.values()]
        yield f"| {kind} | {total} | " + " | ".join(f"{right:.3f}" for right in rights) + " |"


def main() -> None:
    transformers_logging.set_verbosity_error()  # its notes are about its own releases
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", default=["target", "draft"], help="halves of the bundled pair, or folders"
    )
    parser.add_argument("--scenes", type=int, default=500)
    given = parser.parse_args()
    held_out = held_out_scenes(given.scenes)
    reports = {}
    for name in given.models:
        bundled = PAIR_FOLDER / name
        loaded = load_model(bundled if bundled.is_dir() else name, dtype="float32")
        reports[name] = evaluate(loaded, held_out)
    print(f"{given.scenes} held-out scenes, greedy, float32, {date.today()}\n")
    print("\n".join(report_lines(reports)))


def add_scores(parts: Iterable[Mapping[str, FactScore]]) -> dict[str, FactScore]:
    """Micro-averaged scores over many captions."""
    total = {kind: FactScore() for kind in (*FACT_KINDS, "all")}
    for part in parts:
        for kind, score in part.items():
            total[kind] += score
    return total


if __name__ == "__main__":
    main()
