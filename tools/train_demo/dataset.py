"""Training examples: one clip's pixels, and a caption and several questions packed behind it.

Every turn sees the video and itself, never another turn (``segments``), and stands at the positions that
it would have alone: what training sees is what decoding sees.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

from lvspec_cli.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    FACT_WORDS,
    MOTIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    colour_at,
    is_visible,
    position,
    sample_scene,
)
from lvspec_cli.demo.texts import CAPTION_PROMPTS, Span, caption_spans, questions, yes_no_questions
from lvspec_cli.demo.write import render_frames
from tools.train_demo.guides import (
    IGNORED,
    empty_labels,
    object_labels,
    presence_labels,
    scene_labels,
    told_labels,
)
from tools.train_demo.halves import CLIP_FRAMES, FRAME_PIXELS, TOKENS_PER_SECOND

# Kinds of patch label and the word of each value; value 0 of an object's kinds means no object.
NOTHING = "nothing"
PATCH_WORDS = {
    "colour": (NOTHING, *COLOURS),
    "shape": (NOTHING, *SHAPES),
    "size": (NOTHING, *SIZES),
    "motion": (NOTHING, *MOTIONS),
    "background": tuple(BACKGROUNDS),
    "texture": TEXTURES,
}


@dataclass(frozen=True)
class Example:
    """One clip with its turns. T tokens, of which V are the video's; P patches."""

    pixels: Tensor  # float32 (P, patch values)
    grid: Tensor  # long (3,)
    input_ids: Tensor  # long (T,)
    labels: Tensor  # long (T,), the next token where it is learnt, else IGNORED
    weights: Tensor  # float32 (T,), 1 where the next token carries a fact
    positions: Tensor  # long (3, T)
    segments: Tensor  # long (T,), 0 for the video's prefix, then one number a turn
    patch_labels: Tensor  # long (V, kinds of patch label)
    seen_labels: Tensor  # long (V, kinds), what the text model should know of the video's tokens
    told_labels: Tensor  # long (kinds, T), what it should know of the object that the next token is about
    scene_labels: Tensor  # long (scene kinds,), and of the whole video
    presence_labels: Tensor  # long (presence kinds,), and of what it holds


@dataclass(frozen=True)
class Turn:
    """A question and its answer, in stretches with the object that each is about."""

    question: str
    answer: tuple[Span, ...]


class SceneDataset(Dataset[Example]):
    """Example ``index`` is drawn from its own seed: any stretch can be made again, by any worker."""

    def __init__(
        self,
        processor: Qwen2_5_VLProcessor,
        count: int,
        *,
        seed: int,
        turns: int = 5,
        eventful: float = 0.0,
        decisions: int = 0,
    ) -> None:
        self.processor = processor
        self.count = count
        self.seed = seed
        self.turns = turns
        self.eventful = eventful
        self.decisions = decisions
        self.fact_tokens = fact_tokens(processor)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        rng = random.Random(f"{self.seed}/{index}")
        scene = training_scene(rng, self.eventful)
        times = sample_times(scene, rng)
        video = frame_values(self.processor, scene, times)
        turns = [Turn(rng.choice(CAPTION_PROMPTS), tuple(caption_spans(scene, rng)))]
        asked = questions(scene, rng)[: self.turns] + yes_no_questions(scene, rng, self.decisions)
        turns += [Turn(item.question, (Span(item.answer, item.about),)) for item in asked]
        grid = video["video_grid_thw"][0]
        seconds_per_grid = 2 * (times[-1] - times[0]) / (len(times) - 1)
        tokens = pack_turns(self.processor, turns, grid, seconds_per_grid)
        subjects = tokens.pop("subjects")
        weights = torch.isin(tokens["labels"], self.fact_tokens).float()
        return Example(
            video["pixel_values_videos"],
            grid,
            **tokens,
            weights=weights,
            patch_labels=patch_labels(scene, times, grid),
            seen_labels=seen_labels(scene, times, grid),
            told_labels=told_labels(object_labels(scene), subjects),
            scene_labels=scene_labels(scene),
            presence_labels=presence_labels(scene),
        )


def training_scene(rng: random.Random, eventful: float) -> Scene:
    """A scene of the world; a share ``eventful`` of the time the one of two with more events."""
    scenes = [sample_scene(rng) for _ in range(2 if rng.random() < eventful else 1)]
    return max(scenes, key=lambda scene: len(scene.events))


@dataclass(frozen=True)
class Slice:
    """Two frames of one clip, all that the vision tower sees at a time. P patches, V tokens."""

    pixels: Tensor  # float32 (P, patch values)
    grid: Tensor  # long (3,)
    patch_labels: Tensor  # long (V, kinds of patch label)


class SliceDataset(Dataset[Slice]):
    """One slice a scene: many more objects for the same work than all slices of fewer scenes."""

    def __init__(self, processor: Qwen2_5_VLProcessor, count: int, *, seed: int) -> None:
        self.processor = processor
        self.count = count
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Slice:
        rng = random.Random(f"slices/{self.seed}/{index}")
        scene = sample_scene(rng)
        first = 2 * rng.randrange(CLIP_FRAMES // 2)
        times = sample_times(scene, rng)[first : first + 2]
        video = frame_values(self.processor, scene, times)
        grid = video["video_grid_thw"][0]
        return Slice(video["pixel_values_videos"], grid, patch_labels(scene, times, grid))


def frame_values(processor: Qwen2_5_VLProcessor, scene: Scene, times: list[float]) -> Mapping[str, Tensor]:
    """What the pair's own processor makes of a scene's frames, rendered at the size that it wants."""
    height, width = smart_resize(scene.height, scene.width, 28, 56 * 56, FRAME_PIXELS)
    frames = torch.from_numpy(render_frames(scene, times, width, height)).permute(0, 3, 1, 2)
    return processor.video_processor(videos=[frames], do_sample_frames=False, return_tensors="pt")


def sample_times(scene: Scene, rng: random.Random) -> list[float]:
    """Evenly spaced frame times, both ends included; in one clip of four with some play at the ends."""
    step, play = 1 / scene.frame_rate, 0.5 * scene.duration / CLIP_FRAMES
    first, last = 0.0, scene.duration - step
    if rng.random() < 0.25:
        first, last = rng.uniform(0, play), last - rng.uniform(0, play)
    return [round(time / step) * step for time in np.linspace(first, last, CLIP_FRAMES)]


def fact_tokens(processor: Qwen2_5_VLProcessor) -> Tensor:
    """Ids of the tokens that are, or begin, a word that carries a fact."""
    encode = processor.tokenizer.encode
    return torch.tensor(sorted({encode(before + word)[0] for word in FACT_WORDS for before in ("", " ")}))


def pack_turns(
    processor: Qwen2_5_VLProcessor, turns: Sequence[Turn], grid: Tensor, seconds_per_grid: float
) -> dict[str, Tensor]:
    """Token ids, labels, positions, segments and subjects of a clip with several turns behind it."""
    tokenizer = processor.tokenizer
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "\0"}]}]
    template = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, after = template.split("\0")
    prefix = tokenizer.encode(before)
    place = prefix.index(tokenizer.convert_tokens_to_ids("<|video_pad|>"))
    grid_t, grid_h, grid_w = int(grid[0]), int(grid[1]) // 2, int(grid[2]) // 2
    visual = grid_t * grid_h * grid_w
    ids = prefix[:place] + [prefix[place]] * visual + prefix[place + 1 :]
    positions = [video_positions(place, len(prefix) - place - 1, (grid_t, grid_h, grid_w), seconds_per_grid)]
    next_position = int(positions[0][:, -1].max()) + 1
    labels, segments, subjects = [IGNORED] * len(ids), [0] * len(ids), [IGNORED] * len(ids)
    for number, turn in enumerate(turns, start=1):
        asked = tokenizer.encode(turn.question + after)
        said, about = encode_spans(processor, turn.answer)
        ids += asked + said
        # A position is learnt where its next token is the answer's.
        labels += [IGNORED] * (len(asked) - 1) + said + [IGNORED]
        subjects += [IGNORED] * (len(asked) - 1) + about + [IGNORED]
        segments += [number] * (len(asked) + len(said))
        # Decoding goes on from the prompt's last position, also where the video's times go further.
        places = next_position + torch.arange(len(asked) + len(said))
        positions.append(places.expand(3, -1))
    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "positions": torch.cat(positions, dim=1),
        "segments": torch.tensor(segments),
        "subjects": torch.tensor(subjects),
    }


def encode_spans(processor: Qwen2_5_VLProcessor, answer: Sequence[Span]) -> tuple[list[int], list[int]]:
    """An answer's token ids up to its end, and the object that each token is about."""
    text = "".join(told.text for told in answer) + "<|im_end|>"
    encoded = processor.tokenizer(text, return_offsets_mapping=True)
    about = [IGNORED if told.about is None else told.about for told in answer for _ in told.text]
    about += [IGNORED] * (len(text) - len(about))
    return encoded["input_ids"], [about[begin] for begin, _ in encoded["offset_mapping"]]


def video_positions(before: int, after: int, grid: tuple[int, int, int], seconds_per_grid: float) -> Tensor:
    """Qwen2.5-VL's positions (time, row, column) of text, a video and text, long (3, tokens).

    The formula is that of ``Qwen2_5_VLModel.get_rope_index``; a test holds the two together.
    """
    time = (torch.arange(grid[0]) * (TOKENS_PER_SECOND * seconds_per_grid)).long()
    axes = torch.meshgrid(time, torch.arange(grid[1]), torch.arange(grid[2]), indexing="ij")
    video = torch.stack(axes).reshape(3, -1) + before
    text_after = before + max(grid[1], grid[2]) + torch.arange(after)
    return torch.cat([torch.arange(before).expand(3, -1), video, text_after.expand(3, -1)], dim=1)


def patch_labels(scene: Scene, times: list[float], grid: Tensor) -> Tensor:
    """What the vision tower should know of each of its outputs, long (V, kinds): see ``PATCH_WORDS``."""
    ground = (list(BACKGROUNDS).index(scene.background), TEXTURES.index(scene.texture))
    cells = covered_cells(scene, times, grid, ghosts=False)
    labels = np.zeros((*cells.shape, len(PATCH_WORDS)), dtype=np.int64)
    labels[..., 4:] = ground
    for step, index in _shown(cells):
        item, second = scene.objects[index], _last_time(times, step)
        labels[step][cells[step] == index] = (
            1 + list(COLOURS).index(colour_at(item, second)),
            1 + list(SHAPES).index(item.shape),
            1 + list(SIZES).index(item.size),
            1 + list(MOTIONS).index(item.motion),
            *ground,
        )
    return torch.from_numpy(labels.reshape(-1, len(PATCH_WORDS)))


def seen_labels(scene: Scene, times: list[float], grid: Tensor) -> Tensor:
    """What the text model should know of each of the video's tokens, long (V, kinds): ``guides.KINDS``.

    A patch where an object was before it left is still about this object.
    """
    cells = covered_cells(scene, times, grid, ghosts=True)
    known = object_labels(scene)
    labels = empty_labels(*cells.shape)
    for step, index in _shown(cells):
        values = known[index].clone()
        values[0] = step > 0
        happened = [event.time for event in scene.events if event.index == index]
        if happened and happened[0] > _last_time(times, step):
            values[-2:] = 0  # the event, and the colour after it, are still to come
        labels[step][cells[step] == index] = values.numpy()
    return torch.from_numpy(labels.reshape(-1, known.shape[1]))


def _shown(cells: np.ndarray) -> list[tuple[int, int]]:
    return [
        (step, int(index)) for step in range(len(cells)) for index in np.unique(cells[step]) if index >= 0
    ]


def _last_time(times: list[float], step: int) -> float:
    return times[min(2 * step + 1, len(times) - 1)]


def covered_cells(scene: Scene, times: list[float], grid: Tensor, *, ghosts: bool) -> np.ndarray:
    """The object in each of a slice's cells, long (slices, rows, columns), or -1.

    An object counts where it covers a third of the cell, or of itself. With ``ghosts`` one that has left
    counts where it was last, if nothing else is there.
    """
    grid_t, rows, columns = int(grid[0]), int(grid[1]) // 2, int(grid[2]) // 2
    shorter = min(scene.width, scene.height)
    cells = np.full((grid_t, rows, columns), -1)
    best = np.full(cells.shape, 0.35)
    for step in range(grid_t):
        first, second = times[2 * step], _last_time(times, step)
        for index, item in enumerate(scene.objects):
            gone = item.visible_to is not None and second >= item.visible_to
            if not (is_visible(item, second) or (ghosts and gone)):
                continue
            x, y = position(item, (first + second) / 2, scene.duration)
            reach = (item.radius * 0.9 * shorter / scene.width, item.radius * 0.9 * shorter / scene.height)
            across, down = _overlap(x, reach[0], columns), _overlap(y, reach[1], rows)
            cell, own = 1 / (rows * columns), 4 * reach[0] * reach[1]
            cover = down[:, None] * across[None, :] / min(cell, own) * (0.5 if gone else 1.0)
            chosen = cover > best[step]
            cells[step][chosen] = index
            best[step][chosen] = cover[chosen]
    return cells


def _overlap(centre: float, reach: float, cells: int) -> np.ndarray:
    edges = np.arange(cells + 1) / cells
    return np.clip(np.minimum(edges[1:], centre + reach) - np.maximum(edges[:-1], centre - reach), 0, None)


@dataclass(frozen=True)
class Batch:
    """B examples padded to T tokens; all their P patches and V video tokens in a row."""

    pixels: Tensor  # float32 (P, patch values)
    grids: Tensor  # long (B, 3)
    input_ids: Tensor  # long (B, T)
    labels: Tensor  # long (B, T)
    weights: Tensor  # float32 (B, T)
    positions: Tensor  # long (3, B, T)
    segments: Tensor  # long (B, T), -1 for padding
    patch_labels: Tensor  # long (V, kinds)
    seen_labels: Tensor  # long (V, kinds)
    told_labels: Tensor  # long (kinds, B, T)
    scene_labels: Tensor  # long (B, scene kinds)
    presence_labels: Tensor  # long (B, presence kinds)

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})

    def attention_mask(self) -> Tensor:
        """Bool (B, 1, T, T): causal, to the video's prefix and to the token's own turn."""
        length = self.segments.shape[1]
        own, other = self.segments[:, :, None], self.segments[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool, device=own.device).tril()
        diagonal = torch.eye(length, dtype=torch.bool, device=own.device)  # padding sees itself: no empty row
        return (((other == 0) | (other == own)) & causal | diagonal)[:, None]


@dataclass(frozen=True)
class SliceBatch:
    """Slices in a row: all their P patches and V tokens."""

    pixels: Tensor  # float32 (P, patch values)
    grids: Tensor  # long (slices, 3)
    patch_labels: Tensor  # long (V, kinds)

    def to(self, device: torch.device) -> SliceBatch:
        return SliceBatch(self.pixels.to(device), self.grids.to(device), self.patch_labels.to(device))


def collate_slices(slices: list[Slice]) -> SliceBatch:
    return SliceBatch(
        torch.cat([item.pixels for item in slices]),
        torch.stack([item.grid for item in slices]),
        torch.cat([item.patch_labels for item in slices]),
    )


def collate(examples: list[Example]) -> Batch:
    length = max(len(example.input_ids) for example in examples)

    def padded(name: str, value: float) -> Tensor:
        rows = [getattr(example, name) for example in examples]
        return torch.stack(
            [torch.nn.functional.pad(row, (0, length - row.shape[-1]), value=value) for row in rows], dim=-2
        )

    return Batch(
        pixels=torch.cat([example.pixels for example in examples]),
        grids=torch.stack([example.grid for example in examples]),
        input_ids=padded("input_ids", 0),
        labels=padded("labels", IGNORED),
        weights=padded("weights", 0),
        positions=padded("positions", 0),
        segments=padded("segments", -1),
        patch_labels=torch.cat([example.patch_labels for example in examples]),
        seen_labels=torch.cat([example.seen_labels for example in examples]),
        told_labels=padded("told_labels", IGNORED),
        scene_labels=torch.stack([example.scene_labels for example in examples]),
        presence_labels=torch.stack([example.presence_labels for example in examples]),
    )
