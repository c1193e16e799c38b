"""Train a half of the bundled pair: ``python -m lvspec_cli.demo.train --half target --out runs/target``.

Three losses: the next token of captions and answers (words that carry a fact weigh more until the last
part), and for the first part of the steps a dense loss on the vision tower's outputs (what stands in each
patch), without which training on text alone stays at the language prior for a long time. The examples are
a function of the seed and the step, so a run that was stopped goes on where its checkpoint is.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration

from lvspec_cli.demo.dataset import IGNORED, PATCH_LABELS, Batch, SceneDataset, collate
from lvspec_cli.demo.halves import SIZES, HalfName, build_model, build_processor, copy_into, save_half, train_tokenizer
from lvspec_cli.demo.muon import Muon


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
    dense: float  # share of the steps with the dense loss on the vision tower
    vision_first: int  # steps, at the start, on the vision tower alone
    fact_weight: float  # of tokens that carry a fact, until the rate falls
    freeze_vision: float  # share of the steps after which the vision tower stays as it is
    seed: int


class PatchReader(nn.Module):
    """Linear readers of the vision tower's outputs, for the dense loss only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in PATCH_LABELS.items()})

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        losses = [
            functional.cross_entropy(head(features), labels[:, index])
            for index, head in enumerate(self.heads.values())
        ]
        return torch.stack(losses).mean()


def rate_at(step: int, plan: Plan) -> float:
    """Learning rate: a linear rise, a plateau, and a linear fall to zero."""
    rise = min(1.0, (step + 1) / plan.warm_up)
    fall = min(1.0, (plan.steps - step) / max(1.0, plan.steps * plan.decay))
    return plan.learning_rate * rise * fall


def use_linear_patches(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Compute the patch embedding, a convolution that never overlaps, as the product that it is.

    The gradient of the convolution alone takes a fifth of a training step on a CPU.
    """
    embed = model.model.visual.patch_embed

    def product(pixels: Tensor) -> Tensor:
        return functional.linear(pixels, embed.proj.weight.flatten(1))

    embed.forward = product


def forward_hidden(model: Qwen2_5_VLForConditionalGeneration, batch: Batch, frozen: bool) -> tuple[Tensor, Tensor]:
    """Last hidden states (B, T, width) and the vision tower's outputs (V, width)."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        features = model.model.visual(batch.pixels, grid_thw=batch.grids).pooler_output
    embeds = model.get_input_embeddings()(batch.input_ids)
    video = (batch.input_ids == model.config.video_token_id)[..., None].expand_as(embeds)
    hidden = model.model.language_model(
        inputs_embeds=embeds.masked_scatter(video, features.to(embeds.dtype)),
        position_ids=batch.positions,
        attention_mask=batch.attention_mask(),
        use_cache=False,
    ).last_hidden_state
    return hidden, features


def text_loss(model: Qwen2_5_VLForConditionalGeneration, hidden: Tensor, batch: Batch, fact_weight: float) -> Tensor:
    learnt = batch.labels != IGNORED
    logits = model.lm_head(hidden[learnt]).float()
    weights = 1 + (fact_weight - 1) * batch.weights[learnt]
    losses = functional.cross_entropy(logits, batch.labels[learnt], reduction="none")
    return (losses * weights).sum() / weights.sum()


@torch.no_grad()
def fact_accuracy(model: Qwen2_5_VLForConditionalGeneration, batches: list[Batch]) -> tuple[float, float]:
    """Share of fact tokens, and loss of all tokens, predicted right with the reference text before them."""
    model.eval()
    right = total = 0
    losses = []
    for batch in batches:
        hidden, _ = forward_hidden(model, batch, True)
        facts = (batch.labels != IGNORED) & (batch.weights > 0)
        right += int((model.lm_head(hidden[facts]).argmax(-1) == batch.labels[facts]).sum())
        total += int(facts.sum())
        losses.append(float(text_loss(model, hidden, batch, 1.0)))
    model.train()
    return right / total, sum(losses) / len(losses)


@torch.no_grad()
def patch_accuracy(model: Qwen2_5_VLForConditionalGeneration, reader: PatchReader, batches: list[Batch]) -> str:
    """Accuracy per kind of patch label, on patches with an object (the background's on all)."""
    rights: dict[str, list[float]] = {name: [] for name in PATCH_LABELS}
    for batch in batches:
        features = model.model.visual(batch.pixels, grid_thw=batch.grids).pooler_output
        for index, (name, head) in enumerate(reader.heads.items()):
            labels = batch.patch_labels[:, index]
            seen = labels > 0 if name != "background" else labels >= 0
            rights[name].append(float((head(features).argmax(-1) == labels)[seen].float().mean()))
    return " ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in rights.items())


def make_optimizers(model: Qwen2_5_VLForConditionalGeneration, reader: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, biases, norms and the readers."""
    inner = {id(p) for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name}
    matrices = [p for p in model.parameters() if id(p) in inner]
    others = [p for p in model.parameters() if id(p) not in inner] + list(reader.parameters())
    adam = torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    # Matrices take steps of this many times the rate: tried, and the vision tower learns faster.
    return [Muon(matrices, lr=1.0, weight_decay=0.02, scale=2.5), adam]


def train(plan: Plan, out: Path, *, device: torch.device, workers: int, start_from: Path | None) -> None:
    tokenizer = train_tokenizer()
    processor = build_processor(tokenizer)
    model = build_model(plan.half, tokenizer, plan.seed, plan.layers).to(device)
    if start_from is not None:
        copy_into(Qwen2_5_VLForConditionalGeneration.from_pretrained(start_from, dtype=torch.float32), model)
    use_linear_patches(model)
    reader = PatchReader(model.config.text_config.hidden_size).to(device)
    optimizers = make_optimizers(model, reader)
    state_file = out / "checkpoint.pt"
    out.mkdir(parents=True, exist_ok=True)
    first = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        reader.load_state_dict(state["reader"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        first = state["step"]
    examples = SceneDataset(processor, plan.steps * plan.batch, seed=plan.seed)
    rest = Subset(examples, range(first * plan.batch, len(examples)))
    loader = DataLoader(
        rest, plan.batch, collate_fn=collate, num_workers=workers, prefetch_factor=8 if workers else None
    )
    held_out = SceneDataset(processor, 64, seed=-1)
    checks = [collate([held_out[i + j] for j in range(16)]).to(device) for i in range(0, 64, 16)]
    bar = tqdm(loader, initial=first, total=plan.steps, desc=plan.half, mininterval=5.0, smoothing=0.05)
    model.train()
    started = time.monotonic()
    for step, batch in enumerate(bar, start=first):
        train_step(model, reader, optimizers, batch.to(device), step, plan)
        done = step + 1
        if done % 250 == 0 or done == plan.steps:
            accuracy, loss = fact_accuracy(model, checks)
            minutes = (time.monotonic() - started) / 60
            line = f"step {done} facts {accuracy:.4f} loss {loss:.4f} minutes {minutes:.1f}"
            if step < plan.vision_first:
                line += f" patches {patch_accuracy(model, reader, checks)}"
            with (out / "log.txt").open("a") as log:
                log.write(line + "\n")
            tqdm.write(line)
            state = {"model": model.state_dict(), "reader": reader.state_dict(),
                     "optimizers": [optimizer.state_dict() for optimizer in optimizers], "step": done}  # fmt: skip
            torch.save(state, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").replace(state_file)
    save_half(model.cpu(), processor, out / "model")


def train_step(
    model: Qwen2_5_VLForConditionalGeneration,
    reader: PatchReader,
    optimizers: list[torch.optim.Optimizer],
    batch: Batch,
    step: int,
    plan: Plan,
) -> None:
    rate = rate_at(step, plan)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
    falling = step >= plan.steps * (1 - plan.decay)
    device_type = batch.input_ids.device.type
    with torch.autocast(device_type, torch.bfloat16, enabled=device_type == "cuda"):
        if step < plan.vision_first:
            features = model.model.visual(batch.pixels, grid_thw=batch.grids).pooler_output
            loss = reader(features.float(), batch.patch_labels)
        else:
            frozen = step >= plan.freeze_vision * plan.steps
            hidden, features = forward_hidden(model, batch, frozen)
            loss = text_loss(model, hidden, batch, 1.0 if falling else plan.fact_weight)
            if step < plan.dense * plan.steps:
                loss = loss + reader(features.float(), batch.patch_labels)
    if not math.isfinite(loss.item()):
        raise RuntimeError(f"the loss is not finite at step {step}")
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("target", "draft"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint, the log and the model")
    parser.add_argument("--layers", type=int, help="text layers; fewer than the half's own train faster")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--warm-up", type=int, default=200)
    parser.add_argument("--decay", type=float, default=0.2)
    parser.add_argument("--dense", type=float, default=0.25)
    parser.add_argument("--vision-first", type=int, default=400)
    parser.add_argument("--fact-weight", type=float, default=4.0)
    parser.add_argument("--freeze-vision", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--start-from", type=Path, help="folder of a half to go on from")
    given = vars(parser.parse_args())
    out, device, threads = given.pop("out"), torch.device(given.pop("device")), given.pop("threads")
    workers, start_from = given.pop("workers"), given.pop("start_from")
    given["layers"] = given["layers"] or SIZES[given["half"]].layers
    torch.set_num_threads(threads)
    train(Plan(**given), out, device=device, workers=workers, start_from=start_from)


if __name__ == "__main__":
    main()
