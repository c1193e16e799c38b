"""Real answers of a tiny pair, measured: our modes, the peers, and all of them in turns."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import Header, environment_of, open_journal
from lvspec_cli.bench.measure import Plan, measure, rotated
from lvspec_cli.bench.own import measure_own, profile_own
from lvspec_cli.bench.peers import generate_batch, measure_peer, one_line_error
from lvspec_cli.bench.variants import parse_modes, settings_of, variants_of
from lvspec_cli.errors import NoInputError
from lvspec_cli.figures.answers import BenchMode, Item, Variant
from lvspec_cli.models.attention import NAME
from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.types import DecodeSettings, TokenKind, VideoRequest
from tests.bench.made import SETTINGS, known
from tests.conftest import write_video
from tests.tiny_models import FAMILIES, make_clip, save_pair

ITEM = Item(id="noise#1", file_name="noise", prompt="What moves?")
CLIP = make_clip()
BASE = DecodeSettings(gamma=4, max_new_tokens=24)
AR, EXACT, LVSPEC = Variant(BenchMode.AR), Variant(BenchMode.EXACT, 4), Variant(BenchMode.LVSPEC, 4)
CONTROL = Variant(BenchMode.CONTROL)
HF_AR, ASSISTED = Variant(BenchMode.HF_AR), Variant(BenchMode.HF_ASSISTED, 4)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedPair]:
    found = {}
    for family in FAMILIES:
        # One width of vocabulary: transformers' assistant then needs no second tokenizer.
        folders = save_pair(tmp_path_factory.mktemp(family), family, draft_padding=8)
        found[family] = load_pair(*folders, device="cpu", dtype="float32")
    return found


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest, pairs: dict[str, LoadedPair]) -> LoadedPair:
    return pairs[request.param]


def own(pair: LoadedPair, variant: Variant):
    return measure_own(pair, CLIP, ITEM, variant, settings_of(variant, BASE, 0.1))


def test_a_batch_of_generate_gives_each_clips_own_answer(pair: LoadedPair):
    """Prompts of other lengths, which are padded on the left."""
    questions = (ITEM.prompt, "how many balls are there, and what moves first?")
    clips = (CLIP, make_clip(seed=1))
    alone = [
        measure_peer(pair, clip, Item(id="a", file_name="a", prompt=question), HF_AR, 12).tokens
        for clip, question in zip(clips, questions, strict=True)
    ]
    assert generate_batch(pair, clips, questions, 12) == alone


def test_our_modes_count_what_they_did(pair: LoadedPair):
    for variant in (AR, CONTROL, EXACT, LVSPEC, Variant(BenchMode.EXACT_PRUNED, 4)):
        found = own(pair, variant)
        assert found.variant == variant
        assert found.tokens is not None
        assert found.kinds is not None
        assert found.pieces is not None
        assert found.output_tokens == len(found.tokens) == len(found.kinds)
        assert "".join(text for text, _ in found.pieces) == found.text
        assert min(found.prompt_s, found.prefill_s, found.decode_s) > 0
        kinds = Counter(found.kinds)
        assert kinds[TokenKind.EXACT] == found.accepted_exact
        assert kinds[TokenKind.FILLER] == found.accepted_filler
        assert (found.loss or 0) > 0 or not found.accepted_filler + found.accepted_shift
        if variant.mode.drafts:
            assert 1 + sum(found.accepted_lengths) == found.output_tokens
            assert len(found.accepted_lengths) == found.rounds
    assert own(pair, EXACT).tokens == own(pair, AR).tokens
    control = own(pair, CONTROL)
    assert control.tokens == own(pair, CONTROL).tokens != own(pair, AR).tokens
    # A coin decides about every token that may vary, so another seed says something else.
    other = replace(settings_of(CONTROL, BASE, 0.1), seed=1)
    assert measure_own(pair, CLIP, ITEM, CONTROL, other).tokens != control.tokens


def test_the_peers_say_what_ar_says_and_leave_the_models_as_they_were(pair: LoadedPair):
    ours, plain = own(pair, AR), measure_peer(pair, CLIP, ITEM, HF_AR, 24)
    assert (plain.error, plain.tokens, plain.text) == (None, ours.tokens, ours.text)
    assert plain.finish_reason == ours.finish_reason
    assert plain.first_tokens == 1
    assert min(plain.prompt_s, plain.prefill_s, plain.decode_s) > 0
    assisted = measure_peer(pair, CLIP, ITEM, ASSISTED, 24)
    assert (assisted.error, assisted.tokens) == (None, ours.tokens)
    assert assisted.first_tokens + sum(assisted.accepted_lengths) == assisted.output_tokens
    assert assisted.rounds == len(assisted.accepted_lengths)
    assert max(assisted.accepted_lengths, default=0) <= 5
    assert 0 < assisted.accepted_exact <= known(assisted.drafted)
    for loaded in (pair.target, pair.draft):
        assert loaded is not None
        assert loaded.model.config.get_text_config()._attn_implementation == NAME
        assert loaded.model.generation_config.num_assistant_tokens is None
        assert not loaded.model._forward_hooks
    assert own(pair, AR).tokens == ours.tokens


def test_a_peer_that_fails_says_so_in_its_own_words(pair: LoadedPair):
    alone = replace(pair, draft=None)
    failed = measure_peer(alone, CLIP, ITEM, ASSISTED, 24)
    assert failed.error == "ValueError: no draft is loaded"
    assert (failed.variant, failed.text, failed.seconds_per_token) == (ASSISTED, None, None)
    assert measure_peer(pair, CLIP, ITEM, ASSISTED, 24).error is None
    split = copy.deepcopy(pair.target.model)
    pair.target.family.layers(split)[-1].to("meta")
    for variant in (HF_AR, ASSISTED):
        failed = measure_peer(
            replace(pair, target=replace(pair.target, model=split)), CLIP, ITEM, variant, 24
        )
        assert failed.error == "ValueError: the target is split over cpu and meta: only our own modes run so"
    assert one_line_error(RuntimeError("two\n  lines")) == "RuntimeError: two lines"
    assert len(one_line_error(ValueError("x" * 5000))) == 300


def test_a_profile_accounts_for_all_of_the_rounds(pair: LoadedPair, monkeypatch: pytest.MonkeyPatch):
    timed = own(pair, EXACT)
    ticks = itertools.count()
    # A clock that goes on by 1 whenever it is read: a pass takes 1, its logits 1, all else what is between.
    monkeypatch.setattr("lvspec_cli.bench.own.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    found = profile_own(pair, CLIP, ITEM, EXACT, settings_of(EXACT, BASE, 0.1))
    assert (found.rounds, found.draft_steps) == (timed.rounds, timed.drafted)
    assert found.draft_s == 2 * found.draft_steps
    assert found.verification_s == 2 * found.rounds
    assert found.overhead_s == 2 * (found.draft_steps + found.rounds) + 1


def test_every_mode_is_at_every_place_equally_often():
    variants = variants_of(parse_modes("ar,exact,lvspec"), (4,))
    orders = [rotated(variants, number) for number in range(6)]
    for place in range(3):
        assert Counter(order[place] for order in orders) == dict.fromkeys(variants, 2)
    assert all(sorted(map(str, order)) == sorted(map(str, variants)) for order in orders)


# --- all together ----------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path: Path) -> tuple[BenchClip, ...]:
    found = []
    for name in ("one", "two"):
        path = write_video(tmp_path / f"{name}.mp4")
        items = tuple(
            Item(id=f"{name}#{number}", file_name=name, prompt=prompt)
            for number, prompt in enumerate(("What?", "Who?"), 1)
        )
        found.append(BenchClip(VideoRequest(path, max_frames=4), items))
    return tuple(found)


def plan_of(modes: str, **fields: object) -> Plan:
    settings = replace(BASE, max_new_tokens=8)
    return Plan(variants_of(parse_modes(modes), (4,)), settings, 0.1, **fields)  # type: ignore[arg-type]


@pytest.fixture
def one_family(pairs: dict[str, LoadedPair]) -> LoadedPair:
    return pairs[FAMILIES[0]]


@pytest.fixture
def header(one_family: LoadedPair) -> Header:
    return Header(settings=SETTINGS, environment=environment_of(one_family), inputs="")


@pytest.mark.thorough
def test_all_modes_answer_everything_in_turns(one_family, clips, header, tmp_path: Path):
    plan = plan_of("ar,exact,lvspec", repeat=2, examples=1, profiles=1)
    told: list[tuple[int, int]] = []
    with open_journal(tmp_path / "out", header) as kept:
        measure(one_family, clips, plan, kept, progress=lambda *done: told.append(done))
        blocks, items = kept.blocks, kept.items
    assert told == [(number, 8) for number in range(9)]
    assert set(blocks) == {(item.id, repeat) for clip in clips for item in clip.items for repeat in (0, 1)}
    for number, item in enumerate(item for clip in clips for item in clip.items):
        first, second = blocks[item.id, 0], blocks[item.id, 1]
        places = [each.place for each in first.measurements]
        assert places == [(place - number) % 3 for place in range(3)]
        for each in first.measurements:
            assert each.log_probability is not None
            assert each.log_probability < 0
            assert (each.pieces is not None) == (number == 0)
        ar, exact, _ = first.measurements
        assert ar.text == exact.text
        assert ar.log_probability == pytest.approx(exact.log_probability)
        assert second.measurements[0].text == ar.text
        assert second.measurements[0].tokens is None
        assert [profile.mode for profile in first.profiles] == (["exact", "lvspec"] if number == 0 else [])
        assert (items[item.id].frames, items[item.id].error) == (4, None)
        assert items[item.id].visual_tokens


def test_an_interrupted_run_goes_on_where_it_was(one_family, clips, header, tmp_path: Path):
    plan = plan_of("ar,exact")

    def stop_at(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_journal(tmp_path / "out", header) as kept:
        measure(one_family, clips, plan, kept, progress=stop_at)
    with open_journal(tmp_path / "out", header) as kept:
        before = dict(kept.blocks)
        assert len(before) == 3
        clips[0].video.path.unlink()  # all of it is measured: it is not needed any more
        told: list[tuple[int, int]] = []
        measure(one_family, clips, plan, kept, progress=lambda *done: told.append(done))
        assert told == [(number, 4) for number in range(5)]
        assert len(kept.blocks) == 4
        assert {key: kept.blocks[key] for key in before} == before


def test_a_clip_that_cannot_be_read_is_noted(one_family, clips, header, tmp_path: Path):
    clips[0].video.path.write_text("no video\n" * 100)
    said: list[str] = []
    with open_journal(tmp_path / "out", header) as kept:
        measure(one_family, clips, plan_of("ar"), kept, warn=said.append)
        assert {item for item, _ in kept.blocks} == {"two#1", "two#2"}
        assert kept.items["one#1"].error
        assert len(said) == 1
        assert said[0].startswith("one: ")
    clips[1].video.path.unlink()
    with (
        open_journal(tmp_path / "empty", header) as kept,
        pytest.raises(NoInputError, match="nothing could be"),
    ):
        measure(one_family, clips, plan_of("ar"), kept)


def test_a_peer_that_cannot_run_is_tried_once(one_family, clips, header, tmp_path: Path):
    alone = replace(one_family, draft=None)
    said: list[str] = []
    with open_journal(tmp_path / "out", header) as kept:
        measure(alone, clips, plan_of("ar,hf-assisted"), kept, warn=said.append)
        for found in kept.blocks.values():
            _, *peers = found.measurements
            assert [each.error for each in peers] == ["ValueError: no draft is loaded"] * 2
    assert [line.partition(" cannot run")[0] for line in said] == ["hf-assisted", "hf-assisted γ=4"]
