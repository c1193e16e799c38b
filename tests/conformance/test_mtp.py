"""A target's own prediction layer as its draft (``models.mtp``), against transformers' own modules."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm

from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.models.mtp import MtpDecoder, with_prediction_layer
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import Mode, Prompt, RelevanceName, Round, RuleSettings, TokenKind
from tests.conformance.conftest import CLIPS, Subject
from tests.conformance.test_exact import CASES, WANTED, Case, check
from tests.conformance.test_rollback import outcome
from tests.speculation.conftest import decode, scratch, stock_model
from tests.tiny_models import add_prediction_layer, save_model, write_prediction_layer
from tests.tiny_tokenizers import WORDS


def loaded(folder: Path, **more: Any) -> LoadedPair:
    return with_prediction_layer(load_pair(folder, None, device="cpu", dtype="float32", **more), folder)


LEARNT = ("one-frame", "odd")  # clips whose answers the layer knows


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A target whose layer has learnt its answers about some clips and knows nothing of others."""
    folder = add_prediction_layer(save_model(tmp_path_factory.mktemp("mtp") / "target", "qwen3_5"))
    teach(Subject("qwen3_5", (folder, folder), loaded(folder)))
    return Subject("qwen3_5", (folder, folder), loaded(folder))


def teach(subject: Subject, steps: int = 60) -> None:
    """Train the layer in a saved target on the target's own answers, in seconds."""
    target, reference = subject.pair.target, Reference(subject.folders[0])
    examples = []
    for clip in LEARNT:
        prompt, tokens = subject.prompts(clip).target, subject.generate(clip, max_new_tokens=24)
        states, inputs, positions = (part.clone() for part in reference.read(target, prompt, tokens, 0))
        examples.append((states, inputs, positions, torch.tensor(tokens[1:])))
    assert subject.pair.draft is not None
    layer = copy.deepcopy(subject.pair.draft.model).train().requires_grad_(True)
    optimiser = torch.optim.Adam(layer.parameters(), lr=6e-3)
    for _ in range(steps):
        losses = []
        for states, inputs, positions, answer in examples:
            given = states[0]
            for _ in range(3):  # from the target's states, then from the layer's own
                rows = layer.fused(inputs, given)
                rotary = layer.rotary_emb(rows, positions[..., : rows.shape[1]])
                own = layer.norm(layer.layers[0](rows, position_embeddings=rotary, attention_mask=None))
                logits = layer.lm_head(own[0, -len(answer) - 1 : -1])
                losses.append(torch.nn.functional.cross_entropy(logits, answer))
                given = torch.cat((states[0, :1], own[0, :-1]))
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        optimiser.step()
    write_prediction_layer(subject.folders[0], layer.state_dict())


class Reference:
    """The layer of transformers' own classes, without a cache: everything anew for every token."""

    def __init__(self, folder: Path) -> None:
        self.model = stock_model(str(folder))
        text = copy.deepcopy(self.model.config.get_text_config())
        text.num_hidden_layers, text.layer_types = 1, ["full_attention"]
        text._attn_implementation = "eager"
        self.layer = Qwen3_5DecoderLayer(text, 0).eval()
        weights = {
            name.removeprefix("mtp."): tensor
            for name, tensor in load_file(folder / "model.safetensors").items()
            if name.startswith("mtp.")
        }
        prefix = "layers.0."
        self.layer.load_state_dict(
            {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        )
        self.matrix = weights["fc.weight"]
        self.norms = {}
        for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
            self.norms[name] = Qwen3_5RMSNorm(text.hidden_size, text.rms_norm_eps)
            self.norms[name].load_state_dict({"weight": weights[f"{name}.weight"]})

    def read(
        self, target: Any, prompt: Prompt, known: list[int], more: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Behind a prompt and known tokens of its answer: the target's states but for the last token, the
        embeddings behind them, and positions, also those of so many more tokens."""
        language, embeddings = self.model.model.language_model, []
        hook = language.register_forward_pre_hook(
            lambda _, __, values: embeddings.append(values["inputs_embeds"]), with_kwargs=True
        )
        try:
            outputs = scratch(target, prompt, known, output_hidden_states=True)
        finally:
            hook.remove()
        behind = target.family.answer_positions(prompt.next_position, len(known) + more, torch.device("cpu"))
        positions = torch.cat((prompt.position_ids, behind), dim=-1)
        return outputs.hidden_states[-1][:, :-1], embeddings[0][:, 1:], positions

    @torch.inference_mode()
    def drafts(self, target: Any, prompt: Prompt, known: list[int], count: int) -> list[int]:
        """The tokens that the layer proposes behind a prompt and known tokens of its answer."""
        language = self.model.model.language_model
        states, inputs, positions = self.read(target, prompt, known, count)
        drafted: list[int] = []
        while len(drafted) < count:
            both = self.norms["pre_fc_norm_embedding"](inputs), self.norms["pre_fc_norm_hidden"](states)
            rows = torch.cat(both, dim=-1) @ self.matrix.T
            length = rows.shape[1]
            rotary = language.rotary_emb(rows, positions[..., :length])
            mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
            rows = self.norms["norm"](self.layer(rows, position_embeddings=rotary, attention_mask=mask))
            drafted.append(int(self.model.lm_head(rows[0, -1])[: len(target.tokenizer)].argmax()))
            states = torch.cat((states, rows[:, -1:]), dim=1)
            inputs = torch.cat((inputs, language.embed_tokens(torch.tensor([[drafted[-1]]]))), dim=1)
        return drafted


def whole(case: Case) -> Case:
    """The case without pruning, which a prediction layer has no part in."""
    return replace(case, keep=1.0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.clip)
def test_exact_is_generate(subject: Subject, case: Case) -> None:
    check(subject, whole(case))


@given(
    case=st.builds(
        Case,
        clip=st.builds(
            "{}/{}/{}".format, st.integers(1, 5), st.integers(0, 999), st.sampled_from([36, 60, 100])
        ),
        question=st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=9).map(" ".join),
        gamma=st.integers(1, 12) | st.just("auto"),
        penalty=st.sampled_from([1.0, 1.0, 1.3, 0.8]),
        ends=st.sets(st.integers(0, 23), max_size=2).map(tuple),
        limit=st.integers(1, 24),
    )
)
@settings(max_examples=6)
def test_exact_is_generate_at_any_setting(subject: Subject, case: Case) -> None:
    check(subject, case)


def check_rounds(subject: Subject, prompt: Prompt, rounds: list[Round]) -> None:
    """Every drafted token is what the layer says behind all tokens before it, whatever was drafted before."""
    reference, answer = Reference(subject.folders[0]), list(rounds[0].tokens)
    for done in rounds[1:]:
        drafted = list(done.drafted)
        if drafted:
            assert reference.drafts(subject.pair.target, prompt, answer, len(drafted)) == drafted
        answer += done.tokens


LOOSE = RuleSettings(relevance=RelevanceName.PLAUSIBLE, filler_margin=inf, anchor_margin=inf)


@pytest.mark.parametrize("rule", [None, LOOSE], ids=["exact", "loose"])
@pytest.mark.parametrize(("clip", "gamma"), [("odd", 3), ("wide", 5), ("one-frame", 1), ("12-seconds", 2)])
def test_drafts_are_what_recomputing_gives(
    subject: Subject, clip: str, gamma: int, rule: RuleSettings | None
) -> None:
    prompts = subject.prompts(clip)
    wanted = replace(WANTED, gamma=gamma, max_new_tokens=14)
    if rule is not None:
        wanted = replace(wanted, mode=Mode.LVSPEC, rule=rule)
    _, rounds = decode(subject.pair, prompts, wanted)
    check_rounds(subject, prompts.target, rounds)


def test_rounds_of_every_kind_occur(subject: Subject) -> None:
    """Drafts that are accepted as a whole, in part, and not at all, exactly and loosely."""
    outcomes, kinds = set(), set()
    for clip in ("odd", "wide", "two-frames", "tall-and-odd"):
        for wanted in (WANTED, replace(WANTED, mode=Mode.LVSPEC, rule=LOOSE)):
            _, rounds = decode(subject.pair, subject.prompts(clip), wanted)
            outcomes |= {outcome(done) for done in rounds[1:]}
            kinds |= {kind for done in rounds for kind in done.kinds}
    assert outcomes >= {"full", "part", "none"}
    assert kinds >= {TokenKind.EXACT, TokenKind.FILLER, TokenKind.TARGET}


def test_a_layer_that_has_learnt_saves_passes(subject: Subject) -> None:
    for clip in LEARNT:
        found, _ = decode(subject.pair, subject.prompts(clip), replace(WANTED, gamma=3))
        assert list(found.tokens) == subject.generate(clip, max_new_tokens=24)
        assert found.stats.mean_accepted_length is not None
        assert found.stats.mean_accepted_length > 2


def test_a_long_question_is_run_in_pieces(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("decoder", "mtp"):
        monkeypatch.setattr(f"lvspec_cli.models.{module}.QUESTION_ROWS", 3)
    question = "which colour is the ball that moves"
    prompts = subject.prompts("two-frames", question)
    assert prompts.target.length - prompts.target.prefix_length > 7
    found, rounds = decode(subject.pair, prompts, WANTED)
    assert list(found.tokens) == subject.generate("two-frames", question, max_new_tokens=24)
    check_rounds(subject, prompts.target, rounds)


def test_a_batch_of_questions_over_one_prefix(subject: Subject) -> None:
    """The video is encoded once, by the layer too; an answer without it in between changes nothing."""
    session = Session.of(subject.pair)
    prompts = subject.prompts("wide")
    plain = replace(WANTED, mode=Mode.AR)
    asked = (("how many balls", 4), ("What moves?", 6), ("is it red", None), ("what now", 2))
    for question, gamma in asked:
        prompts = build_prompts(subject.pair, CLIPS["wide"], question, earlier=prompts)
        assert prompts.draft is prompts.target
        wanted = plain if gamma is None else replace(WANTED, gamma=gamma)
        wanted = replace(wanted, max_new_tokens=16)
        found, rounds = decode(subject.pair, prompts, wanted, session)
        assert list(found.tokens) == subject.generate("wide", question, max_new_tokens=16)
        check_rounds(subject, prompts.target, rounds)


def test_the_first_answer_may_do_without_it(subject: Subject) -> None:
    """Then the target encodes the video again for the layer, which reads its states."""
    session, prompts = Session.of(subject.pair), subject.prompts("odd")
    for mode in (Mode.AR, Mode.EXACT):
        found, rounds = decode(subject.pair, prompts, replace(WANTED, mode=mode), session)
        assert list(found.tokens) == subject.generate("odd", max_new_tokens=24)
    check_rounds(subject, prompts.target, rounds)


def test_the_cache_never_holds_what_was_only_drafted(subject: Subject) -> None:
    session = Session.of(subject.pair)
    assert isinstance(session.draft, MtpDecoder)
    count = 0
    for done in session.answer(subject.prompts("odd"), replace(WANTED, gamma=4)):
        known, count = count, count + len(done.tokens)
        assert session.target.answered == count - 1
        # What was known when the round began; the accepted tokens are run in the next one.
        assert session.draft.answered == known


def test_sampling_takes_its_probabilities(subject: Subject) -> None:
    wanted = replace(WANTED, temperature=0.7, seed=5)
    found, _ = decode(subject.pair, subject.prompts("odd"), wanted)
    again, _ = decode(subject.pair, subject.prompts("odd"), wanted)
    assert found.tokens == again.tokens
    assert found.stats.drafted
