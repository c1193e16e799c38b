"""One model with its key-value cache: run a prompt, run tokens of an answer, roll back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lvspec_cli.models.attention import causal, packed_mask
from lvspec_cli.models.cache import KeyValueCache, SlotCache, SlotMemory, cache_argument
from lvspec_cli.models.families.base import Rotary
from lvspec_cli.models.joined import SlotRows
from lvspec_cli.models.kernels.fused import MOST_ROWS
from lvspec_cli.models.load import LoadedModel
from lvspec_cli.models.steps import (
    WIDTHS,
    Chain,
    Chooser,
    FixedRows,
    Replay,
    StepInputs,
    StepOutputs,
    mask_of,
    width_of,
)
from lvspec_cli.types import Prompt

QUESTION_ROWS = 512  # rows of a question in one pass


@dataclass(frozen=True)
class Pass:
    """The results of one forward pass over some tokens."""

    hidden: Tensor  # (1, rows, width), after the last normalisation
    start: int  # length of the cache before the pass
    rotary: Rotary
    inputs: Mapping[int, Tensor] = field(default_factory=dict)  # of the watched layers, (1, rows, width)
    logits: Tensor | None = None  # (rows, vocabulary), if the pass computed them too
    # Shares of attention that go to the video, float32 (heads, rows), of the watched layers of which it told.
    shares: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.hidden.shape[1]


class Decoder:
    """Runs one model over one clip: first the prompt, then tokens of an answer, with rollback.

    The layers of the language model are called one by one. This costs less than the model's own ``forward``,
    positions and mask come from here, and no state is stored on the model. The layers may be on several
    devices: hidden states are moved between them, and results are on the model's own device. Every method
    expects :func:`torch.inference_mode`.
    """

    reads_target = False  # whether, as a draft, it has to follow the target's passes

    def __init__(self, loaded: LoadedModel, memory: SlotMemory | None = None) -> None:
        """
        :param memory: of decoders of the model that run together (``models.together``).
        """
        self.loaded = loaded
        self._workspace = loaded.workspace if memory is None else None
        self.cache = (
            self._workspace.cache if self._workspace else memory.cache() if memory else KeyValueCache()
        )
        self._lease: int | None = None  # of the workspace, since this decoder encoded a clip
        self._layers = tuple(loaded.family.layers(loaded.model))
        self._cache_name = cache_argument(self._layers[0])
        text = loaded.model.config.get_text_config()
        self.groups = text.num_attention_heads // text.num_key_value_heads  # query heads a key head
        self.layer_devices = tuple(next(layer.parameters()).device for layer in self._layers)
        self._rotary: Rotary | None = None  # of the answer's positions
        self.rows_alone = True  # in all passes of the answer: see ``exact_rows``
        self._prefix_length = 0
        self._prompt_length = 0
        self._asked: tuple[Prompt, Pass] | None = None  # run with its prefix and not begun: its last row
        self._is_past_prefix = (
            False  # by the pass that ran the prefix, so that states do not stand at its end
        )
        self.video: Tensor | None = None  # where the video is in the prefix, bool (prefix,), on the device

    @property
    def slot(self) -> int:
        """Its place in a memory of several."""
        return self.cache.slot if isinstance(self.cache, SlotCache) else 0

    @property
    def layer_count(self) -> int:
        return len(self._layers)

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Those that have keys and values."""
        return self.loaded.family.attention_layers(self.loaded.model.config)

    @property
    def holds_clip(self) -> bool:
        """Whether the cache still holds the clip that was encoded last.

        Decoders of one model may share its workspace; it belongs to the one that last encoded a clip.
        """
        return self._workspace is None or self._workspace.lease == self._lease

    def can_begin(self, prompt: Prompt, *, watching: bool = False) -> bool:
        """Whether :meth:`begin` needs no other :meth:`encode` before, if the clip is the prompt's.

        Rows of keys and values can be removed back to the prefix; states only if they were kept there.

        :param watching: :meth:`begin` will have to run the question, for what it watches.
        """
        is_asked = not watching and self._asked is not None and self._asked[0] is prompt
        has_prefix = not (self._is_past_prefix and self.loaded.family.has_states)
        return self.holds_clip and (is_asked or has_prefix)

    @property
    def exact_rows(self) -> int | None:
        """The most rows of a pass over the answer that are each, to the bit, what a pass of its own gives.

        0: that is not known. None: any number of them, but for rounding in float32.
        """
        fused, memory = self.loaded.fused, self._workspace
        if self.loaded.full_precision:
            return None
        if isinstance(self.cache, SlotCache):
            return MOST_ROWS if self.rows_alone else 0
        if fused is None or memory is None or not memory.is_usable or self._rotary is None:
            return 0
        is_shown = fused.rows_stand_alone and fused.takes(self._rotary[0][:, :1])
        return MOST_ROWS if is_shown else 0

    def _check_clip(self) -> None:
        if not self.holds_clip:
            raise RuntimeError("another decoder of this model has encoded a clip since")

    @property
    def answered(self) -> int:
        """Number of the answer's tokens in the cache."""
        return self.cache.length - self._prompt_length

    def encode(
        self,
        prompt: Prompt,
        watch: Collection[int] = (),
        keep: float = 1.0,
        scores: Tensor | None = None,
        *,
        with_question: bool = False,
    ) -> Pass:
        """Empty the cache and run the prompt's prefix, which contains the whole video.

        :param watch: layers whose inputs are kept, from 0; ``layer_count`` means the last layer's output.
        :param keep: share of the video's tokens that are run. Each keeps its own position.
        :param scores: decide which of them are kept, see :func:`kept_positions`.
        :param with_question: run the whole prompt in this one pass, for the :meth:`begin` that comes next.
        """
        device, family, model = self.loaded.device, self.loaded.family, self.loaded.model
        length = prompt.length if with_question else prompt.prefix_length
        if self._workspace is not None:
            self._lease = self._workspace.take()
        self.cache.rollback(0)
        self._asked, self._is_past_prefix = None, with_question
        self.video = prompt.video_mask[: prompt.prefix_length].to(device)
        inputs = {name: value.to(device) for name, value in prompt.video_inputs.items()}
        ids = prompt.input_ids[:, :length].to(device)
        video = family.video_features(model, inputs, prompt.visual_tokens)
        embeddings, deeper = family.embed(model, ids), video.deeper
        is_video = prompt.video_mask[:length].to(device).view(1, -1, 1)
        embeddings = embeddings.masked_scatter(is_video, video.embeddings.to(embeddings))
        positions = prompt.position_ids[..., :length].to(device)
        if keep < 1:
            kept = kept_positions(self.video, keep, scores)
            is_kept = torch.isin(self.video.nonzero()[:, 0], kept)
            deeper = tuple(rows[is_kept] for rows in deeper)
            question = torch.arange(len(self.video), length, device=device)
            self.video = self.video[kept]
            kept = torch.cat((kept, question))
            embeddings, positions = embeddings[:, kept], positions[..., kept]
        rotary = family.rotary(model, embeddings, positions)
        self._prefix_length = len(self.video)
        passed = self._run(embeddings, rotary, watch, deeper)
        if self.loaded.workspace is not None:
            self.cache.mark_video(self.video)
        if with_question:
            last = (rotary[0][:, -1:], rotary[1][:, -1:])
            # A copy of the row, so that the states of the whole prompt need not stay.
            self._asked = prompt, Pass(passed.hidden[:, -1:].clone(), self.cache.length - 1, last)
        return passed

    def follow(self, passed: Pass) -> None:
        """As a draft, take what it reads of the target's pass: here nothing, ``models.mtp`` reads states."""

    def begin(
        self,
        prompt: Prompt,
        room: int,
        watch: Collection[int] = (),
        on_pass: Callable[[Pass], None] | None = None,
    ) -> Pass:
        """Roll back to the prefix and run the remaining prompt, which is the question, unless :meth:`encode`
        has just run it.

        A long question is run in pieces, because its mask grows with the square of its length. Returns the
        pass over the last piece.

        :param room: the most tokens that :meth:`forward` will add after the prompt, drafted ones included.
        :param watch: as for :meth:`encode`.
        :param on_pass: called with the pass over each piece, in order.
        """
        family, model, question = self.loaded.family, self.loaded.model, prompt.length - prompt.prefix_length
        self._check_clip()
        asked, self._asked = self._asked, None
        is_asked = asked is not None and asked[0] is prompt and not watch and on_pass is None
        if not is_asked:
            self.cache.rollback(self._prefix_length)
            self.cache.mark()
        if self.loaded.workspace is not None:  # some captured passes are lost when the cache grows
            self.cache.reserve(self._prefix_length + question + room + WIDTHS[-1], spare=0)
        passed = asked[1] if asked is not None and is_asked else self._run_question(prompt, watch, on_pass)
        self._prompt_length, self.rows_alone = self.cache.length, True
        if self.loaded.full_precision:
            self.cache.mark()  # for restart()
        positions = family.answer_positions(prompt.next_position, room, self.loaded.device)
        self._rotary = family.rotary(model, passed.hidden, positions)
        return passed

    def _run_question(
        self, prompt: Prompt, watch: Collection[int], on_pass: Callable[[Pass], None] | None
    ) -> Pass:
        device, family, model = self.loaded.device, self.loaded.family, self.loaded.model
        start = prompt.prefix_length
        embeddings = family.embed(model, prompt.input_ids[:, start:].to(device))
        cosines, sines = family.rotary(model, embeddings, prompt.position_ids[..., start:].to(device))
        for first in range(0, embeddings.shape[1], QUESTION_ROWS):
            piece = slice(first, first + QUESTION_ROWS)
            passed = self._run(embeddings[:, piece], (cosines[:, piece], sines[:, piece]), watch)
            if on_pass is not None:
                on_pass(passed)
        return passed

    def forward(self, tokens: Tensor, watch: Collection[int] = (), *, by_itself: bool = False) -> Pass:
        """Run tokens of the answer, long (rows,), after those that the cache holds.

        :param by_itself: not as a captured pass, which is another one where a memory has several slots.
        """
        rows = tokens.shape[0]
        rotary, self.rows_alone = self.next_rotary(rows), False
        workspace = None if by_itself else self._workspace
        if workspace is not None and (width := width_of(rows)) is not None:
            self.cache.reserve(self.cache.length + width)
            run, finds_rows = partial(self._fixed_pass, tuple(watch)), self._is_fused(rotary[0])
            step = workspace.step(width, watch, rotary[0], run, finds_rows=finds_rows)
            if step is not None:
                return self._replayed(*step, tokens, rotary)
        return self._run(self.embedded(tokens), rotary, watch)

    @property
    def runs_ahead(self) -> bool:
        """Whether the host may launch passes before it knows what came of the last ones, and take them back.

        Where none is captured, launching is what takes long. States take rows in at places that depend on how
        many were run, so that others would be rounded differently.
        """
        captures = self._workspace is not None and self._workspace.is_usable
        return (captures and not self.loaded.family.has_states) or self.is_captured_with_others

    def chain(self, token: Tensor, length: int, choose: Chooser) -> tuple[Tensor, Tensor] | None:
        """Run a token, long (1,), and those that are chosen one after the other but the last, in one launch.

        :param length: rows, and chosen tokens.
        :returns: the chosen tokens, long (length,), and what the chooser tells of them, float32 (length,).
            None: such passes are not captured, or not yet.
        """
        if self._workspace is None:
            return None
        rotary, start = self.next_rotary(length), self.cache.length
        self.cache.reserve(start + length)
        finds_rows = self._is_fused(rotary[0])
        captured = self._workspace.chain(length, rotary[0], choose, self._chained, finds_rows=finds_rows)
        if captured is None:
            return None
        chain, replay = captured
        chain.inputs.fill(token, start, *rotary)
        chain.choose.load(choose)
        replay()
        choose.load(chain.choose)
        self.cache.advance(length)
        return chain.tokens.clone(), chain.measured.clone()

    def next_rotary(self, rows: int) -> Rotary:
        """The rotary factors of the next tokens of the answer.

        :raises RuntimeError: nothing has been asked yet, or another decoder has taken the memory.
        """
        if self._rotary is None:
            raise RuntimeError("begin() comes before forward()")
        self._check_clip()
        cosines, sines = self._rotary
        return cosines.narrow(1, self.answered, rows), sines.narrow(1, self.answered, rows)

    def copied(self) -> Decoder:
        """A decoder that has read the same clip, for another answer about it at the same time.

        :raises RuntimeError: the decoder is not one of several.
        """
        if not isinstance(self.cache, SlotCache):
            raise RuntimeError("there is memory for one answer only")
        other = copy.copy(self)
        other.cache = self.cache.copied()
        other.cache.rollback(self._prefix_length)
        return other

    def embedded(self, tokens: Tensor) -> Tensor:
        """What goes into the first layer for tokens of the answer, (1, rows, width)."""
        return self.loaded.family.embed(self.loaded.model, tokens.view(1, -1).to(self.loaded.device))

    def has_run(self, passed: Pass) -> None:
        """Take note of a pass over tokens of the answer: here nothing, ``models.mtp`` keeps a state."""

    def rollback(self, answered: int) -> None:
        """Remove tokens of the answer from the cache until at most ``answered`` are left."""
        self.cache.rollback(min(self.cache.length, self._prompt_length + answered))

    def restart(self) -> None:
        """Remove all tokens of the answer, as if none had been run. In float32 every model can do that."""
        self.rollback(0)

    def logits(self, passed: Pass, last: int) -> Tensor:
        """Logits of the ``last`` rows of a pass, float32 (last, vocabulary)."""
        if passed.logits is not None:
            return passed.logits[-last:]
        return self.loaded.family.head(self.loaded.model, passed.hidden[0, -last:]).float()

    def _run(
        self,
        embeddings: Tensor,
        rotary: Rotary,
        watch: Collection[int] = (),
        deeper: Sequence[Tensor] = (),
    ) -> Pass:
        start, rows = self.cache.length, embeddings.shape[1]
        self.cache.reserve(start + rows)
        # Attention needs no mask from an empty cache (it is causal then), nor for a single row.
        mask = None
        if start and rows > 1:
            mask = packed_mask(causal(start, rows, embeddings.device), self.groups, embeddings.dtype)
        hidden, inputs = self.through(embeddings, rotary, mask, self.cache, watch, deeper)
        self.cache.advance(rows)
        return Pass(hidden, start, rotary, inputs)

    def _replayed(self, inputs: StepInputs, replay: Replay, tokens: Tensor, rotary: Rotary) -> Pass:
        start, rows = self.cache.length, tokens.shape[0]
        inputs.fill(tokens, start, *rotary)
        outputs = replay()
        self.cache.advance(rows)
        watched = {layer: states[:, :rows] for layer, states in outputs.inputs.items()}
        shares = {layer: share[:, :rows] for layer, share in outputs.shares.items()}
        return Pass(outputs.hidden[:, :rows], start, rotary, watched, outputs.logits[:rows], shares)

    def _fixed_pass(self, watch: Collection[int], step: StepInputs, rows: FixedRows) -> StepOutputs:
        """The pass that is captured. It never needs a value on the host."""
        family, model, fused = self.loaded.family, self.loaded.model, self.loaded.fused
        embeddings, rotary = family.embed(model, step.ids.view(1, -1)), (step.cosines, step.sines)
        if fused is not None and self._is_fused(step.cosines):
            return fused(embeddings, rotary, rows, watch)
        mask = mask_of(step.slots, rows.cache.capacity, self.groups, embeddings.dtype)
        hidden, inputs = self.through(embeddings, rotary, mask, rows, watch)
        return StepOutputs(hidden, family.head(model, hidden[0]).float(), inputs)

    def without_clip(self) -> Decoder:
        """A decoder that has read nothing: what is captured would keep the memory of a clip."""
        bare = copy.copy(self)
        bare.cache, bare.video, bare._rotary, bare._asked = KeyValueCache(), None, None, None
        return bare

    @property
    def is_captured_with_others(self) -> bool:
        """Whether passes over slots of its memory are captured."""
        workspace, cache = self.loaded.workspace, self.cache
        if workspace is None or not isinstance(cache, SlotCache):
            return False
        can_be = not (self.loaded.family.has_states or self.reads_target)
        return can_be and workspace.is_usable_for(cache.memory)

    def _is_fused(self, cosines: Tensor) -> bool:
        return self.loaded.fused is not None and self.loaded.fused.takes(cosines)

    def _chained(self, chain: Chain) -> StepOutputs:
        """The passes that are captured as one: each row is the token that was chosen after the last."""
        token = chain.inputs.ids[:1]
        for place in range(len(chain.tokens)):
            row = chain.inputs.row(place, token)
            outputs = self._fixed_pass((), row, FixedRows(self.cache, row.slots))
            token, measured = chain.choose(outputs.logits)
            chain.tokens[place : place + 1].copy_(token)
            chain.measured[place : place + 1].copy_(measured)
        return outputs

    def through(
        self,
        embeddings: Tensor,
        rotary: Rotary,
        mask: Tensor | None,
        cache: KeyValueCache | FixedRows | SlotRows,
        watch: Collection[int],
        deeper: Sequence[Tensor] = (),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run all layers and the last normalisation. Returns the hidden states, and the inputs of the watched
        layers.

        :param deeper: features that are added to the video's hidden states after the first layers, in order.
        """
        hidden, inputs = embeddings, {}
        device, layer_rotary = embeddings.device, rotary
        arguments = {self._cache_name: cache, "split_k": isinstance(cache, FixedRows)}
        if isinstance(cache, SlotRows):
            arguments["together"] = cache
        for index, layer in enumerate(self._layers):
            if self.layer_devices[index] != device:
                device = self.layer_devices[index]
                hidden, layer_rotary = hidden.to(device), (rotary[0].to(device), rotary[1].to(device))
                mask = None if mask is None else mask.to(device)
            if index in watch:
                inputs[index] = hidden
            hidden = layer(hidden, attention_mask=mask, position_embeddings=layer_rotary, **arguments)
            if self.video is not None and index < len(deeper):
                hidden[0, : len(self.video)][self.video.to(device)] += deeper[index].to(hidden)
        hidden = hidden.to(embeddings.device)
        if len(self._layers) in watch:
            inputs[len(self._layers)] = hidden
        return self.loaded.family.norm(self.loaded.model, hidden), inputs


def kept_positions(video: Tensor, keep: float, scores: Tensor | None = None) -> Tensor:
    """Positions of a prefix that remain when its video tokens are pruned to a share ``keep``, ascending.

    All text remains, and at least one video token. Without ``scores`` the remaining video tokens are evenly
    spread; two or more include the first and the last. SpecVLM (arXiv 2508.16201) prunes the draft's video
    tokens to about a tenth, by the target's attention.

    :param video: where the video is, bool (prefix,).
    :param scores: (n,), the video tokens with the highest scores remain. They may be those of another model,
        which has more or fewer tokens for the same frames, in the same order.
    """
    positions = video.nonzero()[:, 0]
    length = len(positions)
    count = max(1, min(length, round(keep * length)))
    if scores is None:
        chosen = torch.linspace(0, length - 1, count, device=video.device).round().long()
    else:
        scores = scores.to(video.device, torch.float32).view(1, 1, -1)
        chosen = interpolate(scores, length, mode="linear", align_corners=True)[0, 0].topk(count).indices
    is_kept = ~video
    is_kept[positions[chosen]] = True
    return is_kept.nonzero()[:, 0]
