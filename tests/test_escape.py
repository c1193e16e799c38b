from __future__ import annotations

import os
import subprocess
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.escape import shell_words, visible, visible_line

TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
ANY = st.text(st.characters(exclude_categories=()))  # lone surrogates too


@given(ANY)
def test_nothing_that_acts_is_left(text: str):
    shown = visible(text)
    for char in shown:
        assert char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(char) not in TURNS
    shown.encode("utf-8")
    assert visible(shown) == shown


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs", "M"))))
def test_ordinary_text_is_left_alone(text: str):
    assert visible(text) == text


@given(ANY)
def test_one_line_stays_one_line(text: str):
    assert len(visible_line(text).splitlines()) <= 1


def test_a_command_can_be_shown_and_pasted():
    odd = os.fsdecode(b"it's \xe9a\\ \x1b[2J\n\xe2\x80\xaef.mp4")
    words = ["lvspec", "two words", "", "it's", "\u4e2d", odd]
    line = shell_words(words)
    assert visible_line(line) == line
    assert line.startswith("""lvspec 'two words' '' 'it'"'"'s' '\u4e2d' $'it\\'s \\xe9a""")
    given = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    assert given.split(b"\0") == [*map(os.fsencode, words), b""]


def test_what_it_looks_like():
    assert visible("a\x1b[31mb\x9b\u202ec\n") == "a\\x1b[31mb\\x9b\\u202ec\n"
    assert visible_line("a\tb\n") == "a\\tb\\n"
    assert visible(os.fsdecode(b"caf\xe9")) == "caf\\xe9"
    assert visible("\U000e0041") == "\\U000e0041"
    assert visible("👩\u200d🚀 [bold]") == "👩\u200d🚀 [bold]"
