"""Correctness of a text (by a scene's facts or a user's reference), and similarity of two texts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from lvspec_cli.demo.facts import FactScore, read_facts, scene_facts, score_facts
from lvspec_cli.demo.scenes import Scene
from lvspec_cli.demo.texts import Question, is_right
from lvspec_cli.errors import UsageError
from lvspec_cli.figures.answers import Item
from lvspec_cli.text_file import PROMPTS, read_own


@dataclass(frozen=True)
class Reference:
    """A right answer and the choices, from the user; either may be missing.

    With choices, ``answer`` is one of them or its letter.
    """

    answer: str | None = None
    choices: tuple[str, ...] = ()


Label = Scene | Question | Reference


@dataclass(frozen=True)
class Judgement:
    """How correct a text is. Fields are empty or None where the right answer is not known."""

    facts: Mapping[str, FactScore] = field(default_factory=dict)  # caption: by kind; "all" for all kinds
    right: bool | None = None  # answer
    choice: int | None = None  # index of the choice that the answer takes


def judge_text(text: str, label: Label | None) -> Judgement:
    """Judges a text by its label."""
    match label:
        case Scene():
            return Judgement(facts=score_facts(read_facts(text), scene_facts(label)))
        case Question():
            return Judgement(right=is_right(label, text))
        case Reference(answer, choices) if choices:
            choice = parse_choice(text, choices)
            right = None if answer is None else parse_choice(answer, choices)
            return Judgement(right=None if right is None else choice == right, choice=choice)
        case Reference(answer) if answer is not None:
            return Judgement(right=_holds(words(text), words(answer)))
    return Judgement()


_LETTER = re.compile(
    r"\W*(?:(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:answer|option|choice)\s*(?:is)?\W*)?"
    r"(?P<letter>[a-z])(?:[).:,\]]|\W*$)",
    re.IGNORECASE,
)


def parse_choice(text: str, choices: Sequence[str]) -> int | None:
    """The index of the choice that an answer takes, by letter (``B``, ``(b) blue``, ``Answer: B``) or words.

    None if it takes none or several. If one mentioned choice is part of another (``red``, ``dark red``), the
    longer one counts.
    """
    match = _LETTER.match(text)
    if match and (index := ord(match["letter"].lower()) - ord("a")) < len(choices):
        return index
    text_words, phrases = words(text), [words(choice) for choice in choices]
    mentioned = [index for index, phrase in enumerate(phrases) if phrase and _holds(text_words, phrase)]
    contained = {
        inner
        for inner in mentioned
        for outer in mentioned
        if phrases[inner] != phrases[outer] and _holds(phrases[outer], phrases[inner])
    }
    remaining = [index for index in mentioned if index not in contained]
    return remaining[0] if len(remaining) == 1 else None


def _holds(text: Sequence[str], phrase: Sequence[str]) -> bool:
    """Whether a text contains the words of a phrase, consecutive and in order."""
    count = len(phrase)
    return any(tuple(text[start : start + count]) == tuple(phrase) for start in range(len(text) - count + 1))


@dataclass(frozen=True)
class SceneLabels:
    """The facts and questions that ``lvspec demo`` writes next to a clip."""

    scene: Scene
    questions: tuple[Question, ...]


_LABELS = TypeAdapter(SceneLabels)


def read_scene_labels(clip: Path) -> SceneLabels | None:
    """The facts of a clip of the demo world: ``clip_0001.json`` for ``clip_0001.mp4``.

    None if there is no such file, or ``lvspec demo`` did not write it.

    :raises UsageError: ``lvspec demo`` wrote the file, but it is damaged.
    """
    path = clip.with_suffix(".json")
    try:
        data = json.loads(read_own(path, PROMPTS))
    except (OSError, ValueError, RecursionError):
        return None
    except UsageError:  # too large, or not a regular file
        return None
    if not isinstance(data, dict) or not {"scene", "questions"} <= data.keys():
        return None
    try:
        return _LABELS.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(
            f"{path}: not the facts of a scene ({'.'.join(map(str, first['loc']))}: {first['msg']})",
            "write it again with `lvspec demo`, or take it away",
        ) from error


def with_labels(item: Item, labels: SceneLabels | None) -> Item:
    """The item with its label: the facts for a caption prompt, the answer for one of the clip's questions.

    For any other prompt nothing is known: the item is returned unchanged.
    """
    if labels is None:
        return item
    if asks_for_caption(item.prompt):
        return item.model_copy(update={"scene": labels.scene.as_dict()})
    prompt = words(item.prompt)
    question = next(
        (candidate for candidate in labels.questions if words(candidate.question) == prompt), None
    )
    if question is None:
        return item
    return item.model_copy(
        update={
            "task": "ask",
            "kind": question.kind,
            "reference": question.answer,
            "any_of": question.any_of,
            "none_of": question.none_of,
        }
    )


_CAPTION_PROMPT = re.compile(
    r"(please )?(describe|caption) (this )?(video|clip|scene)( in (\w+ )?detail)?"
    r"|what happens( in (this )?(video|clip|scene))?"
    r"|what does (this )?(video|clip|scene) show"
)


def asks_for_caption(prompt: str) -> bool:
    """Whether a prompt asks for a description of the whole clip, like the demo's captions."""
    return _CAPTION_PROMPT.fullmatch(" ".join(words(prompt))) is not None


# In scripts without spaces each character is a word.
_WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W_]+(?:['’][^\W_]+)*")
_ARTICLES = frozenset(("a", "an", "the"))


def words(text: str) -> tuple[str, ...]:
    """A text's words without case, punctuation and English articles: the normalisation of SQuAD."""
    return tuple(word for word in _WORD.findall(text.casefold()) if word not in _ARTICLES)


def content_kept(text: str, reference: str) -> tuple[int, int]:
    """How many different content words of a reference a text has, too, and how many the reference has.

    Content words are all words but English function words (``models.words``). Their share needs no labels,
    and orders rules as the true recall of facts does (docs/rule.md).
    """
    from lvspec_cli.models.words import FUNCTION_WORDS

    content = set(words(reference)) - FUNCTION_WORDS
    return len(content & set(words(text))), len(content)


def same_answer(text: str, other: str) -> bool:
    """Whether two short answers consist of the same words."""
    return words(text) == words(other)


def chrf(text: str, reference: str) -> float:
    """chrF of one text, 0 to 100 (Popović 2015: characters up to 6-grams, beta 2). Two empty texts: 100."""
    if text == reference:
        return 100.0
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().sentence_score(text, [reference]).score)


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L of one text, F1, 0 to 100 (Lin 2004, section 3.2): the longest common subsequence of words.

    Articles count; case and punctuation do not. Two texts without words: 100.
    """
    from rapidfuzz.distance import Indel

    # F1 = 2 LCS / (m + n) = 1 - the normalised distance of insertions and deletions.
    return 100.0 * Indel.normalized_similarity(
        *(_WORD.findall(part.casefold()) for part in (text, reference))
    )


def repetition(tokens: Sequence[object], order: int = 4) -> float:
    """Share of n-grams that occurred earlier in the text, 0 to 1: seq-rep-4 of Welleck et al. 2020."""
    grams = [tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
