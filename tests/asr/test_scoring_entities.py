from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.scoring.entities import EntityCounts, ListFinder, Matches, Miss, Span, score_entities
from asr.scoring.errors import Counts, align, count
from lm.classes import EntityCatalog

WORDS = ["a", "b", "c", "d"]
texts = st.lists(st.sampled_from(WORDS), max_size=9)
phrases = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join), max_size=5, unique=True
)


@st.composite
def tagged(draw: st.DrawFn) -> tuple[list[str], list[Span]]:
    words = draw(texts)
    cuts = sorted(draw(st.sets(st.integers(0, len(words)))))
    pieces = list(pairwise(cuts))
    chosen = [piece for piece in pieces if draw(st.booleans())]
    return words, [Span(draw(st.sampled_from(["x", "y"])), s, e) for s, e in chosen]


def brute_find(words: list[str], class_of: dict[str, str]) -> list[Span]:
    """All occurrences in the text as a string; of those kept, none starts inside an earlier one."""
    text = " " + " ".join(words) + " "
    all_spans = []
    for phrase, name in class_of.items():
        at = text.find(f" {phrase} ")
        while at >= 0:
            start = text[: at + 1].count(" ") - 1
            all_spans.append(Span(name, start, start + len(phrase.split())))
            at = text.find(f" {phrase} ", at + 1)
    kept: list[Span] = []
    for span in sorted(all_spans, key=lambda s: (s.start, -s.end)):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return kept


@given(texts, phrases, phrases)
def test_finder_takes_the_longest_from_left_to_right(words: list[str], x: list[str], y: list[str]) -> None:
    class_of = dict.fromkeys(y, "y") | dict.fromkeys(x, "x")
    assert ListFinder({"x": x, "y": y}).find(words) == brute_find(words, class_of)


@given(tagged(), tagged(), phrases)
def test_score_equals_the_definitions(
    said: tuple[list[str], list[Span]], heard: tuple[list[str], list[Span]], listed: list[str]
) -> None:
    (ref, wanted), (hyp, emitted) = said, heard
    path = align(ref, hyp)
    found = score_entities(ref, wanted, hyp, emitted, ListFinder({"x": listed}))
    overall = found.overall
    # NE-WER: cut the path at each entity's first and last reference word.
    inside = Counts()
    hits = 0
    for span in wanted:
        at = [n for n, (i, _) in enumerate(path) if i is not None and span.start <= i < span.end]
        piece = path[at[0] : at[-1] + 1]
        mine = count(piece, ref, hyp)
        inside += Counts(mine.sub, mine.ins, mine.del_, span.end - span.start)
        hits += [hyp[j] for _, j in piece if j is not None] == ref[span.start : span.end]
    assert overall.errors == inside
    assert overall.errors + found.rest == count(path, ref, hyp)
    assert (overall.text.tp, overall.text.fn) == (hits, len(wanted) - hits)
    assert len(found.misses) == overall.text.fn
    # False alarms: occurrences whose words do not form an unbroken run of matches in the path.
    alarms = []
    for span in brute_find(hyp, dict.fromkeys(listed, "x")):
        at = [n for n, (_, j) in enumerate(path) if j is not None and span.start <= j < span.end]
        run = path[at[0] : at[-1] + 1]
        if any(i is None or j is None or ref[i] != hyp[j] for i, j in run):
            alarms.append(span)
    assert list(found.false_alarms) == alarms
    assert overall.text.fp == len(alarms)
    want = Counter((s.class_name, tuple(ref[s.start : s.end])) for s in wanted)
    have = Counter((s.class_name, tuple(hyp[s.start : s.end])) for s in emitted)
    assert overall.span == Matches((want & have).total(), (have - want).total(), (want - have).total())


@given(tagged(), phrases)
def test_a_perfect_hypothesis_has_no_error_whatever_the_list(
    said: tuple[list[str], list[Span]], listed: list[str]
) -> None:
    words, spans = said
    found = score_entities(words, spans, words, spans, ListFinder({"x": listed}))
    assert (
        found.rest.errors == found.overall.errors.errors == len(found.false_alarms) == len(found.misses) == 0
    )
    assert found.overall.text == found.overall.span == Matches(tp=len(spans))


def score_texts(ref: str, span: Span, hyp: str, *listed: str) -> tuple[EntityCounts, tuple[Miss, ...]]:
    found = score_entities(ref.split(), [span], hyp.split(), [], ListFinder({"contact": listed}))
    return found.overall, found.misses


def test_an_insertion_inside_a_name_spoils_it_and_one_beside_it_does_not() -> None:
    john = Span("contact", 1, 3)
    inside, misses = score_texts("call john smith now", john, "call john a smith now", "john smith")
    assert (inside.errors, inside.text) == (Counts(ins=1, ref=2), Matches(fn=1))
    assert misses == (Miss("contact", "john smith", "john a smith"),)
    beside, misses = score_texts("call john smith now", john, "call john smith a now", "john smith")
    assert (beside.errors, beside.text, misses) == (Counts(ref=2), Matches(tp=1), ())


def test_another_name_from_the_list_is_a_miss_and_a_false_alarm() -> None:
    counts, misses = score_texts(
        "call jon smith", Span("contact", 1, 3), "call john smith", "Jon Smith", "John Smith"
    )
    assert counts.text == Matches(fp=1, fn=1)
    assert misses[0].heard == "john smith"


def test_an_insertion_between_two_adjacent_entities_is_in_neither() -> None:
    found = score_entities(["ann", "paris"], [Span("x", 0, 1), Span("y", 1, 2)], ["ann", "a", "paris"])
    assert found.rest == Counts(ins=1)
    assert found.classes["x"].text == found.classes["y"].text == Matches(tp=1)


def test_an_untagged_word_that_was_spoken_is_no_false_alarm() -> None:
    found = score_entities(
        ["will", "it", "rain"], [], ["will", "it", "rain"], [], ListFinder({"x": ["will"]})
    )
    assert found.false_alarms == ()
    moved = score_entities(
        ["will", "it", "rain"], [], ["it", "rain", "will"], [], ListFinder({"x": ["will"]})
    )
    assert moved.false_alarms == (Span("x", 2, 3),)


def test_words_that_were_spoken_apart_make_a_false_alarm() -> None:
    finder = ListFinder({"city": ["new york"]})
    found = score_entities(["a", "new", "big", "york"], [], ["a", "new", "york"], [], finder)
    assert found.false_alarms == (Span("city", 1, 3),)


def test_catalog_entries_are_found_by_their_spoken_forms_in_any_case() -> None:
    catalog = EntityCatalog.from_mapping(
        {"band": ["Guns N' Roses", {"text": "AC/DC", "spoken": ["a c d c"]}], "city": ["São Paulo", "Roses"]}
    )
    finder = ListFinder.from_catalog(catalog)
    assert finder.find(["play", "a", "c", "d", "c", "in", "sao", "paulo"]) == [
        Span("band", 1, 5),
        Span("city", 6, 8),
    ]
    assert finder.find(["PLAY", "GUNS", "N'", "ROSES"]) == [Span("band", 1, 4)]


def test_rates_of_matches() -> None:
    some = Matches(tp=3, fp=1, fn=2)
    assert (some.precision, some.recall, some.f1) == pytest.approx((0.75, 0.6, 2 / 3))
    assert all(math.isnan(x) for x in (Matches().precision, Matches().recall, Matches().f1))
