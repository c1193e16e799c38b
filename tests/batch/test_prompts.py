import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.batch.layout import check_file, check_template, fill
from lvspec_cli.errors import UsageError


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("What happens?", "What happens?"),
        ("The clip {name} lasts {duration}.", "The clip beach.v2 lasts 1:30."),
        ('Answer as {{"text": "..."}} for {name}', 'Answer as {"text": "..."} for beach.v2'),
        ("{name}{name}", "beach.v2beach.v2"),
    ],
)
def test_fields_are_filled(template, expected):
    check_template(template, "--prompt")
    assert fill(template, name="beach.v2", duration=90.0) == expected


def test_an_unknown_duration_is_said():
    assert fill("{duration}", name="a", duration=None) == "unknown"


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{nmae}", "the unknown field {nmae}"),
        ("{}", "the unknown field {}"),
        ("{0}", "the unknown field {0}"),
        ("{name.__class__}", "the unknown field {name.__class__}"),
        ("{name!r}", "the unknown field {name!r}"),
        ("{name:>9999999999}", "the unknown field {name:>9999999999}"),
        ('{"text": 1}', 'the unknown field {"text": 1}'),
        ("{name", "a single brace"),
        ("name}", "a single brace"),
    ],
)
def test_what_is_wrong_is_named(template, what):
    with pytest.raises(UsageError) as caught:
        check_template(template, "--prompt")
    assert caught.value.cause.startswith(f"--prompt: {what} in the prompt ")
    assert caught.value.remedy == "use {name}, {duration} and {subtitles}; write {{ and }} for braces"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_in_a_file_the_line_is_named(end):
    text = end.join(["Say what you see in {name}.", "", "Its {colour}, and {more}.", "}"])
    with pytest.raises(UsageError, match=r"^p\.txt, line 3: the unknown field {colour} in the prompt 'Its"):
        check_file(text, "p.txt")


def is_wrong(check, text):
    try:
        check(text, "p.txt")
    except UsageError:
        return True
    return False


@given(
    st.text("{}ab!:\r\n")
    | st.lists(st.sampled_from(["{name}", "{{", "}}", "{", "}", "\n", "a"])).map("".join)
)
def test_a_file_is_wrong_just_where_its_text_is(text):
    assert is_wrong(check_file, text) == is_wrong(check_template, text)


@given(st.text(), st.text())
def test_what_is_filled_in_is_not_read_again(text, name):
    doubled = text.replace("{", "{{").replace("}", "}}")
    assert fill(doubled + "{name}", name=name, duration=None) == text + name
