"""The tag syntax: what is written can be read, and what cannot be read is refused with its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.errors import DataError
from lm.tagged_text import Segment, TaggedText, parse, render, strip

WORD = st.text(st.characters(exclude_characters="<>", exclude_categories=["Z", "C"]), min_size=1, max_size=6)
WORDS = st.lists(WORD, min_size=1, max_size=3).map(" ".join)
NAME = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True)
TAGGED = st.lists(st.builds(Segment, WORDS, st.none() | NAME), max_size=5).map(tuple).map(TaggedText)


def test_parts_of_an_example() -> None:
    tagged = parse("call  <contact> john smith</contact>, on <phone_2>work</phone_2>")
    assert tagged.segments == (
        Segment("call"),
        Segment("john smith", "contact"),
        Segment(", on"),
        Segment("work", "phone_2"),
    )
    assert tagged.surface == "call john smith , on work"
    assert tagged.entities == [("contact", "john smith", 1, 3), ("phone_2", "work", 5, 6)]
    assert tagged.pattern == "call <contact> , on <phone_2>"
    assert render(tagged) == "call <contact>john smith</contact> , on <phone_2>work</phone_2>"
    assert strip("<a>x</a> <a>y</a>") == "x y"
    assert parse("") == TaggedText(())
    assert parse("  no  tags ").surface == "no tags"


@given(TAGGED)
def test_render_then_parse_is_the_same(tagged: TaggedText) -> None:
    assert parse(render(tagged)) == tagged


@given(TAGGED)
def test_views_agree(tagged: TaggedText) -> None:
    words = tagged.surface.split()
    pattern = list(words)
    for name, text, start, end in reversed(tagged.entities):
        assert words[start:end] == text.split()
        pattern[start:end] = [f"<{name}>"]
    assert tagged.pattern.split() == pattern
    assert strip(render(tagged)) == tagged.surface


@given(st.text(alphabet="ab/<> ", max_size=14))
def test_any_text_is_read_faithfully_or_refused(text: str) -> None:
    try:
        tagged = parse(text)
    except DataError as refusal:
        message = str(refusal)
    else:
        assert "".join(render(tagged).split()) == "".join(text.split())
        return
    assert " ".join(repr(text).split()) in message


@pytest.mark.parametrize(
    ("text", "problem", "position"),
    [
        ("call <contact>john", "never closed", 6),
        ("call <contact>john <contact", "'<'", 20),
        ("call john</contact>", "closes nothing", 10),
        ("<a>x</b>", "closed by '</b>'", 5),
        ("<a>x <b>y</b></a>", "'<b>' inside '<a>'", 6),
        ("so <a> </a>", "empty span", 4),
        ("<Contact>x</Contact>", "not a class name", 1),
        ("<>x</>", "not a class name", 1),
        ("<2x>x</2x>", "not a class name", 1),
        ("a < b", "'<'", 3),
        ("a > b", "'>'", 3),
        ("<a>x</a>'s cat", "inside a word", 9),
        ("un<a>real</a>", "inside a word", 3),
        ("<a>x</a><b>y</b>", "inside a word", 9),
    ],
)
def test_malformed_text_is_refused_with_its_place(text: str, problem: str, position: int) -> None:
    with pytest.raises(DataError) as caught:
        parse(text)
    message = str(caught.value)
    assert problem in message
    assert f"at character {position} of {text!r}" in message


@pytest.mark.parametrize(
    ("text", "name"), [("", None), ("a  b", None), ("a<b", None), ("a", "Bad"), ("a", "")]
)
def test_segments_that_could_not_be_written_are_refused(text: str, name: str | None) -> None:
    with pytest.raises(DataError):
        Segment(text, name)
