"""Train a half of the bundled pair: ``python -m tools.train_demo.train --half target --out runs/target``.

First the vision tower alone, by a dense loss on its outputs (what stands in each patch), without which
training on text stays at the language prior for a long time. Then the next token of captions and answers,
where words that carry a fact weigh more until the rate falls; the vision tower may rest meanwhile.
Examples are a function of the seed and the step, so a run that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.utils import logging as transformers_logging

from tools.train_demo.dataset import (
    NOTHING,
    PATCH_WORDS,
    Batch,
    SceneDataset,
    SliceBatch,
    SliceDataset,
    collate,
    collate_slices,
)
from tools.train_demo.guides import IGNORED, KINDS, PRESENCE_KINDS, SCENE_KINDS, Guides
from tools.train_demo.halves import (
    SIZES,
    HalfName,
    build_model,
    build_processor,
    copy_into,
    copy_vision,
    save_half,
    train_tokenizer,
)
from tools.train_demo.muon import Muon
from tools.train_demo.vision import use_linear_patches, use_padded_slices


@dataclass(frozen=True)
class Plan:
    """What a run does: enough, with the code, to do it again."""

    half: HalfName
    layers: int
    steps: int
    batch: int
    learning_rate: float
    warm_up: int  # steps of rising rate
    decay: float  # share of the steps, at the end, over which the rate falls to nothing
    vision_first: int  # steps, at the start, on the vision tower alone
    slices: int  # slices in a batch of these
    frozen_until: int  # step until which the vision tower then stays as it is
    dense_until: int  # step until which the dense loss goes on beside the text's
    fact_weight: float  # of tokens that carry a fact, until the rate falls
    seen_after: int  # text layers after which the guides read the video's tokens
    told_after: int  # and after which they read the answers'
    guided_until: int  # step until which the guides' loss goes on beside the text's
    eventful: float  # share of the scenes that are the one of two with more events
    decisions: int  # questions a clip, beside the others, that are answered by yes or no
    decision_weight: float  # of a loss of the yes and no themselves: a token of each answer, else drowned
    seed: int
    save_every: int
    checked: int  # held-out clips that a line of the log is about


@dataclass(frozen=True)
class PatchReader:
    """Reads the vision tower's outputs with the text model's own words, for the dense loss.

    A patch's logit for a word is ``SHARPNESS`` times its product with the word's embedding, made a unit
    vector. So what stands in a patch is written into it as the embedding of the word for it, and the text
    model has only to find the patch and copy.
    """

    word_ids: Mapping[str, Tensor]  # by kind of patch label, long (values,)

    SHARPNESS: ClassVar[float] = 20.0

    @classmethod
    def of(cls, processor: Qwen2_5_VLProcessor, device: torch.device) -> PatchReader:
        def ids(words: Sequence[str]) -> Tensor:
            return torch.tensor([processor.tokenizer.encode(f" {word}")[0] for word in words], device=device)

        return cls({kind: ids(words) for kind, words in PATCH_WORDS.items()})

    def logits(self, features: Tensor, embeddings: Tensor) -> dict[str, Tensor]:
        """(V, values) for each kind, from features (V, width) and embeddings (vocabulary, width)."""
        return {
            kind: self.SHARPNESS * features @ functional.normalize(embeddings[ids].detach(), dim=-1).T
            for kind, ids in self.word_ids.items()
        }

    def loss(self, features: Tensor, labels: Tensor, embeddings: Tensor) -> Tensor:
        logits = self.logits(features.float(), embeddings).values()
        losses = [functional.cross_entropy(values, labels[:, index]) for index, values in enumerate(logits)]
        return torch.stack(losses).mean()


def rate_share(step: int, *, steps: int, warm_up: int, decay: float) -> float:
    """Share of the learning rate at a step: a linear rise, a plateau, and a linear fall to zero."""
    return min(1.0, (step + 1) / warm_up, (steps - step) / max(1.0, steps * decay))


@dataclass(frozen=True)
class Hidden:
    """What a pass over a batch leaves: B examples of T tokens, V of them the videos'."""

    layers: tuple[Tensor, ...]  # (B, T, width) after 0, 1, … text layers; the last is normed
    features: Tensor  # (V, width), the vision tower's outputs

    @property
    def last(self) -> Tensor:
        return self.layers[-1]


def forward_hidden(model: Qwen2_5_VLForConditionalGeneration, batch: Batch, frozen: bool) -> Hidden:
    """Hidden states of all text layers; no gradient for the vision tower where it is ``frozen``."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        features = model.model.visual(batch.pixels, grid_thw=batch.grids).pooler_output
    embeds = model.get_input_embeddings()(batch.input_ids)
    video = (batch.input_ids == model.config.video_token_id)[..., None].expand_as(embeds)
    layers = model.model.language_model(
        inputs_embeds=embeds.masked_scatter(video, features.to(embeds.dtype)),
        position_ids=batch.positions,
        attention_mask=batch.attention_mask(),
        use_cache=False,
        output_hidden_states=True,
    ).hidden_states
    return Hidden(layers, features)


def text_loss(
    model: Qwen2_5_VLForConditionalGeneration, hidden: Tensor, batch: Batch, fact_weight: float
) -> Tensor:
    learnt = batch.labels != IGNORED
    logits = model.lm_head(hidden[learnt]).float()
    weights = 1 + (fact_weight - 1) * batch.weights[learnt]
    losses = functional.cross_entropy(logits, batch.labels[learnt], reduction="none")
    return (losses * weights).sum() / weights.sum()


def decision_loss(run: Run, hidden: Tensor, batch: Batch) -> Tensor:
    """Of the yes or no that begins an answer; 0 where the batch has none."""
    decided = torch.isin(batch.labels, run.decisions)
    if not decided.any():
        return hidden.new_zeros(())
    return functional.cross_entropy(run.model.lm_head(hidden[decided]).float(), batch.labels[decided])


@torch.no_grad()
def fact_accuracy(model: Qwen2_5_VLForConditionalGeneration, batches: list[Batch]) -> tuple[float, float]:
    """Share of fact tokens, and loss of all tokens, predicted right with the reference text before them."""
    model.eval()
    right = total = 0
    losses = []
    for batch in batches:
        hidden = forward_hidden(model, batch, True).last
        facts = (batch.labels != IGNORED) & (batch.weights > 0)
        right += int((model.lm_head(hidden[facts]).argmax(-1) == batch.labels[facts]).sum())
        total += int(facts.sum())
        losses.append(float(text_loss(model, hidden, batch, 1.0)))
    model.train()
    return right / total, sum(losses) / len(losses)


@torch.no_grad()
def patch_accuracy(
    model: Qwen2_5_VLForConditionalGeneration, reader: PatchReader, batches: list[Batch]
) -> str:
    """Accuracy per kind of patch label, on patches with an object (the background's on all)."""
    rights: dict[str, list[Tensor]] = {kind: [] for kind in PATCH_WORDS}
    for batch in batches:
        features = model.model.visual(batch.pixels, grid_thw=batch.grids).pooler_output
        logits = reader.logits(features, model.get_input_embeddings().weight)
        for index, (kind, values) in enumerate(logits.items()):
            labels = batch.patch_labels[:, index]
            seen = labels > 0 if NOTHING in PATCH_WORDS[kind] else labels >= 0
            rights[kind].append((values.argmax(-1) == labels)[seen])
    return " ".join(f"{kind} {torch.cat(right).float().mean():.3f}" for kind, right in rights.items())


@torch.no_grad()
def guide_accuracy(run: Run, batches: list[Batch]) -> str:
    """What the guides read right, by kind, of the video's tokens and of the answers'."""
    seen, told, whole, held = [], [], [], []
    for batch in batches:
        hidden = forward_hidden(run.model, batch, True)
        at_video, at_answers = guided_positions(run, batch)
        seen.append(
            run.guides.accuracy("seen", hidden.layers[run.plan.seen_after][at_video], batch.seen_labels)
        )
        labels = batch.told_labels[:, at_answers].T
        told.append(run.guides.accuracy("told", hidden.layers[run.plan.told_after][at_answers], labels))
        whole.append(run.guides.scene_accuracy(*scene_reading(run, hidden, batch, batch.scene_labels)))
        reading = scene_reading(run, hidden, batch, batch.presence_labels)
        held.append(run.guides.presence_accuracy(*reading))
    parts = []
    for name, kinds, rights in (
        ("seen", KINDS, seen),
        ("told", KINDS, told),
        ("scene", SCENE_KINDS, whole),
        ("presence", PRESENCE_KINDS, held),
    ):
        means = torch.stack(rights).mean(0).tolist()
        parts += [name, *(f"{kind} {value:.2f}" for kind, value in zip(kinds, means, strict=True))]
    return " ".join(parts)


@torch.no_grad()
def decision_accuracy(run: Run, batches: list[Batch]) -> float:
    """Share of yes and no that are right."""
    rights = []
    for batch in batches:
        decided = torch.isin(batch.labels, run.decisions)
        hidden = forward_hidden(run.model, batch, True).last[decided]
        rights.append(run.model.lm_head(hidden).argmax(-1) == batch.labels[decided])
    return float(torch.cat(rights).float().mean())


def guided_positions(run: Run, batch: Batch) -> tuple[Tensor, Tensor]:
    """Where the guides read, bool (B, T) each: at the video, and before a token about an object."""
    return batch.input_ids == run.model.config.video_token_id, batch.told_labels[1] != IGNORED


def guide_loss(run: Run, hidden: Hidden, batch: Batch) -> Tensor:
    at_video, at_answers = guided_positions(run, batch)
    seen = run.guides.seen_loss(hidden.layers[run.plan.seen_after][at_video], batch.seen_labels)
    labels = batch.told_labels[:, at_answers].T
    told = run.guides.told_loss(hidden.layers[run.plan.told_after][at_answers], labels)
    scene = run.guides.scene_loss(*scene_reading(run, hidden, batch, batch.scene_labels))
    presence = run.guides.presence_loss(*scene_reading(run, hidden, batch, batch.presence_labels))
    return seen + told + scene + presence


def scene_reading(run: Run, hidden: Hidden, batch: Batch, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What the guides of a scene read, (N, width), before each token of an answer, and its ``labels``."""
    learnt = batch.labels != IGNORED
    spread = labels[:, None].expand(-1, batch.labels.shape[1], -1)
    return hidden.layers[run.plan.told_after][learnt], spread[learnt]


def make_optimizers(model: Qwen2_5_VLForConditionalGeneration, guides: Guides) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, biases, norms and the guides."""
    inner = {id(p) for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name}
    matrices = [p for p in model.parameters() if id(p) in inner]
    others = [p for p in model.parameters() if id(p) not in inner] + list(guides.parameters())
    adam = torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    # Matrices take steps of this many times the rate: tried, and the vision tower learns faster.
    return [Muon(matrices, lr=1.0, weight_decay=0.02, scale=2.5), adam]


@dataclass(frozen=True)
class Run:
    """What training works on: the plan, the model and the optimizers, which hold state."""

    plan: Plan
    model: Qwen2_5_VLForConditionalGeneration
    reader: PatchReader
    guides: Guides
    optimizers: list[torch.optim.Optimizer]
    processor: Qwen2_5_VLProcessor
    out: Path

    @property
    def decisions(self) -> Tensor:
        """Ids of Yes and No, as an answer begins with them, long (2,)."""
        ids = [self.processor.tokenizer.encode(word)[0] for word in ("Yes,", "No,")]
        return torch.tensor(ids, device=self.model.device)

    @property
    def state_file(self) -> Path:
        return self.out / "checkpoint.pt"

    def save(self, step: int) -> None:
        state = {
            "model": self.model.state_dict(),
            "guides": self.guides.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": step,
        }
        torch.save(state, self.state_file.with_suffix(".new"))
        self.state_file.with_suffix(".new").replace(self.state_file)

    def restore(self, device: torch.device) -> int:
        """Load the checkpoint where there is one; returns the steps done."""
        if not self.state_file.exists():
            return 0
        state = torch.load(self.state_file, map_location=device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.guides.load_state_dict(state["guides"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        return int(state["step"])


def start_run(
    plan: Plan, out: Path, device: torch.device, start_from: Path | None, vision_from: Path | None
) -> Run:
    # A half that builds on another keeps its words' ids: a pair shares its tokenizer.
    kept = start_from or vision_from
    tokenizer = AutoTokenizer.from_pretrained(kept) if kept else train_tokenizer()
    model = build_model(plan.half, tokenizer, plan.seed, plan.layers).to(device)
    if start_from is not None:
        copy_into(_load(start_from), model)
    if vision_from is not None:
        copy_vision(_load(vision_from), model)
    use_linear_patches(model)
    use_padded_slices(model)
    processor = build_processor(tokenizer)
    guides = Guides(SIZES[plan.half].width).to(device)
    out.mkdir(parents=True, exist_ok=True)
    reader, optimizers = PatchReader.of(processor, device), make_optimizers(model, guides)
    return Run(plan, model.train(), reader, guides, optimizers, processor, out)


def _load(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def batches(run: Run, first: int, workers: int) -> Iterator[Batch | SliceBatch]:
    """The batches from step ``first`` on: slices for the vision tower, then clips with their turns."""
    plan = run.plan
    slices = SliceDataset(run.processor, plan.vision_first * plan.slices, seed=plan.seed)
    yield from _loader(slices, first, plan.slices, collate_slices, workers)
    examples = SceneDataset(
        run.processor,
        plan.steps * plan.batch,
        seed=plan.seed,
        eventful=plan.eventful,
        decisions=plan.decisions,
    )
    yield from _loader(examples, max(first, plan.vision_first), plan.batch, collate, workers)


def _loader(
    examples: SliceDataset | SceneDataset, first: int, size: int, join: Callable[..., Any], workers: int
) -> DataLoader[Any]:
    rest: Subset[Any] = Subset(examples, range(min(first * size, len(examples)), len(examples)))
    ahead = 8 if workers else None
    return DataLoader(rest, size, collate_fn=join, num_workers=workers, prefetch_factor=ahead)


def train(
    plan: Plan,
    out: Path,
    *,
    device: torch.device,
    workers: int,
    start_from: Path | None = None,
    vision_from: Path | None = None,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Train to the plan's end, from ``out``'s checkpoint where there is one; ``out/model`` is the result."""
    run = start_run(plan, out, device, start_from, vision_from)
    first = run.restore(device)
    held_out = SceneDataset(run.processor, plan.checked, seed=-1)
    checks = [batch.to(device) for batch in _loader(held_out, 0, 16, collate, workers=0)]
    bar = tqdm(batches(run, first, workers), plan.half, plan.steps, initial=first, mininterval=5.0)
    started = time.monotonic()
    for step, batch in enumerate(bar, start=first):
        train_step(run, batch.to(device), step)
        done = step + 1
        if done % plan.save_every == 0 or done == plan.steps:
            line = f"{progress_line(run, checks, done)} minutes {(time.monotonic() - started) / 60:.2f}"
            tqdm.write(line)
            with (out / "log.txt").open("a", encoding="utf-8") as log:
                log.write(line + "\n")
            run.save(done)
        after_step(done)
    save_half(run.model.cpu(), run.processor, out / "model")


def progress_line(run: Run, checks: list[Batch], done: int) -> str:
    if done <= run.plan.vision_first:
        return f"step {done} patches {patch_accuracy(run.model, run.reader, checks)}"
    accuracy, loss = fact_accuracy(run.model, checks)
    line = f"step {done} facts {accuracy:.4f} loss {loss:.4f} decisions {decision_accuracy(run, checks):.3f}"
    return f"{line} {guide_accuracy(run, checks)}" if done <= run.plan.guided_until else line


def train_step(run: Run, batch: Batch | SliceBatch, step: int) -> None:
    plan = run.plan
    share = rate_share(step, steps=plan.steps, warm_up=plan.warm_up, decay=plan.decay)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * share
    loss = step_loss(run, batch, step)
    if not math.isfinite(loss.item()):
        raise RuntimeError(f"the loss is not finite at step {step}")
    loss.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0, error_if_nonfinite=True)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def step_loss(run: Run, batch: Batch | SliceBatch, step: int) -> Tensor:
    plan, model = run.plan, run.model
    embeddings = model.get_input_embeddings().weight
    if isinstance(batch, SliceBatch):
        features = model.model.visual(batch.pixels, grid_thw=batch.grids).pooler_output
        return run.reader.loss(features, batch.patch_labels, embeddings)
    hidden = forward_hidden(model, batch, step < plan.frozen_until)
    falling = step >= plan.steps * (1 - plan.decay)
    loss = text_loss(model, hidden.last, batch, 1.0 if falling else plan.fact_weight)
    loss = loss + plan.decision_weight * decision_loss(run, hidden.last, batch)
    if step < plan.guided_until:
        loss = loss + guide_loss(run, hidden, batch)
    if plan.frozen_until <= step < plan.dense_until:
        loss = loss + run.reader.loss(hidden.features, batch.patch_labels, embeddings)
    return loss


def main() -> None:
    transformers_logging.set_verbosity_error()  # its notes are about its own releases
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--half", choices=("target", "draft"), required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the checkpoint, the log and the model"
    )
    parser.add_argument("--layers", type=int, help="text layers; fewer than the half's own train faster")
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--warm-up", type=int, default=200)
    parser.add_argument("--decay", type=float, default=0.2)
    parser.add_argument("--vision-first", type=int, default=2000)
    parser.add_argument("--slices", type=int, default=32)
    parser.add_argument("--frozen-until", type=int, default=12_000)
    parser.add_argument("--dense-until", type=int, default=0)
    parser.add_argument("--fact-weight", type=float, default=4.0)
    parser.add_argument("--seen-after", type=int, default=2)
    parser.add_argument("--told-after", type=int, default=4)
    parser.add_argument("--guided-until", type=int, default=12_000)
    parser.add_argument("--eventful", type=float, default=0.0)
    parser.add_argument("--decisions", type=int, default=0)
    parser.add_argument("--decision-weight", type=float, default=0.0)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--checked", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--start-from", type=Path, help="folder of a half to go on from")
    parser.add_argument("--vision-from", type=Path, help="folder of a half whose vision tower to begin with")
    given = vars(parser.parse_args())
    out, device, threads = given.pop("out"), torch.device(given.pop("device")), given.pop("threads")
    workers, sources = given.pop("workers"), {name: given.pop(name) for name in ("start_from", "vision_from")}
    given["layers"] = given["layers"] or SIZES[given["half"]].layers
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")  # a GPU's tensor cores
    train(Plan(**given), out, device=device, workers=workers, **sources)


if __name__ == "__main__":
    main()
