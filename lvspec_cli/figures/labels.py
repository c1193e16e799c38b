"""How right a text is by a scene's facts or a user's reference, and how alike two texts are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lvspec_cli.demo.facts import FactScore, read_facts, scene_facts, score_facts
from lvspec_cli.demo.questions import Question, is_right
from lvspec_cli.demo.scenes import Scene, scene_from_dict
from lvspec_cli.errors import UsageError
from lvspec_cli.figures.answers import Item
from lvspec_cli.text_file import PROMPTS, read_own


@dataclass(frozen=True)
class Reference:
    """The user's own: a right answer, and what there is to choose from, as far as given.

    With choices, ``answer`` is one of them or its letter.
    """

    answer: str | None = None
    choices: tuple[str, ...] = ()


Label = Scene | Question | Reference


@dataclass(frozen=True)
class Judgement:
    """How far one text gives what is right. Empty and None where that is not known."""

    facts: Mapping[str, FactScore] = field(default_factory=dict)  # of a caption: by kind, "all" over all
    right: bool | None = None  # of an answer
    choice: int | None = None  # which of the choices it takes, from 0


def judge_text(text: str, label: Label | None) -> Judgement:
    """Compares a text with what is known."""
    match label:
        case Scene():
            return Judgement(facts=score_facts(read_facts(text), scene_facts(label)))
        case Question():
            return Judgement(right=is_right(label, text))
        case Reference(answer, choices) if choices:
            choice = chosen(text, choices)
            wanted = None if answer is None else chosen(answer, choices)
            return Judgement(right=None if wanted is None else choice == wanted, choice=choice)
        case Reference(answer) if answer is not None:
            return Judgement(right=_holds(words(text), words(answer)))
    return Judgement()


_LETTER = re.compile(
    r"\W*(?:(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:answer|option|choice)\s*(?:is)?\W*)?"
    r"(?P<letter>[a-z])(?:[).:,\]]|\W*$)",
    re.IGNORECASE,
)


def chosen(text: str, choices: Sequence[str]) -> int | None:
    """Which of the choices an answer takes, by letter (``B``, ``(b) blue``, ``Answer: B``) or in words.

    None where it takes none of them, or several. Of two that are both said, one inside the other (``red``,
    ``dark red``), it is the longer.
    """
    match = _LETTER.match(text)
    if match and (index := ord(match["letter"].lower()) - ord("a")) < len(choices):
        return index
    said, phrases = words(text), [words(choice) for choice in choices]
    held = [index for index, phrase in enumerate(phrases) if phrase and _holds(said, phrase)]
    inside = {
        one
        for one in held
        for other in held
        if phrases[one] != phrases[other] and _holds(phrases[other], phrases[one])
    }
    whole = [index for index in held if index not in inside]
    return whole[0] if len(whole) == 1 else None


def _holds(text: Sequence[str], phrase: Sequence[str]) -> bool:
    """Whether the words of a phrase stand in a text, in order and together."""
    count = len(phrase)
    return any(tuple(text[start : start + count]) == tuple(phrase) for start in range(len(text) - count + 1))


@dataclass(frozen=True)
class SceneLabels:
    """What ``lvspec demo`` writes beside a clip."""

    scene: Scene
    questions: tuple[Question, ...]


def labels_beside(clip: Path) -> SceneLabels | None:
    """The facts of a clip of the demo world, from ``clip_0001.json`` beside ``clip_0001.mp4``.

    None where there is no such file, or it is somebody else's.

    :raises UsageError: the file is the demo's, but damaged.
    """
    path = clip.with_suffix(".json")
    try:
        data = json.loads(read_own(path, PROMPTS))
    except (OSError, ValueError, RecursionError):
        return None
    except UsageError:  # too large, or no file
        return None
    if not isinstance(data, dict) or not {"scene", "questions"} <= data.keys():
        return None
    try:
        questions = tuple(
            Question(
                item["kind"], item["question"], item["answer"], tuple(item["any_of"]), tuple(item["none_of"])
            )
            for item in data["questions"]
        )
        return SceneLabels(scene_from_dict(data["scene"]), questions)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path}: not the facts of a scene ({type(error).__name__}: {error})",
            "write it again with `lvspec demo`, or take it away",
        ) from error


def labelled(item: Item, labels: SceneLabels | None) -> Item:
    """The item with what is known of its answer: of a caption the facts, of one of the clip's own questions
    the right words. Of any other prompt nothing is known, and the item stays as it is."""
    if labels is None:
        return item
    if asks_for_caption(item.prompt):
        return item.model_copy(update={"scene": labels.scene.as_dict()})
    said = words(item.prompt)
    asked = next((each for each in labels.questions if words(each.question) == said), None)
    if asked is None:
        return item
    return item.model_copy(
        update={
            "task": "ask",
            "kind": asked.kind,
            "reference": asked.answer,
            "any_of": asked.any_of,
            "none_of": asked.none_of,
        }
    )


_CAPTION_PROMPT = re.compile(
    r"(please )?(describe|caption) (this )?(video|clip|scene)( in (\w+ )?detail)?"
    r"|what happens( in (this )?(video|clip|scene))?"
    r"|what does (this )?(video|clip|scene) show"
)


def asks_for_caption(prompt: str) -> bool:
    """Whether a prompt wants all that a clip shows, as the demo's captions tell it."""
    return _CAPTION_PROMPT.fullmatch(" ".join(words(prompt))) is not None


# A character of a script without spaces is a word.
_WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W_]+(?:['’][^\W_]+)*")
_ARTICLES = frozenset(("a", "an", "the"))


def words(text: str) -> tuple[str, ...]:
    """A text's words without case, punctuation and English articles, as SQuAD compares answers."""
    return tuple(word for word in _WORD.findall(text.casefold()) if word not in _ARTICLES)


def same_answer(text: str, other: str) -> bool:
    """Whether two short answers say the same in the same words."""
    return words(text) == words(other)


def chrf(text: str, reference: str) -> float:
    """chrF of one text, 0 to 100 (Popović 2015: characters up to 6-grams, beta 2). Empty texts are alike."""
    if text == reference:
        return 100.0
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().sentence_score(text, [reference]).score)


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L of one text, F1, 0 to 100 (Lin 2004, section 3.2): the longest common subsequence of words.

    Articles count here, case and punctuation do not. Texts without words are alike.
    """
    from rapidfuzz.distance import Indel

    # 2 LCS / (m + n) is the F1, and one less the normalised distance of insertions and deletions.
    return 100.0 * Indel.normalized_similarity(
        *(_WORD.findall(part.casefold()) for part in (text, reference))
    )


def repetition(tokens: Sequence[object], order: int = 4) -> float:
    """Share of a text's n-grams that it has said before, 0 to 1: seq-rep-4 of Welleck et al. 2020."""
    grams = [tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
