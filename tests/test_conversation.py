"""Questions that follow one another: what the models read, and that exact answers are generate's."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lvspec_cli import conversation
from lvspec_cli.conversation import Conversation
from lvspec_cli.errors import ContextError, UsageError
from lvspec_cli.events import Event, Noted, RoundDone
from lvspec_cli.models.decoder import Decoder
from lvspec_cli.models.families.qwen2_5_vl import count_fractions
from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.models.processing import features_of
from lvspec_cli.output.records import Record
from lvspec_cli.pairs.registry import PACKAGE
from lvspec_cli.pipeline import identify_video
from lvspec_cli.request import AskRequest
from lvspec_cli.types import Clip, DecodeSettings, Mode, Turn, VideoRequest
from lvspec_cli.video.decode import read_clip
from tests.conftest import demo_plan

TOKENS = 12
VIDEO = VideoRequest(PACKAGE / "demo/clips/clip_0001.mp4", max_frames=4)
EXACT = DecodeSettings(mode=Mode.EXACT, gamma=4, max_new_tokens=TOKENS)
QUESTIONS = ("How many objects are there?", "What colour is it?", "What happens?")
FOLDERS = (PACKAGE / "demo/pair/target", PACKAGE / "demo/pair/draft")


@pytest.fixture(scope="module")
def pair() -> LoadedPair:
    return load_pair(*FOLDERS, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return read_clip(VIDEO)


@pytest.fixture
def talk(pair: LoadedPair, clip: Clip) -> Conversation:
    request = AskRequest(VIDEO, (), EXACT)
    return Conversation(pair, demo_plan(), request, identify_video(request), clip)


def ask(talk: Conversation, question: str, **options: Any) -> tuple[Record, list[Event]]:
    events: list[Event] = []
    return talk.ask(question, events.append, **options), events


@functools.cache
def stock() -> Any:
    """The target as transformers runs it, in float32 as the pair is: its files are bfloat16."""
    model = AutoModelForImageTextToText.from_pretrained(FOLDERS[0], dtype=torch.float32)
    count_fractions(model)
    return model


def generated(pair: LoadedPair, clip: Clip, history: tuple[Turn, ...], question: str) -> str:
    """The answer of transformers alone to a conversation that is written by hand."""
    turns: list[dict[str, Any]] = []
    for turn in history:
        turns += [
            {"role": "user", "content": [{"type": "text", "text": turn.question}]},
            {"role": "assistant", "content": [{"type": "text", "text": turn.answer}]},
        ]
    turns.append({"role": "user", "content": [{"type": "text", "text": question}]})
    turns[0]["content"].insert(0, {"type": "video"})
    processor = pair.target.processor
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = features_of(processor, text, clip)
    with torch.inference_mode():
        tokens = stock().generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).lstrip(" ")


def test_exact_answers_are_generates_on_the_same_conversation(
    talk: Conversation, pair: LoadedPair, clip: Clip, monkeypatch: pytest.MonkeyPatch
):
    encoded: list[Decoder] = []
    encode = Decoder.encode

    def counted(self: Decoder, *rest: Any, **more: Any) -> Any:
        encoded.append(self)
        return encode(self, *rest, **more)

    monkeypatch.setattr(Decoder, "encode", counted)
    history: tuple[Turn, ...] = ()
    for question in QUESTIONS:
        record, _ = ask(talk, question)
        assert record.text == generated(pair, clip, history, question)
        assert record.lossless
        history = (*history, Turn(question, record.text))
        assert talk.history == history
    assert len(encoded) == 2, "the video, by target and draft, once for all questions"
    assert len({record.key for record in talk.records}) == 3
    assert talk.records[2].settings["history"][1] == {"question": QUESTIONS[1], "answer": history[1].answer}
    alone, _ = ask_anew(talk, QUESTIONS[2])
    assert alone.text == generated(pair, clip, (), QUESTIONS[2])
    assert alone.key != talk.records[2].key, "it follows nothing"


def ask_anew(talk: Conversation, question: str) -> tuple[Record, list[Event]]:
    talk.reset()
    return ask(talk, question)


def test_the_oldest_turns_are_left_out_when_they_do_not_fit(
    talk: Conversation, pair: LoadedPair, clip: Clip, monkeypatch: pytest.MonkeyPatch
):
    turns = tuple(Turn(f"What is {name}?", "A circle.") for name in ("one", "two", "three"))
    talk.history = turns
    monkeypatch.setattr(conversation, "HISTORY_TOKENS", 45)
    record, events = ask(talk, QUESTIONS[0])
    notes = [event.text for event in events if isinstance(event, Noted)]
    kept = talk.history[:-1]
    assert kept == turns[3 - len(kept) :]
    assert 0 < len(kept) < 3
    count = 3 - len(kept)
    turns_are = "the oldest turn is" if count == 1 else f"the {count} oldest turns are"
    assert notes == [f"{turns_are} left out: the context has no room for more"]
    assert record.text == generated(pair, clip, kept, QUESTIONS[0])


def test_a_short_context_leaves_out_turns_and_refuses_a_question_that_has_no_room(
    talk: Conversation, pair: LoadedPair, monkeypatch: pytest.MonkeyPatch
):
    ask(talk, QUESTIONS[0])
    prompt = talk._about.prompts
    assert prompt is not None
    config = pair.target.model.config.get_text_config()
    monkeypatch.setattr(config, "max_position_embeddings", prompt.target.length + TOKENS + 2)
    record, events = ask(talk, QUESTIONS[0])
    assert [event.text for event in events if isinstance(event, Noted)] == [
        "the oldest turn is left out: the context has no room for more"
    ]
    assert record.text == talk.records[0].text
    with pytest.raises(ContextError, match="the prompt"):
        ask(talk, "What is it? " * 20)
    assert ask_anew(talk, QUESTIONS[0])[0].text == record.text, "it goes on"


def test_what_goes_wrong_in_an_answer_ends_that_answer_alone(
    talk: Conversation, monkeypatch: pytest.MonkeyPatch
):
    whole, _ = ask(talk, QUESTIONS[2])
    talk.reset()
    with pytest.raises(UsageError, match=r"<\|im_end\|>"):
        ask(talk, "What is <|im_end|>?")

    def stop(event: Event) -> None:
        if isinstance(event, RoundDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.ask(QUESTIONS[2], stop)
    assert not talk.history
    cut, _ = ask(talk, QUESTIONS[2], interrupted=lambda: True)
    assert cut.error is not None
    assert whole.text is not None
    assert cut.text
    assert whole.text.startswith(cut.text)
    assert talk.history == (Turn(QUESTIONS[2], cut.text),), "what was said is said"

    def refuse(processor: Any, text: str) -> None:
        if text == whole.text:
            raise UsageError("the text holds a command")

    monkeypatch.setattr("lvspec_cli.models.prompt.check_text", refuse)
    again, events = ask_anew(talk, QUESTIONS[2])
    assert again.text == whole.text
    assert events[-1] == Noted("later questions will not know of this answer: the text holds a command")
    assert not talk.history
