"""Captions of scenes by several rules at once. What a rule does in a round is the product's own code.

Every rule has the product's :class:`Answer`, whose models are walkers over the trie. A round that lacks a
node is run again when the node was read; rounds change nothing before their end.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from lvspec_cli.bench.pair_calibration import CaptionEvidence
from lvspec_cli.errors import UsageError
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.generation import GenerationRules
from lvspec_cli.models.words import TokenSets, token_sets
from lvspec_cli.speculation.answer import Answer
from lvspec_cli.speculation.draft_length import round_cost
from lvspec_cli.speculation.relevance import (
    ATTENDING,
    RankAttention,
    Relevance,
    VideoStates,
    layers_of,
    relevance_for,
    video_layers,
)
from lvspec_cli.speculation.repetition import is_looping, starts_loop
from lvspec_cli.speculation.verify import is_exact
from lvspec_cli.types import (
    DecodeSettings,
    FinishReason,
    Mode,
    PairPrompts,
    Prompt,
    RelevanceName,
    TokenKind,
)
from tools.rule_lab.scenes import Scene, doubts
from tools.rule_lab.trie import Node, Reader, Reading, Trie, ask

_NONE = torch.zeros(1, 0, dtype=torch.long)
_PROMPT = Prompt("", _NONE, _NONE, 0, _NONE[0].bool(), 0, {})  # the roots hold the prompts
_LETTERS = {TokenKind.EXACT: "e", TokenKind.FILLER: "f", TokenKind.SHIFT: "s", TokenKind.TARGET: "t"}


@dataclass(frozen=True)
class Vary:
    """A control without a draft: the target's own second choice, by a coin, where it is within ``margin``.

    It says what leaving the greedy path costs by itself. Ends, loops and the first tokens of sentences stay
    the target's first choice.
    """

    margin: float  # nats
    max_new_tokens: int
    seed: int = 0


@dataclass(frozen=True)
class Caption:
    """One rule's caption of one scene. The end token belongs to the tokens."""

    scene: int  # its seed
    rule: str
    text: str
    tokens: tuple[int, ...]
    kinds: str  # a letter for each token: exact, filler, shift, target
    losses: tuple[float, ...]  # nats that each token gave up: the target's own token would have them more
    rounds: int
    cost: float  # of all rounds, in steps of the target alone, as the cost model predicts it
    finish: str


class _MissingError(Exception):
    """Nodes that have to be read first, in order."""

    def __init__(self, nodes: Sequence[Node], *, draft: bool) -> None:
        super().__init__()
        self.nodes, self.draft = nodes, draft


@dataclass(frozen=True)
class _Pass:
    """A walker's pass: the readings of the nodes that it came to."""

    readings: tuple[Reading, ...]
    logits: Tensor | None = None  # once they were asked for

    @property
    def hidden(self) -> Tensor:
        """(1, rows, width), after the last normalisation."""
        return torch.stack([reading.hidden for reading in self.readings])[None]


class _Walker:
    """Walks over the trie, as a decoder decodes: what :class:`Answer` uses of it."""

    reads_target = runs_ahead = is_captured_with_others = False
    slot = 0

    def __init__(self, root: Node, loaded: Any, layer_count: int, *, draft: bool) -> None:
        self.cache = object()  # of its own: walkers never share a pass
        self.loaded, self.layer_count = loaded, layer_count
        self.attention_layers = tuple(range(layer_count))
        self._path, self._draft = [root], draft

    @property
    def answered(self) -> int:
        return len(self._path) - 1

    def begin(self, prompt: Prompt, room: int, watch: object = (), on_pass: object = None) -> _Pass:
        del self._path[1:]
        return self._pass(0)

    def forward(self, tokens: Tensor, watch: object = (), *, by_itself: bool = False) -> _Pass:
        start = len(self._path)
        for token in tokens.tolist():
            self._path.append(self._path[-1].child(token))
        return self._pass(start)

    def logits(self, passed: _Pass, last: int) -> Tensor:
        return torch.stack([reading.row(self.loaded.vocabulary) for reading in passed.readings[-last:]])

    def follow(self, passed: object) -> None:
        pass

    def rollback(self, answered: int) -> None:
        del self._path[answered + 1 :]

    def _pass(self, start: int) -> _Pass:
        nodes = self._path[start:]
        readings = [node.draft if self._draft else node.target for node in nodes]
        unread = [node for node, reading in zip(nodes, readings, strict=True) if reading is None]
        if unread:
            raise _MissingError(unread, draft=self._draft)
        return _Pass(tuple(reading for reading in readings if reading))


class _NoteAttention:
    """Relevance ``attention``: the mean over the heads and the layers, as in the product."""

    watch: frozenset[int] = frozenset()

    def __init__(self, layers: Sequence[int]) -> None:
        self._layers = layers

    def score(self, passed: Any, drafted: Tensor, logits: Tensor) -> Tensor:
        readings = passed.readings[: len(drafted)]
        shares = [torch.stack([said.shares[layer] for layer in self._layers]) for said in readings]
        return torch.stack(shares).mean((-1, -2))


def watched_layers(rules: Mapping[str, DecodeSettings | Vary], layer_count: int) -> set[int]:
    """Layers whose attention the rules read.

    :raises UsageError: a rule reads a layer that is not there, or hidden states of any but the last.
    """
    layers: set[int] = set()
    for name, settings in rules.items():
        if isinstance(settings, Vary) or settings.mode != Mode.LVSPEC:
            continue
        if video_layers(settings.rule, layer_count) not in ((), (layer_count - 1,)):
            raise UsageError(
                f"{name}: the lab keeps hidden states of the last layer only", "use layers: [-1]"
            )
        if settings.rule.relevance in ATTENDING:
            layers |= set(layers_of(settings.rule, layer_count))
    return layers


class Lab:
    """Two models and their tokenizer, and the rules' words."""

    def __init__(
        self,
        target: Reader,
        draft: Reader,
        tokenizer: Any,
        ends: Sequence[int],
        contraries: Sequence[str] = (),  # as token_sets takes them
    ) -> None:
        self.trie, self.tokenizer = Trie(target, draft), tokenizer
        self.words: TokenSets = token_sets(tokenizer, ends, contraries)
        self.loaded = SimpleNamespace(
            generation=GenerationRules(tuple(ends)),
            vocabulary=target.vocabulary,
            tokenizer=tokenizer,
            device=torch.device("cpu"),
            workspace=None,
            is_prediction_layer=False,
            full_precision=False,  # no near tie is read again: readings are the trie's
            proposes=None,
            family=SimpleNamespace(head=lambda model, states: model.get_output_embeddings()(states)),
            model=target.model,
        )

    @torch.inference_mode()
    def captions(
        self, scenes: Sequence[Scene], rules: Mapping[str, DecodeSettings | Vary], *, sure: bool = False
    ) -> list[Caption]:
        """The captions of all scenes by all rules. ``sure``: neither model doubts what it sees."""
        views = [((), ()) if sure else doubts(scene) for scene in scenes]
        asked = [
            (ask(self.tokenizer, scene, target), ask(self.tokenizer, scene, draft))
            for scene, (target, draft) in zip(scenes, views, strict=True)
        ]
        roots = self.trie.begin(asked)
        answers: dict[tuple[int, str], _Ruled | _Varied] = {
            (index, name): _Varied(self, root, settings, scene.seed)
            if isinstance(settings, Vary)
            else _Ruled(self, root, settings)
            for index, (scene, root) in enumerate(zip(scenes, roots, strict=True))
            for name, settings in rules.items()
        }
        _finish(self.trie, list(answers.values()))
        return [
            _caption(scenes[index].seed, name, answer, roots[index], self.tokenizer)
            for (index, name), answer in answers.items()
        ]

    @torch.inference_mode()
    def evidence(self, scenes: Sequence[Scene], exact: DecodeSettings) -> list[CaptionEvidence]:
        """What exact captions of scenes show for the pair's calibration."""
        asked = [
            (ask(self.tokenizer, scene, target), ask(self.tokenizer, scene, draft))
            for scene, (target, draft) in ((scene, doubts(scene)) for scene in scenes)
        ]
        roots = self.trie.begin(asked)
        answers = [_Ruled(self, root, exact) for root in roots]
        _finish(self.trie, answers)
        return [_evidence(answer.tokens, root) for answer, root in zip(answers, roots, strict=True)]


def _evidence(tokens: Sequence[int], root: Node) -> CaptionEvidence:
    """Of the nodes on the way of a text: all but the first token are judged by a rule."""
    node, said = root.child(tokens[0]), list[tuple[Reading, Reading]]()
    for token in tokens[1:]:
        assert node.target and node.draft
        said.append((node.target, node.draft))
        node = node.child(token)
    layers = said[0][0].shares if said else {}
    return CaptionEvidence(
        ids=tuple(tokens[1:]),
        gaps=tuple(
            target.log_probs[target.token] - target.log_probs[draft.token]
            for target, draft in said
            if draft.token != target.token
        ),
        attention={
            layer: tuple(float(target.shares[layer].mean()) for target, _ in said) for layer in layers
        },
    )


class _Ruled(Answer):
    """An answer by the product's own rounds."""

    def __init__(self, lab: Lab, root: Node, settings: DecodeSettings) -> None:
        layers = lab.trie.target.layers
        self._walkers = [_Walker(root, lab.loaded, layers, draft=draft) for draft in (False, True)]
        target, draft = (cast(Decoder, walker) for walker in self._walkers)
        notes = VideoStates({layers - 1: lab.trie.target.notes[root.scene]})
        super().__init__(target, draft, lab.words, settings, _relevance(settings, target, lab.words, notes))
        self.rounds, self.cost = 0, 0.0

    def advance(self) -> None:
        """Decode to the end.

        :raises _MissingError: nodes have to be read first; then call it again.
        """
        if not self.tokens:
            self.begin(PairPrompts(_PROMPT, _PROMPT))
        while self.finish is None:
            try:
                done = self.round()
            except _MissingError:
                for walker in self._walkers:
                    walker.rollback(len(self.tokens) - 1)
                raise
            costs = self._settings.adaptation.costs
            self.rounds += 1
            self.cost += round_cost(len(done.drafted), costs) if costs and self.speculates else 1.0


class _Varied:
    """An answer of the control."""

    def __init__(self, lab: Lab, root: Node, vary: Vary, scene: int) -> None:
        self._words, self._vary, self._node = lab.words, vary, root
        self._coin = random.Random(f"{vary.seed} {scene}")
        self.tokens: list[int] = []
        self.kinds: list[TokenKind] = []
        self.finish: FinishReason | None = None
        self.rounds, self.cost = 0, 0.0

    def advance(self) -> None:
        """As for :class:`_Ruled`."""
        while self.finish is None:
            said = self._node.target
            if said is None:
                raise _MissingError([self._node], draft=False)
            varies = self._may_vary(said) and self._coin.random() < 0.5
            token = said.second if varies else said.token
            self.tokens.append(token)
            self.kinds.append(TokenKind.FILLER if varies else TokenKind.TARGET)
            self._node = self._node.child(token)
            self.rounds, self.cost = len(self.tokens) - 1, len(self.tokens) - 1.0
            if token in self._words.ends:
                self.finish = FinishReason.STOP
            elif len(self.tokens) == self._vary.max_new_tokens:
                self.finish = FinishReason.LENGTH
            elif is_looping(self.tokens):
                self.finish = FinishReason.REPETITION

    def _may_vary(self, said: Reading) -> bool:
        gap = said.log_probs[said.token] - said.log_probs[said.second]
        if not self.tokens or gap > self._vary.margin or {said.token, said.second} & self._words.ends:
            return False
        return not self._words.begins_sentence(self.tokens) and not starts_loop(self.tokens, said.second)


def _relevance(
    settings: DecodeSettings, target: Decoder, words: TokenSets, notes: VideoStates
) -> Relevance | None:
    rule = settings.rule
    if settings.mode != Mode.LVSPEC or is_exact(rule):
        return None
    if rule.relevance in ATTENDING:
        attention = _NoteAttention(layers_of(rule, target.layer_count))
        scaled = rule.relevance is RelevanceName.RANK_ATTENTION
        return RankAttention(attention, rule.attention_scale) if scaled else attention
    return relevance_for(rule, target, words, notes, settings.seed)


def _finish(trie: Trie, answers: Sequence[_Ruled | _Varied]) -> None:
    """Advance all answers to their ends. Drafts go first, so that the target's passes have many rows."""
    running, waiting = list(answers), list[tuple[_Ruled | _Varied, _MissingError]]()
    while running or waiting:
        for answer in running:
            try:
                answer.advance()
            except _MissingError as missing:
                waiting.append((answer, missing))
        drafting = [entry for entry in waiting if entry[1].draft]
        chosen, waiting = (
            (drafting, [entry for entry in waiting if not entry[1].draft]) if drafting else (waiting, [])
        )
        if nodes := dict.fromkeys(node for _, missing in chosen for node in missing.nodes):
            trie.read(list(nodes), draft_only=bool(drafting))
        running = [answer for answer, _ in chosen]


def _caption(scene: int, rule: str, answer: _Ruled | _Varied, root: Node, tokenizer: Any) -> Caption:
    losses, node = list[float](), root
    for token in answer.tokens:
        said = node.target
        if said is None:
            raise RuntimeError("a token was decoded at a node that was not read")
        losses.append(said.log_probs[said.token] - said.log_probs[token])
        node = node.child(token)
    return Caption(
        scene=scene,
        rule=rule,
        text=tokenizer.decode(answer.tokens, skip_special_tokens=True).strip(),
        tokens=tuple(answer.tokens),
        kinds="".join(_LETTERS[kind] for kind in answer.kinds),
        losses=tuple(losses),
        rounds=answer.rounds,
        cost=answer.cost,
        finish=str(answer.finish),
    )
