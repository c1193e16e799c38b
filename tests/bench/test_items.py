"""What is asked of which clip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lvspec_cli.bench.items import clips_of, clips_of_questions, with_choices
from lvspec_cli.bench.run import demo_clips
from lvspec_cli.demo.texts import CAPTION_PROMPTS, Question
from lvspec_cli.demo.write import describe, scene_of
from lvspec_cli.errors import NoInputError, OutputError, UsageError
from lvspec_cli.figures.fidelity import label_of
from lvspec_cli.figures.labels import asks_for_caption
from lvspec_cli.types import DEFAULT_PROMPT, VideoRequest

VIDEO = VideoRequest(Path(), max_frames=4, start=1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two clips, the second one of the demo world. Nothing here decodes them."""
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypmp42")
    scene, rng = scene_of(5, 1)
    (tmp_path / "b.json").write_text(json.dumps(describe(scene, rng)))
    return tmp_path


def test_clips_are_captioned_and_the_demos_are_asked_as_well(folder: Path):
    first, second = clips_of([folder], VIDEO, questions=2)
    assert first.video == VideoRequest(folder / "a.mp4", max_frames=4, start=1.0)
    (caption,) = first.items
    assert (caption.id, caption.file_name, caption.task) == ("a.mp4#1", "a.mp4", "caption")
    assert caption.scene is None
    known, *questions = second.items
    facts = json.loads((folder / "b.json").read_text())
    assert json.loads(known.model_dump_json())["scene"] == facts["scene"]
    assert (caption.prompt, known.prompt) == (DEFAULT_PROMPT, CAPTION_PROMPTS[1])
    assert [item.id for item in questions] == ["b.mp4#q1", "b.mp4#q2"]
    for item, asked in zip(questions, facts["questions"], strict=False):
        assert (item.prompt, item.reference, item.kind) == (asked["question"], asked["answer"], asked["kind"])
        assert (list(item.any_of), list(item.none_of)) == (asked["any_of"], asked["none_of"])
        assert item.task == "ask"


def test_own_prompts_replace_the_usual_ones(folder: Path):
    first, second = clips_of([folder], VIDEO, prompts=("What?", "Who?"))
    assert [item.prompt for item in second.items] == ["What?", "Who?"]
    assert [item.id for item in first.items] == ["a.mp4#1", "a.mp4#2"]


def test_only_what_asks_for_a_caption_or_is_the_clips_own_question_is_judged(folder: Path):
    own = json.loads((folder / "b.json").read_text())["questions"][3]
    prompts = ("describe this clip, in great detail", own["question"].upper(), "What colour is the ball?")
    _, clip = clips_of([folder], VIDEO, prompts=prompts)
    caption, question, other = clip.items
    assert caption.scene is not None
    assert (question.scene, question.kind, list(question.any_of)) == (None, own["kind"], own["any_of"])
    assert label_of(other) is None
    assert isinstance(label_of(question), Question)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        *((prompt, True) for prompt in (*CAPTION_PROMPTS, DEFAULT_PROMPT)),
        ("Please describe the scene", True),
        ("Describe the circle.", False),
        ("Describe the video's colours.", False),
        ("What happens first?", False),
        ("What happens in this video after the circle leaves?", False),
        ("", False),
    ],
)
def test_prompts_for_captions(prompt: str, wanted: bool):
    assert asks_for_caption(prompt) == wanted


def test_a_limit_takes_the_first_clips(folder: Path):
    assert [clip.items[0].file_name for clip in clips_of([folder], VIDEO, limit=1)] == ["a.mp4"]


def test_a_clip_that_is_not_there_stays_in_the_list_and_none_at_all_is_an_error(folder: Path):
    found = clips_of([folder / "a.mp4", folder / "gone.mp4"], VIDEO)
    assert [clip.items[0].file_name for clip in found] == ["a.mp4", "gone.mp4"]
    with pytest.raises(NoInputError):
        clips_of([folder / "gone.mp4"], VIDEO)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_questions_of_one_clip_are_one_clip(tmp_path: Path):
    file = write(
        tmp_path / "qa.jsonl",
        {"path": "a.mp4", "question": "Which?", "choices": ["red", "blue"], "answer": "B"},
        {"path": "b.mp4", "question": "How many?", "answer": "two"},
        {"path": "a.mp4", "question": "Where?"},
        {"path": "a.mp4", "question": "When?", "start": "0:02", "end": 3.5, "answer": None},
    )
    first, second, stretch = clips_of_questions(file, VIDEO)
    assert first.video.path == tmp_path / "a.mp4"
    assert [item.id for item in first.items] == ["a.mp4#1", "a.mp4#3"]
    choice, free = first.items
    assert choice.prompt == "Which?\nA. red\nB. blue\nAnswer with the letter of the right choice."
    assert (choice.choices, choice.reference) == (("red", "blue"), "B")
    assert (free.prompt, free.reference, free.task) == ("Where?", None, "ask")
    assert second.items[0].reference == "two"
    assert (stretch.video.start, stretch.video.end) == (2.0, 3.5)
    assert stretch.items[0].file_name == "a.mp4@2-3.5"
    assert len(clips_of_questions(file, VIDEO, limit=2)) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"path": "a.mp4"}', "line 2: question: Field required"),
        ('{"path": "a.mp4", "question": "", "answer": "x"}', "line 2: question: String should have at least"),
        ('{"path": "a.mp4", "question": "Q", "colour": 1}', "line 2: colour: Extra inputs"),
        ('{"path": "a.mp4", "question": "Q", "start": 3, "end": 2}', "line 2: end is not after start"),
        ('{"path": "a.mp4", "question": "Q", "start": NaN}', "line 2"),
        ('{"path": "a.mp4", "question": "Q", "start": "soon"}', "line 2: start: 'soon' is not a time"),
        ('{"path": null, "question": "Q"}', "line 2: path: None is not a file's path"),
        ("not json", "line 2: the line: Invalid JSON"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, said: str):
    file = tmp_path / "qa.jsonl"
    file.write_text('{"path": "a.mp4", "question": "Fine?"}\n' + line + "\n")
    with pytest.raises(UsageError, match=said):
        clips_of_questions(file, VIDEO)


def test_questions_in_utf_16_are_read_and_what_is_no_text_is_said(tmp_path: Path):
    file, line = tmp_path / "qa.jsonl", '{"path": "a.mp4", "question": "Où?"}\r\n'
    file.write_bytes(f"\r\n{line}".encode("utf-16"))
    (clip,) = clips_of_questions(file, VIDEO)
    assert (clip.items[0].id, clip.items[0].prompt) == ("a.mp4#2", "Où?")
    for raw, said in ((b"\n\xe9", r"qa\.jsonl, line 2: not UTF-8"), (b"a\0", r"qa\.jsonl, line 1: a NUL")):
        file.write_bytes(raw)
        with pytest.raises(UsageError, match=said):
            clips_of_questions(file, VIDEO)


def test_a_file_without_questions_is_no_input(tmp_path: Path):
    with pytest.raises(NoInputError, match="no question"):
        clips_of_questions(write(tmp_path / "qa.jsonl"), VIDEO)
    with pytest.raises(NoInputError, match="No such file"):
        clips_of_questions(tmp_path / "gone.jsonl", VIDEO)


def test_a_question_without_choices_is_asked_as_it_is():
    assert with_choices("Why?", ()) == "Why?"


def test_only_clips_that_are_missing_are_drawn(tmp_path: Path):
    first = demo_clips(tmp_path / "clips", 2, seed=5)
    before = first[0].stat().st_mtime_ns
    first[1].with_suffix(".json").unlink()  # as if it had been stopped in the middle of it
    told: list[tuple[int, int]] = []
    again = demo_clips(tmp_path / "clips", 2, lambda *done: told.append(done), seed=5)
    assert (again, told) == (first, [(1, 2), (2, 2)])
    assert first[0].stat().st_mtime_ns == before
    assert first[1].with_suffix(".json").is_file()


def test_a_clip_of_somebody_else_is_not_drawn_over(tmp_path: Path):
    (tmp_path / "clip_0002.mp4").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"clip_0002\.mp4 was not written by lvspec"):
        demo_clips(tmp_path, 3, seed=5)
    assert (tmp_path / "clip_0002.mp4").read_bytes() == b"mine"
