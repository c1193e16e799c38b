import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.figures.labels import chrf, content_kept, repetition, rouge_l, same_answer, words

TEXTS = st.text(max_size=40)


def test_words_know_no_case_articles_or_punctuation() -> None:
    assert words("The Cat's 2 paws -- an end.") == ("cat's", "2", "paws", "end")
    assert words("红球 moves") == ("红", "球", "moves")
    assert words("…") == ()


def test_short_answers_agree_in_their_words() -> None:
    assert same_answer("A red ball.", "red  Ball")
    assert not same_answer("red ball", "ball red")


def test_content_kept_counts_words_that_say_something() -> None:
    assert content_kept("A red ball is there. The red ball!", "The red ball and a dog") == (2, 3)
    assert content_kept("", "a the of") == (0, 0)
    assert content_kept("狗 跑", "狗 睡") == (1, 2)


def test_chrf_by_hand() -> None:
    # Orders 1 and 2 only, as "ab" has no longer ones: precision 1, recall (2/3 + 1/2) / 2 = 7/12,
    # F with beta 2 is 5 P R / (4 P + R) = (35/12) / (55/12).
    assert chrf("ab", "abc") == pytest.approx(100 * 35 / 55)
    assert chrf("abc", "abc") == 100
    assert chrf("xyz", "abc") == 0
    assert chrf("", "") == 100
    assert chrf("", "abc") == 0


def test_rouge_l_by_hand() -> None:
    # "the cat" is the longest common subsequence: precision 2/3, recall 2/6.
    assert rouge_l("The cat sat.", "the cat is on the mat") == pytest.approx(100 * 4 / 9)
    assert rouge_l("mat the on", "the cat is on the mat") == pytest.approx(100 * 4 / 9)  # "the on"
    assert rouge_l("", "a") == 0
    assert rouge_l("!", "") == 100


@given(TEXTS, TEXTS)
def test_likeness_is_within_bounds(text: str, other: str) -> None:
    assert chrf(text, text) == 100
    assert rouge_l(text, text) == 100
    assert 0 <= chrf(text, other) <= 100
    assert 0 <= rouge_l(text, other) <= 100
    assert rouge_l(text, other) == pytest.approx(rouge_l(other, text))


def test_repetition_by_hand() -> None:
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)  # the last of five is the first again
    assert repetition([7] * 8) == pytest.approx(4 / 5)
    assert repetition([1, 2, 3]) == 0
    assert repetition([1, 1, 1], order=1) == pytest.approx(2 / 3)
