"""A target's own prediction layer as its draft: multi-token prediction (MTP), which Qwen3.5's files carry.

One decoder layer with attention, between a matrix and a normalisation of its own; embeddings and head are the
target's. From the target's normalised state h_i of position i and the token at i + 1 it predicts the token at
i + 2 (DeepSeek-V3, arXiv 2412.19437, section 2.2):

    m_i = norm(layer(fc([norm_e(embedding of token i + 1), norm_h(h_i)]))),    logits = head(m_i)

To draft further, m_i takes the place of h_{i + 1}. The names of the tensors, the order of the two parts, that
row i has position i, and that h and m are taken behind the last normalisation, are as vLLM and SGLang run it
(``qwen3_5_mtp.py`` in both). As everywhere in Qwen3.5, weights of normalisations are counted from one.

The cache holds rows of the target's own states only. Those of the prompt, its video included, are computed
after the target's prefill. Those of drafted tokens are made with the layer's own states: they are forgotten
after the verification, and the accepted tokens are run again by the pass that drafts the next round's first
token. So nothing depends on what was drafted before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lvspec_cli.errors import PairError, UsageError
from lvspec_cli.models.cache import SlotMemory
from lvspec_cli.models.decoder import QUESTION_ROWS, Decoder, Pass
from lvspec_cli.models.families.base import Family
from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.pairs.files import MTP_PREFIX, mtp_tensors, read_header
from lvspec_cli.request import NO_PRUNING
from lvspec_cli.types import Prompt, Quantisation

_DTYPES = ("BF16", "F16", "F32")  # of weights, as files name them


class PredictionLayer(nn.Module):
    """The layer, with the files' names. To its family it is a model: ``model.language_model`` is itself.

    Only its own weights are its parameters. Embeddings, rotary embedding and head are the target's.
    """

    def __init__(self, family: Family, config: Any, target: Any = None) -> None:
        """
        :param config: the target's.
        :param target: the target's model; None where only the weights matter.
        :raises PairError: the family has no such layers.
        """
        super().__init__()
        self.config = copy.deepcopy(config.get_text_config())
        self.config.num_hidden_layers, self.config.layer_types = 1, ["full_attention"]
        parts = family.prediction_parts(self.config)
        if parts is None:
            raise PairError(f"{family.model_type} models have no prediction layer", "leave out --draft mtp")
        layer, norm = parts
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden, self.norm = norm(), norm(), norm()
        self.fc = nn.Linear(2 * self.config.hidden_size, self.config.hidden_size, bias=False)
        self.layers = nn.ModuleList([layer])
        self._shared = (family, target)  # in a tuple, so that it is no submodule

    @property
    def model(self) -> PredictionLayer:
        return self

    @property
    def language_model(self) -> PredictionLayer:
        return self

    @property
    def embed_tokens(self) -> Any:
        family, target = self._shared
        return family.language(target).embed_tokens

    @property
    def rotary_emb(self) -> Any:
        family, target = self._shared
        return family.language(target).rotary_emb

    @property
    def lm_head(self) -> Any:
        return self._shared[1].lm_head

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def fused(self, embeddings: Tensor, states: Tensor) -> Tensor:
        """The input of the decoder layer.

        :param embeddings: of the tokens at i + 1, (1, rows, width).
        :param states: of the positions i, (rows, width).
        """
        both = (self.pre_fc_norm_embedding(embeddings), self.pre_fc_norm_hidden(states[None]))
        return self.fc(torch.cat(both, dim=-1))


def with_prediction_layer(pair: LoadedPair, folder: Path) -> LoadedPair:
    """The pair with its target's prediction layer as its draft, read from the target's folder.

    The weights are kept in the compute dtype, also if the target's are quantised.

    :raises PairError: the layer is not whole, or is packed.
    """
    target = pair.target
    with torch.device("meta"):
        layer = PredictionLayer(target.family, target.model.config, target.model)
    check_weights(layer, folder)
    layer.load_state_dict(_read_weights(folder, target), assign=True)
    draft = replace(
        target,
        name=f"{target.name} ({MTP_PREFIX.rstrip('.')})",
        model=layer.requires_grad_(False).eval(),
        quantisation=Quantisation.NONE,
        workspace=None,
        fused=None,
        is_prediction_layer=True,
    )
    return replace(pair, draft=draft)


def check_weights(layer: PredictionLayer, folder: Path) -> None:
    """
    :raises PairError: a folder's files do not have the layer's weights as they are in the module.
    """
    expected = {name: tuple(weight.shape) for name, weight in layer.state_dict().items()}
    stored = {name.removeprefix(MTP_PREFIX): entry for name, entry in mtp_tensors(folder).items()}
    for name in sorted(expected.keys() | stored.keys()):
        found = stored.get(name)
        if found and tuple(found["shape"]) == expected.get(name) and found["dtype"] in _DTYPES:
            continue
        is_found = f"{found['shape']} of {found['dtype']}" if found else "missing"
        wanted = list(expected[name]) if name in expected else "not part of such a layer"
        raise PairError(
            f"{folder}: the prediction layer cannot be used: {MTP_PREFIX}{name} is {is_found}, it should be"
            f" {wanted} of {' or '.join(_DTYPES)}",
            "leave out --draft mtp, or take files whose prediction layer is whole and not quantised",
        )


def _read_weights(folder: Path, target: LoadedModel) -> dict[str, Tensor]:
    """The layer's weights by their names in the module, in the target's dtype on its device."""
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        names = [name for name in read_header(file) if name.startswith(MTP_PREFIX)]
        if names:
            with safe_open(file, "pt", device=str(target.device)) as tensors:
                for name in names:
                    weights[name.removeprefix(MTP_PREFIX)] = tensors.get_tensor(name).to(target.dtype)
    return weights


class MtpDecoder(Decoder):
    """Runs a prediction layer as a draft. It has to :meth:`follow` every pass of the target that stays.

    Row i of its cache is the target's position i with the token at i + 1. So while the target's cache holds n
    tokens, the layer's may hold n - 1 rows, and one more for each further known token.
    """

    reads_target = True

    def __init__(self, loaded: LoadedModel, memory: SlotMemory | None = None) -> None:
        super().__init__(loaded, memory)
        nothing = torch.empty(0, loaded.model.config.hidden_size, device=loaded.device, dtype=loaded.dtype)
        self._inputs: Tensor | None = None  # embeddings of the prefix, (1, prefix, width), until it is run
        self._states, self._first = nothing, 0  # of the target, not run yet, and the position of the first
        self._last_of_prefix = self._last_of_prompt = nothing
        self._own: Tensor | None = None  # the layer's own state of its last row, (1, width)
        self._checked = 0  # tokens of the answer that were run with the target's states

    def follow(self, passed: Pass) -> None:
        states = passed.hidden[0]
        if passed.logits is not None:  # a captured pass, whose memory the next one takes
            states = states.clone()
        if not passed.start:
            self._inputs = passed.inputs[0]
        known = passed.start - self._first
        is_next = 0 < known <= len(self._states)
        self._states = torch.cat((self._states[:known], states)) if is_next else states
        self._first = self._first if is_next else passed.start

    def encode(
        self,
        prompt: Prompt,
        watch: Collection[int] = (),
        keep: float = 1.0,
        scores: Tensor | None = None,
        *,
        with_question: bool = False,
    ) -> Pass:
        """Run the prefix, after :meth:`follow` of the target's pass over it, which watched layer 0.

        The target's features of the video are used again. The last position waits for the question, which is
        always run by :meth:`begin`.

        :raises RuntimeError: the target's pass was not followed.
        :raises UsageError: ``keep`` is less than 1: the layer sees what the target sees.
        """
        family, model, length = self.loaded.family, self.loaded.model, prompt.prefix_length
        if keep < 1:
            raise UsageError(*NO_PRUNING)
        if self._inputs is None or (self._first, len(self._states)) != (0, length):
            raise RuntimeError("the target's pass over the prefix comes first")
        self.cache.rollback(0)
        inputs = model.fused(self._inputs[:, 1:], self._states[:-1])
        self._inputs = None
        # A copy of a row, so that the states of the whole prefix need not stay.
        self._last_of_prefix = self._states = self._states[-1:].clone()
        self._first = self._prefix_length = length - 1
        positions = prompt.position_ids[..., : length - 1].to(self.loaded.device)
        return self._run(inputs, family.rotary(model, inputs, positions))

    def begin(
        self,
        prompt: Prompt,
        room: int,
        watch: Collection[int] = (),
        on_pass: Callable[[Pass], None] | None = None,
    ) -> Pass:
        """Run the question, after :meth:`follow` of the target's passes over it."""
        device, family, model = self.loaded.device, self.loaded.family, self.loaded.model
        start = prompt.prefix_length
        states = torch.cat((self._last_of_prefix, self._states[start - self._first :]))
        if len(states) != prompt.length - start + 1:
            raise RuntimeError("the target's passes over the question come first")
        self.cache.rollback(self._prefix_length)
        embeddings = family.embed(model, prompt.input_ids[:, start:].to(device))
        cosines, sines = family.rotary(model, embeddings, prompt.position_ids[..., start - 1 : -1].to(device))
        for first in range(0, embeddings.shape[1], QUESTION_ROWS):
            piece = slice(first, min(first + QUESTION_ROWS, embeddings.shape[1]))
            inputs = model.fused(embeddings[:, piece], states[piece])
            passed = self._run(inputs, (cosines[:, piece], sines[:, piece]))
        self._prompt_length, self._last_of_prompt = self.cache.length, states[-1:]
        self.restart()
        positions = family.answer_positions(prompt.next_position - 1, room, device)
        self._rotary = family.rotary(model, embeddings, positions)
        return passed

    def forward(self, tokens: Tensor, watch: Collection[int] = (), *, by_itself: bool = False) -> Pass:
        """Run tokens of the answer: with the target's states, if it has any for them, else a single one with
        the layer's own."""
        rotary = self.next_rotary(tokens.shape[0])
        passed = self._run(self.embedded(tokens), rotary)
        self.has_run(passed)
        return passed

    def embedded(self, tokens: Tensor) -> Tensor:
        states = self._states_of(tokens.shape[0])
        return self.loaded.model.fused(super().embedded(tokens), states)

    def has_run(self, passed: Pass) -> None:
        self._own = passed.hidden[0, -1:]

    def _states_of(self, rows: int) -> Tensor:
        """States of the next positions, (rows, width)."""
        if self._first == self.cache.length and len(self._states) >= rows:
            states = self._states[:rows]
            self._checked = self.answered + rows
            # What is left is of tokens that were not accepted.
            self._states, self._first = self._states[:0], self._first + rows
            return states
        if rows != 1 or self._own is None or self._first != self._checked + self._prompt_length:
            raise RuntimeError("the target's states are missing: follow() comes before forward()")
        return self._own

    def restart(self) -> None:
        """As before the answer's first token. The target's passes over its tokens are to follow anew."""
        super().restart()
        self._states, self._first, self._checked = self._last_of_prompt, self._prompt_length, 0

    def rollback(self, answered: int) -> None:
        """Remove all tokens that were run with the layer's own states, and others as any decoder does."""
        super().rollback(min(answered, self._checked))
        self._own = None
