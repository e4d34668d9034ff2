"""Written forms: what was said inside a pattern, a number or a nested class, as its list would write it."""

from __future__ import annotations

import datetime
import math
import random
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.class_encoding import ClassGraph
from lm.classes import EncodedCatalog, EntityCatalog, encode_catalog
from lm.errors import EntityListError
from lm.spoken_numbers import MONTHS, ORDINALS, TEENS, TENS
from lm.tokenizer import Tokenizer

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
TOKENIZER = Tokenizer.train(
    [f"{ALPHABET} o'clock one two three four five six seven eight nine zero oh"] * 5,
    60,
    ["contact", "thing", "zip"],
    "bpe",
)
ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def encode(**lists: Any) -> EncodedCatalog:
    return encode_catalog(EntityCatalog.from_mapping(lists), TOKENIZER)


def written(encoded: EncodedCatalog, name: str, text: str) -> str | None:
    reading = encoded.reading(name, text)
    return None if reading is None else reading.written


def in_words(number: int, and_: str = "") -> str:
    """A number below a million as it is said."""
    if number >= 1000:
        rest = number % 1000
        return in_words(number // 1000, and_) + " thousand" + (f" {in_words(rest, and_)}" if rest else "")
    if number >= 100:
        rest = number % 100
        return f"{ONES[number // 100]} hundred" + (f"{and_} {in_words(rest)}" if rest else "")
    if number >= 20:
        return TENS[number // 10 - 2] + (f" {ONES[number % 10]}" if number % 10 else "")
    return (*ONES, *TEENS)[number]


def draw_text(graph: ClassGraph, draw: random.Random) -> str:
    """One thing that a graph allows, drawn with its probability."""
    node, tokens = 0, []
    while True:
        here = np.flatnonzero(graph.source == node).tolist()
        weights = [math.exp(graph.end_logp[node]), *np.exp(graph.arc_logp[here]).tolist()]
        arc = draw.choices([-1, *here], weights)[0]
        if arc < 0:
            return TOKENIZER.decode(tokens)
        tokens.append(int(graph.token[arc]))
        node = int(graph.target[arc])


SHAPES = {
    "zip": r"\d{5}",
    "phone": r"(\d{3}-)?\d{3}-\d{4}",
    "time": r"(1[0-2]|[1-9])(:[0-5]\d)?( [AP]M)?",
    "date": rf"({'|'.join(MONTHS)}) \d{{1,2}}(, \d{{4}})?|\d{{1,2}} ({'|'.join(MONTHS)})( \d{{4}})?",
    "year": r"(1\d|20)\d\d",
    "cardinal": r"0|[1-9]\d{0,5}",
    "ordinal": r"[1-9]?\d(st|nd|rd|th)",
}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_everything_a_number_class_says_is_written_as_such_a_number(name: str) -> None:
    encoded = encode(zip=[{"number": name}])
    graph = encoded.classes[0].graph
    assert graph is not None
    draw = random.Random(3)
    texts = {draw_text(graph, draw) for _ in range(60)}
    assert len(texts) > 25
    for text in texts:
        assert re.fullmatch(SHAPES[name], written(encoded, "zip", text) or ""), text
    assert len(graph.end_logp) < 3000
    row = next(encoded.report.rows())
    assert row.status == "ok"
    example = TOKENIZER.decode(TOKENIZER.pieces.index(piece) for piece in row.pieces[0])
    assert re.fullmatch(SHAPES[name], written(encoded, "zip", example) or "")


CARDINAL = encode(zip=[{"number": "cardinal"}])
DATE = encode(zip=[{"number": "date"}])
ZIP = encode(zip=[{"number": "zip"}])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 999_999), st.sampled_from(["", " and"]))
def test_cardinal_numbers(number: int, and_: str) -> None:
    assert written(CARDINAL, "zip", in_words(number, and_)) == str(number)


@settings(max_examples=100, deadline=None)
@given(st.dates(datetime.date(1901, 1, 1), datetime.date(2099, 12, 31)), st.booleans())
def test_dates(day: datetime.date, month_first: bool) -> None:
    month = MONTHS[day.month - 1]
    tens, ones = divmod(day.day, 10)
    said_day = ORDINALS[day.day - 1] if day.day <= 20 else f"{TENS[tens - 2]} {ORDINALS[ones - 1]}"
    said_day = "thirtieth" if day.day == 30 else said_day
    century, rest = divmod(day.year, 100)
    low = f"oh {ONES[rest]}" if 0 < rest < 10 else in_words(rest) if rest else "hundred"
    year = f"two thousand {in_words(rest)}" if 2000 < day.year < 2010 else f"{in_words(century)} {low}"
    said = f"{month} {said_day} {year}" if month_first else f"the {said_day} of {month} {year}"
    expected = f"{month} {day.day}, {day.year}" if month_first else f"{day.day} {month} {day.year}"
    assert written(DATE, "zip", said) == expected


@settings(max_examples=100, deadline=None)
@given(st.text("0123456789", min_size=5, max_size=5), st.booleans())
def test_digits_one_by_one(digits: str, oh: bool) -> None:
    said = " ".join("oh" if oh and d == "0" else ONES[int(d)] for d in digits)
    assert written(ZIP, "zip", said) == digits
    assert written(ZIP, "zip", said.rpartition(" ")[0]) is None
    assert written(ZIP, "zip", f"{said} one") is None


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("zip", "fifteen two thirty two", "15232"),
        ("zip", "twenty five oh one two", "25012"),
        ("phone", "five five five one two one two", "555-1212"),
        ("phone", "four one two five fifty five twelve twelve", "412-555-1212"),
        ("time", "three thirty p m", "3:30 PM"),
        ("time", "eleven o'clock", "11:00"),
        ("time", "quarter to one", "12:45"),
        ("time", "half past twelve", "12:30"),
        ("time", "seven am", "7 AM"),
        ("year", "two thousand", "2000"),
        ("ordinal", "eleventh", "11th"),
        ("ordinal", "twenty second", "22nd"),
        ("time", "seven", None),
    ],
)
def test_numbers_by_hand(name: str, said: str, expected: str | None) -> None:
    assert written(encode(zip=[{"number": name}]), "zip", said) == expected


def test_patterns_keep_their_own_spelling_and_join_digits() -> None:
    encoded = encode(
        contact=["Jo's Bar"],
        thing=[
            {"pattern": r"Flat \d{1,3} (Upper|lower)?", "id": "f"},
            {"pattern": "(the|a) <contact>'s tab"},
        ],
    )
    reading = encoded.reading("thing", "FLAT ONE OH TWO UPPER")
    assert reading is not None
    assert (reading.written, reading.entry.id) == ("Flat 102 Upper", "f")
    assert written(encoded, "thing", "flat nine") == "Flat 9"
    assert written(encoded, "thing", "a jo's bar's tab") == "a Jo's Bar's tab"
    assert written(encoded, "thing", "flat") is None


def test_templates_are_filled_in_with_written_forms() -> None:
    encoded = encode(
        contact=[{"text": "Maja N.", "spoken": ["maja novak"], "id": "c1"}, "Jo"],
        zip=[{"number": "zip"}],
        device=["TV", {"text": "Lamp 2", "spoken": ["second lamp"]}],
        thing=[
            {
                "text": "<device> (<contact>)",
                "spoken": ["<contact>'s <device>", "<device> of <contact>"],
                "id": "t",
            },
            "<zip>",
            "Home",
            {"text": "swap", "spoken": ["<device> for <device>"]},
            {"text": "<device> & <device>", "spoken": ["<device> and <device>"]},
        ],
    )
    for said, expected in {
        "MAJA NOVAK'S SECOND LAMP": "Lamp 2 (Maja N.)",
        "tv of jo": "TV (Jo)",
        "one two three four five": "12345",
        "home": "Home",
        "tv for second lamp": "swap",
        "tv and second lamp": "TV & Lamp 2",
        "second lamp and tv": "Lamp 2 & TV",
        "jo tv": None,
    }.items():
        assert written(encoded, "thing", said) == expected, said
    reading = encoded.reading("thing", "jo's tv")
    assert reading is not None
    assert reading.entry.id == "t"


def test_the_likeliest_entry_is_read() -> None:
    encoded = encode(
        contact=["jo", "al"],
        thing=[
            {"text": "A", "spoken": ["the jo"], "weight": 1.0},
            {"text": "<contact>!", "spoken": ["the <contact>"], "weight": 3.0},
        ],
    )
    assert written(encoded, "thing", "the jo") == "jo!"
    assert written(encoded, "thing", "the al") == "al!"
    heavier = encode(
        contact=["jo", "al"], thing=["the <contact>", {"text": "A", "spoken": ["the jo"], "weight": 9}]
    )
    assert written(heavier, "thing", "the jo") == "A"


def test_entries_of_a_node_are_taken_before_words_are_read() -> None:
    encoded = encode(contact=["Jo", {"text": "Joe", "spoken": ["jo"]}])
    number = [entry.text for entry in encoded.catalog.classes["contact"].entries].index("Joe")
    reading = encoded.reading("contact", "jo", [(0, 1 - number, 1.0), (0, number, 2.0)])
    assert reading is not None
    assert reading.written == "Joe"
    assert written(encoded, "contact", "jo") in ("Jo", "Joe")


def test_unknown_numbers_and_mixed_entries_are_refused() -> None:
    for entry, problem in [
        ({"number": "zipp"}, "number 'zipp'.*cardinal, date, ordinal, phone, time, year, zip"),
        ({"number": "zip", "pattern": "a"}, "one of 'text', 'pattern' and 'number'"),
        ({"pattern": "a", "text": "b"}, "one of 'text', 'pattern' and 'number'"),
        ({"pattern": "a", "spoken": ["b"]}, "spoken forms of the pattern"),
        ({"pattern": 5}, "'pattern' to be text"),
    ]:
        with pytest.raises(EntityListError, match=f"class 'zip', entry 1: .*{problem}"):
            encode(zip=[entry])
