"""Texts of many rules share a trie, so that many rules share the models' passes.

A node is a scene and a text so far. It is read once by each model, however many rules come by: what the model
says next is kept there. All nodes that are waited for, of all scenes and rules, are read in one pass.

Works with transformers' decoders whose layers call its attention functions, attend to everything before a
token, and whose logits are the output embedding of the last hidden state: Qwen2, Qwen3, Llama and the like.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from tools.rule_lab.scenes import INSTRUCTION, Doubt, Scene

_ATTENTION = "rule_lab"
_ROWS = 128  # rows of logits over the vocabulary at a time
_LIKELY = 8  # tokens among which the two likeliest are
_MORE = 256  # slots by which a scene's memory grows


@dataclass(frozen=True)
class Reading:
    """What one model says after a text."""

    token: int  # most likely
    second: int  # most likely but one
    log_probs: Mapping[int, float]  # nats; of these two and, in the target's, of the draft's token
    shares: Mapping[int, Tensor]  # by watched layer: attention to the notes, (heads,), 0 to 1
    hidden: Tensor  # last hidden state, (width,)

    def row(self, vocabulary: int) -> Tensor:
        """Logits (vocabulary,) that hold ``log_probs``; all other tokens share what is left equally."""
        left = max(1.0 - sum(map(math.exp, self.log_probs.values())), 1e-9)
        row = torch.full((vocabulary,), math.log(left / vocabulary))
        for token, log_prob in self.log_probs.items():
            row[token] = log_prob
        return row


class Node:
    """A text: its last token after its parent's text. The root is the prompt."""

    __slots__ = ("children", "depth", "draft", "parent", "scene", "target", "token")

    def __init__(self, scene: int, parent: Node | None = None, token: int = -1) -> None:
        self.scene, self.parent, self.token = scene, parent, token
        self.depth: int = parent.depth + 1 if parent else 0
        self.children: dict[int, Node] = {}
        self.target: Reading | None = None
        self.draft: Reading | None = None

    def child(self, token: int) -> Node:
        if token not in self.children:
            self.children[token] = Node(self.scene, self, token)
        return self.children[token]


@dataclass(frozen=True)
class Question:
    """A scene's prompt as one model sees it."""

    ids: tuple[int, ...]
    notes: tuple[bool, ...]  # whether a token is one of the notes'
    blends: tuple[tuple[int, int, float], ...] = ()  # index, other token, its share


def ask(tokenizer: Any, scene: Scene, doubts: Sequence[Doubt] = ()) -> Question:
    """The prompt of a scene. A doubted word is blended if another word of its kind has as many tokens."""
    user = f"Detections:\n{scene.notes}\n\n{scene.question}"
    if tokenizer.chat_template:
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": user}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    else:
        text = f"{INSTRUCTION}\n\n{user}\n\n"
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    start = text.index(scene.notes)
    end = start + len(scene.notes)
    notes = tuple(first >= start and last <= end and last > first for first, last in spans)
    blends = []
    for doubt in doubts:
        word = range(start + doubt.start, start + doubt.end)
        at = [index for index, (first, last) in enumerate(spans) if first < word.stop and last > word.start]
        space = " " if tokenizer.decode(ids[at[0]]).startswith(" ") else ""
        options = (tokenizer.encode(space + other, add_special_tokens=False) for other in doubt.others)
        pieces = next((option for option in options if len(option) == len(at)), ())
        blends += [(index, piece, doubt.share) for index, piece in zip(at, pieces, strict=False)]
    return Question(tuple(ids), notes, tuple(blends))


class _Memory:
    """Keys and values of one scene: a slot for each token of the prompt and for each node."""

    def __init__(self, layers: int, heads: int, width: int, question: Question, dtype: torch.dtype) -> None:
        self.used = 0
        self.keys = torch.empty(layers, heads, 0, width, dtype=dtype)
        self.values = torch.empty(layers, heads, 0, width, dtype=dtype)
        self.sees = torch.zeros(0, 0, dtype=torch.bool)  # row: slots that a slot attends to, its own too
        self.notes = torch.tensor(question.notes)
        self.last = len(question.ids) - 1  # slot of the root

    def take(self, parents: Sequence[int]) -> range:
        """Slots for rows that continue the texts of ``parents``, which may be new ones; -1: the first."""
        slots = range(self.used, self.used + len(parents))
        if slots.stop > len(self.sees):
            more = max(_MORE, slots.stop - len(self.sees))
            self.keys, self.values = (
                torch.nn.functional.pad(rows, (0, 0, 0, more)) for rows in (self.keys, self.values)
            )
            self.sees = torch.nn.functional.pad(self.sees, (0, more, 0, more))
        for slot, parent in zip(slots, parents, strict=True):
            if parent >= 0:
                self.sees[slot] = self.sees[parent]
            self.sees[slot, slot] = True
        self.used = slots.stop
        return slots


class Reader:
    """One model over a group of scenes.

    :param vocabulary: only ids below it are said: those that both models and their tokenizer have.
    :param watch: layers, from 0, whose attention to the notes is kept.
    """

    def __init__(self, model: Any, vocabulary: int, watch: Sequence[int] = ()) -> None:
        self.model, self.vocabulary, self.watch = model, vocabulary, frozenset(watch)
        config = model.config.get_text_config()
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.layers: int = config.num_hidden_layers
        self._shape = (config.num_hidden_layers, config.num_key_value_heads, width)
        self.notes: list[Tensor] = []  # last hidden states of each scene's notes, (tokens, width)
        self._memories: list[_Memory] = []
        self._slots: dict[Node, int] = {}
        self._pass: list[tuple[_Memory, slice, range]] = []  # scenes of the current pass: rows, slots
        self._shares: dict[int, Tensor] = {}  # of the current pass, (heads, rows)

    @torch.inference_mode()
    def begin(self, questions: Sequence[Question], others: Sequence[tuple[int, ...]]) -> list[Reading]:
        """Forget all scenes and read new ones: what the model says after each prompt. ``others``: see
        :meth:`read`."""
        self._slots, self.notes, embeddings = {}, [], self.model.get_input_embeddings()
        self._memories = [_Memory(*self._shape, question, self.model.dtype) for question in questions]
        common, readings = _common(questions), list[Reading]()
        for scene, (question, memory) in enumerate(zip(questions, self._memories, strict=True)):
            embedded = embeddings(torch.tensor(question.ids))
            for index, other, share in question.blends:
                embedded[index] = torch.lerp(embedded[index], embeddings(torch.tensor(other)), share)
            memory.take(range(-1, len(embedded) - 1))
            start = common if scene else 0
            memory.keys[:, :, :start] = self._memories[0].keys[:, :, :start]
            memory.values[:, :, :start] = self._memories[0].values[:, :, :start]
            slots = range(start, len(embedded))
            hidden = self._run(embedded[start:], slots, [(memory, slice(0, len(slots)), slots)])
            self.notes.append(hidden[memory.notes[start:]])
            shares = {layer: share[:, -1:] for layer, share in self._shares.items()}
            readings += self._say(hidden[-1:], shares, [others[scene]])
        return readings

    @torch.inference_mode()
    def read(self, nodes: Sequence[Node], others: Sequence[tuple[int, ...]]) -> list[Reading]:
        """What the model says after each node.

        :param nodes: ordered by scene, parents before their children unless they were read before.
        :param others: tokens of each node whose log probability is wanted, too.
        """
        passes, start = [], 0
        for scene, group in groupby(nodes, key=lambda node: node.scene):
            memory, members = self._memories[scene], list(group)
            self._slots |= {node: memory.used + index for index, node in enumerate(members)}
            parents = [node.parent for node in members if node.parent]
            slots = memory.take([self._slots[node] if node.depth else memory.last for node in parents])
            passes.append((memory, slice(start, start + len(members)), slots))
            start += len(members)
        embedded = self.model.get_input_embeddings()(torch.tensor([node.token for node in nodes]))
        positions = [self._memories[node.scene].last + node.depth for node in nodes]
        return self._say(self._run(embedded, positions, passes), self._shares, others)

    def _run(
        self, embedded: Tensor, positions: Sequence[int], passes: list[tuple[_Memory, slice, range]]
    ) -> Tensor:
        """Last hidden states (rows, width) of rows whose slots are taken."""
        self._pass, self._shares = passes, {}
        places = torch.tensor([list(positions)])
        passed = self.model.base_model(
            inputs_embeds=embedded[None], position_ids=places, use_cache=False, rule_lab_reader=self
        )
        return passed.last_hidden_state[0]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Attention of the current pass: queries (heads, rows, width) to what each row's slot sees."""
        attended = torch.empty_like(queries)
        if layer in self.watch:
            self._shares[layer] = torch.empty(queries.shape[:2])
        for memory, rows, slots in self._pass:
            memory.keys[layer, :, slots.start : slots.stop] = keys[:, rows]
            memory.values[layer, :, slots.start : slots.stop] = values[:, rows]
            own = queries[:, rows]
            # The heads that share keys become rows of one head.
            packed = own.reshape(1, len(keys), -1, own.shape[-1])
            mask = memory.sees[slots.start : slots.stop, : slots.stop].repeat(len(queries) // len(keys), 1)
            known, said = (store[layer][None, :, : slots.stop] for store in (memory.keys, memory.values))
            mixed = scaled_dot_product_attention(packed, known, said, attn_mask=mask[None, None], scale=scale)
            attended[:, rows] = mixed.reshape(own.shape)
            if layer in self.watch:
                scores = (packed @ known.transpose(2, 3)).float().mul(scale).masked_fill(~mask, -math.inf)
                seen = memory.notes.nonzero()[:, 0]
                self._shares[layer][:, rows] = scores.softmax(-1)[..., seen].sum(-1).view(own.shape[:2])
        return attended

    def _say(
        self, hidden: Tensor, shares: Mapping[int, Tensor], others: Sequence[tuple[int, ...]]
    ) -> list[Reading]:
        """Readings of last hidden states. The logits of the likeliest tokens are computed again in float32:
        in bfloat16 they have steps of an eighth of a nat, and ties."""
        head, said = self.model.get_output_embeddings(), list[Reading]()
        for start in range(0, len(hidden), _ROWS):
            rows = hidden[start : start + _ROWS]
            logits = head(rows)[:, : self.vocabulary].float()
            totals, likely = logits.logsumexp(-1).tolist(), logits.topk(_LIKELY).indices.tolist()
            for row, (total, tokens) in enumerate(zip(totals, likely, strict=True)):
                wanted = tuple(dict.fromkeys((*tokens, *others[start + row])))
                exact = (head.weight[list(wanted)].float() @ rows[row].float() - total).tolist()
                log_probs = dict(zip(wanted, exact, strict=True))
                first, second = sorted(wanted, key=lambda token: (-log_probs[token], token))[:2]
                known = {token: log_probs[token] for token in (*others[start + row], second, first)}
                own = {layer: share[:, start + row] for layer, share in shares.items()}
                said.append(Reading(first, second, known, own, rows[row]))
        return said


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, scaling: float, **arguments: Any
) -> tuple[Tensor, None]:
    reader: Reader = arguments["rule_lab_reader"]
    attended = reader.attend(module.layer_idx, query[0], key[0], value[0], scaling)
    return attended.transpose(0, 1)[None], None


AttentionInterface.register(_ATTENTION, _attend)


def _common(questions: Sequence[Question]) -> int:
    """Number of tokens with which all prompts begin, before their notes."""
    ids = [question.ids[: question.notes.index(True)] for question in questions]
    shortest = min(map(len, ids))
    return next((index for index in range(shortest) if len({row[index] for row in ids}) > 1), shortest)


class Trie:
    """Target and draft over a group of scenes."""

    def __init__(self, target: Reader, draft: Reader) -> None:
        self.target, self.draft = target, draft
        self.nodes = 0  # that the target has read

    def begin(self, questions: Sequence[tuple[Question, Question]]) -> list[Node]:
        """The roots of new scenes, read. ``questions``: each scene's, for target and draft."""
        roots = [Node(scene) for scene in range(len(questions))]
        drafts = self.draft.begin([draft for _, draft in questions], [()] * len(roots))
        targets = self.target.begin([target for target, _ in questions], [(said.token,) for said in drafts])
        for root, target, draft in zip(roots, targets, drafts, strict=True):
            root.target, root.draft = target, draft
        return roots

    def read(self, nodes: Sequence[Node], *, draft_only: bool) -> None:
        """Let the draft read nodes and, unless ``draft_only``, the target. The target always reads after the
        draft, because it is asked for the draft's token, too."""
        nodes = sorted(nodes, key=lambda node: (node.scene, node.depth))
        fresh = [node for node in nodes if node.draft is None]
        for node, said in zip(fresh, self.draft.read(fresh, [()] * len(fresh)) if fresh else (), strict=True):
            node.draft = said
        if not draft_only:
            self.nodes += len(nodes)
            drafted = [(node.draft.token,) for node in nodes if node.draft]
            for node, said in zip(nodes, self.target.read(nodes, drafted), strict=True):
                node.target = said


def load_model(path: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model from a folder in transformers' layout.

    Products in bfloat16 are fast on CPUs with AMX. Near ties may depend on which rows share a pass.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=_ATTENTION)
    return model.eval()


def unpack(file: Path, folder: Path) -> None:
    """Write a GGUF file as a folder in transformers' layout, in bfloat16. Needs the package gguf, and
    minutes."""
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    plain = {"dtype": torch.bfloat16, "quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **plain)
    model.hf_quantizer = None  # which refuses to save
    model.save_pretrained(folder)
