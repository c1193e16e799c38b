"""A target's own prediction layer as its draft (``models.mtp``), against transformers' own modules."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm

from lvspec_cli.errors import PairError, UsageError
from lvspec_cli.memory.plan import Workload, need
from lvspec_cli.memory.sizes import size_of, size_of_mtp
from lvspec_cli.models.families import FAMILIES
from lvspec_cli.models.load import LoadedPair, ModelRequest, load_models, load_pair
from lvspec_cli.models.mtp import MtpDecoder, PredictionLayer, with_prediction_layer
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.models.read import read_config
from lvspec_cli.models.steps import Replay, StepOutputs, Workspace
from lvspec_cli.pairs.files import known_config, locate, locate_mtp
from lvspec_cli.pairs.registry import Source
from lvspec_cli.speculation.answer import EXACT_RULE, Answer
from lvspec_cli.speculation.draft_length import AdaptiveLength, policy_for
from lvspec_cli.speculation.engine import Session
from lvspec_cli.types import KeepBy, Mode, Prompt, Quantisation, RelevanceName, Round, RuleSettings, TokenKind
from tests.conformance import test_near_ties as near_ties
from tests.conformance.conftest import CLIPS, Subject
from tests.conformance.test_exact import CASES, WANTED, Case, check
from tests.conformance.test_near_ties import alone, beside, rounded, with_twins
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


@pytest.mark.sampled
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.clip)
def test_exact_is_generate(subject: Subject, case: Case) -> None:
    check(subject, whole(case))


@pytest.mark.thorough
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


LOAD = Workload(frames=8, max_pixels=112 * 112, new_tokens=64)
LOOSE = RuleSettings(relevance=RelevanceName.PLAUSIBLE, filler_margin=inf, anchor_margin=inf)


@pytest.mark.sampled
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


@pytest.mark.thorough
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


def test_relevance_may_need_the_video_again(subject: Subject) -> None:
    """The target then encodes it again, for states of other layers; the prediction layer keeps its rows."""
    session, prompts = Session.of(subject.pair), subject.prompts("odd")
    rule = replace(LOOSE, relevance=RelevanceName.SIMILARITY, anchor_margin=0.5, layers=(1,))
    for wanted in (WANTED, replace(WANTED, mode=Mode.LVSPEC, rule=rule)):
        _, rounds = decode(subject.pair, prompts, wanted, session)
        check_rounds(subject, prompts.target, rounds)
    assert any(done.relevance for done in rounds)


def test_the_first_answer_may_do_without_it(subject: Subject) -> None:
    """Then the target encodes the video again for the layer, which reads its states."""
    session, prompts = Session.of(subject.pair), subject.prompts("odd")
    for mode in (Mode.AR, Mode.EXACT):
        found, rounds = decode(subject.pair, prompts, replace(WANTED, mode=mode), session)
        assert list(found.tokens) == subject.generate("odd", max_new_tokens=24)
    check_rounds(subject, prompts.target, rounds)


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.LVSPEC])
def test_what_rounding_could_decide_depends_on_no_other_answer(subject: Subject, mode: Mode) -> None:
    """The layer reads the target's states again for that."""
    pair, asked = with_twins(subject.pair), [subject.prompts(clip) for clip in ("odd", "wide", "one-frame")]
    wanted = replace(near_ties.WANTED, mode=mode)
    expected = [alone(pair, prompts, wanted) for prompts in asked]
    for seed in range(3):
        with rounded(seed, least=2):
            assert beside(pair, asked, wanted) == expected


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


@dataclass
class OneMemory:
    """Captures as CUDA graphs are: all outputs share memory, and hold until the next replay."""

    outputs: list[StepOutputs] = field(default_factory=list)
    replayed: int = 0

    def __call__(self, run: Callable[[], StepOutputs]) -> Replay:
        own = run()
        self.outputs.append(own)

        def replay() -> StepOutputs:
            self.replayed += 1
            new = run()
            for each in self.outputs:
                each.hidden.fill_(torch.nan)
                each.logits.fill_(torch.nan)
            own.hidden.copy_(new.hidden)
            own.logits.copy_(new.logits)
            return own

        return replay


@pytest.mark.parametrize("captured", [False, True])
def test_timed_steps_of_the_target_change_nothing(subject: Subject, captured: bool) -> None:
    """They are not followed; what the layer took of a captured pass before them was a copy."""
    memory, pair, prompts = OneMemory(), subject.pair, subject.prompts("wide")
    if captured:
        pair = replace(pair, target=replace(pair.target, workspace=Workspace(memory)))
    session = Session.of(pair)
    session.encode(prompts, WANTED)
    answer = Answer(session.target, session.draft, pair.words, WANTED, None)
    rounds = [answer.begin(prompts)]
    while answer.finish is None:
        rounds.append(answer.round())
        if answer.finish is None:
            answer.time_step()
    assert answer.tokens == subject.generate("wide", max_new_tokens=24)
    assert bool(memory.replayed) is captured
    check_rounds(subject, prompts.target, rounds)


def test_gamma_auto_knows_that_the_head_is_the_most_of_it(subject: Subject) -> None:
    """A step reads the layer, its matrix and norms, and the head; the target's its layers and the head."""
    target, draft = subject.pair.target, subject.pair.draft
    assert draft is not None
    policy = policy_for(replace(WANTED, gamma="auto"), EXACT_RULE, target, draft)
    assert isinstance(policy, AdaptiveLength)
    head = target.vocabulary * 64
    layers = sum(part.numel() for part in target.family.layers(target.model).parameters())
    assert policy.costs.draft == pytest.approx((49_504 + head) / (layers + head))


def test_what_comes_in_the_wrong_order_is_named(subject: Subject) -> None:
    assert subject.pair.draft is not None
    draft, prompt = MtpDecoder(subject.pair.draft), subject.prompts("odd").target
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="over the prefix comes first"):
            draft.encode(prompt)
        with pytest.raises(RuntimeError, match=r"begin\(\) comes before forward"):
            draft.forward(torch.tensor([1]))
        target = Session.of(subject.pair).target
        draft.follow(target.encode(prompt, [0]))
        draft.encode(prompt)
        with pytest.raises(RuntimeError, match="over the question come first"):
            draft.begin(prompt, 8)
        target.begin(prompt, 8, on_pass=draft.follow)
        draft.begin(prompt, 8)
        with pytest.raises(RuntimeError, match="follow\\(\\) comes before"):
            draft.forward(torch.tensor([1, 2]))


def test_the_names_and_shapes_are_those_of_the_hub(subject: Subject) -> None:
    """As the index of Qwen3.5-27B has them; every family without such layers says so."""
    path = known_config("Qwen/Qwen3.5-27B")
    assert path is not None
    with torch.device("meta"):
        layer = PredictionLayer(FAMILIES["qwen3_5"], read_config(path))
    attention, width = "layers.0.self_attn", 5120
    assert {name: tuple(weight.shape) for name, weight in layer.state_dict().items()} == {
        "fc.weight": (width, 2 * width),
        "pre_fc_norm_embedding.weight": (width,),
        "pre_fc_norm_hidden.weight": (width,),
        "norm.weight": (width,),
        "layers.0.input_layernorm.weight": (width,),
        "layers.0.post_attention_layernorm.weight": (width,),
        f"{attention}.q_proj.weight": (2 * 24 * 256, width),  # each head's gate behind its query
        f"{attention}.k_proj.weight": (4 * 256, width),
        f"{attention}.v_proj.weight": (4 * 256, width),
        f"{attention}.o_proj.weight": (width, 24 * 256),
        f"{attention}.q_norm.weight": (256,),
        f"{attention}.k_norm.weight": (256,),
        "layers.0.mlp.gate_proj.weight": (17408, width),
        "layers.0.mlp.up_proj.weight": (17408, width),
        "layers.0.mlp.down_proj.weight": (width, 17408),
    }
    for name, family in FAMILIES.items():
        if name != "qwen3_5":
            with pytest.raises(PairError, match="have no prediction layer"):
                PredictionLayer(family, subject.pair.target.model.config)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("fc.weight", None, "mtp.fc.weight is missing, it should be [64, 128] of BF16 or F16 or F32"),
        ("norm.weight", torch.zeros(32), "mtp.norm.weight is [32] of F32, it should be [64]"),
        ("norm.weight", torch.zeros(64).to(torch.float8_e4m3fn), "mtp.norm.weight is [64] of F8_E4M3"),
        ("layers.1.mlp.up_proj.weight", torch.zeros(2, 2), "it should be not part of such a layer"),
    ],
)
def test_weights_that_cannot_be_used_are_named(
    subject: Subject, tmp_path: Path, name: str, changed: torch.Tensor | None, message: str
) -> None:
    folder = Path(shutil.copytree(subject.folders[0], tmp_path / "model"))
    assert subject.pair.draft is not None
    weights = {**subject.pair.draft.model.state_dict(), name: changed}
    write_prediction_layer(folder, {key: weight for key, weight in weights.items() if weight is not None})
    with pytest.raises(PairError) as caught:
        loaded(folder)
    assert message in caught.value.cause
    assert caught.value.cause.startswith(f"{folder}: the prediction layer cannot be used: ")


def test_it_stays_unpacked_beside_a_packed_target(subject: Subject) -> None:
    request = ModelRequest(subject.folders[0], device="cpu", quantisation=Quantisation.NF4)
    pair = with_prediction_layer(load_models(request, None), subject.folders[0])
    assert pair.draft is not None
    assert (pair.target.quantisation, pair.draft.quantisation) == (Quantisation.NF4, Quantisation.NONE)
    found, _ = decode(pair, subject.prompts("odd"), replace(WANTED, max_new_tokens=8))
    plain, _ = decode(pair, subject.prompts("odd"), replace(WANTED, max_new_tokens=8, mode=Mode.AR))
    assert found.tokens == plain.tokens
    assert found.stats.drafted


def test_a_draft_that_sees_less_of_the_video_is_refused(subject: Subject) -> None:
    for by in KeepBy:
        with pytest.raises(UsageError, match="--draft-frames and --draft-pixels cannot make that less"):
            decode(subject.pair, subject.prompts("odd"), replace(WANTED, draft_keep=0.5, draft_keep_by=by))


def test_files_are_counted_without_it(subject: Subject, tmp_path: Path) -> None:
    """Its tensors are in the target's files, and no part of the model that the config describes."""
    folder = subject.folders[0]
    stored, layer = locate(Source(folder=folder)), locate_mtp(Source(folder=folder))
    size = size_of(folder / "config.json")
    assert stored.parameters == size.parameters
    assert (layer.place, layer.folder, layer.parameters) == ("folder", folder, 49_504)
    assert layer.size == 4 * 49_504
    planned = size_of_mtp(folder / "config.json", size)
    assert (planned.parameters, planned.layers, planned.in_target) == (49_504, 1, True)
    assert need(planned, LOAD).cache * 2 == need(replace(size, state=0), LOAD).cache
    bare = save_model(tmp_path / "bare", "qwen3_5")
    assert locate_mtp(Source(folder=bare)).place == "missing"
    assert locate_mtp(Source(repo="no/where")).place == "not downloaded"
