"""Lists of every kind from their entries to the search: a result, or one clear line."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import BigramLM, ToyEmitter

from decoding.class_status import ClassGrammar
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.phrase_boost import BoostGraph, PhraseBoost
from decoding.trace import RawHypothesis
from lm.classes import EncodedCatalog, EntityCatalog, encode_catalog
from lm.errors import VocativeError
from lm.prefix_tree import PrefixTree
from lm.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["call maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20, 40, ["contact", "city"])
VOCAB, CLASSES = TOKENIZER.vocab_size, TOKENIZER.num_classes
LENGTHS = [6, 4]

ODD = [
    "",
    " ",
    "\t\n",
    "a\u0301",
    "é",
    "😀",
    "שלום",
    "a\u200bb",
    "\u202eabc",
    "ab\ncd",
    "ﬁ",
    "İ",
    "ß",
    "\x00",
    "<contact>",
]
"""Empty, blanks, combining marks, right to left, no width, line ends, ligatures, and what looks like a tag."""
WORD = st.text(st.sampled_from("abcmjn"), min_size=1, max_size=5)
ENTRY = st.one_of(
    st.sampled_from(ODD),
    st.text(max_size=8),
    st.lists(WORD, min_size=1, max_size=3).map(" ".join),
    st.builds(lambda text, weight: {"text": text, "weight": weight}, WORD, st.sampled_from([0.1, 1, 50.0])),
    st.builds(lambda text, spoken: {"text": text, "spoken": [spoken]}, st.text(max_size=4), WORD),
)
LISTS = st.dictionaries(st.sampled_from(["contact", "city"]), st.lists(ENTRY, max_size=8), max_size=2)


def encoded(lists: dict[str, list[object]]) -> EncodedCatalog | None:
    """The lists, or None where they were refused in one clear line."""
    try:
        return encode_catalog(EntityCatalog.from_mapping(lists), TOKENIZER)
    except VocativeError as error:
        clear = error.given and error.expected and error.fix and "\n" not in str(error)
        if not clear:
            pytest.fail(f"no clear line: {error!r}")
        return None


def search(lists: EncodedCatalog | None, seed: int) -> list[list[RawHypothesis]]:
    emitter = ToyEmitter(LENGTHS, BigramLM(VOCAB, CLASSES, seed), seed, sharpness=2.0)
    tree = PrefixTree.build(lists, VOCAB, CLASSES) if lists else PrefixTree.empty(VOCAB, CLASSES)
    grammar = ClassGrammar(
        emitter.contexts, torch.from_numpy(TOKENIZER.starts_word), [tree] * len(LENGTHS), 3.0
    )
    return BeamSearch(emitter, BeamConfig(beam=4), grammar).run()


def boosted(phrases: list[tuple[list[int], float]], seed: int) -> list[list[RawHypothesis]]:
    emitter = ToyEmitter(LENGTHS, BigramLM(VOCAB, CLASSES, seed), seed, sharpness=2.0)
    graph = BoostGraph.build(phrases, VOCAB)
    return BeamSearch(emitter, BeamConfig(beam=4), scorers=[PhraseBoost([graph] * len(LENGTHS), 1.0)]).run()


def phrases_of(lists: EncodedCatalog) -> list[tuple[list[int], float]]:
    return [
        (kind.tokens[a:b].tolist(), 1.0)
        for kind in lists.classes
        for a, b in zip(kind.offsets[:-1], kind.offsets[1:], strict=True)
    ]


@settings(max_examples=150, deadline=None)
@given(lists=LISTS, seed=st.integers(0, 99))
def test_any_list_gives_a_result_or_one_line(lists: dict[str, list[object]], seed: int) -> None:
    compiled = encoded(lists)
    if compiled is None:
        return
    for nbest in search(compiled, seed):
        assert nbest
        for hypothesis in nbest:
            assert all(0 <= span.start < span.end <= len(hypothesis.tokens) for span in hypothesis.spans)
    for nbest in boosted(phrases_of(compiled), seed):
        assert nbest


@settings(max_examples=60, deadline=None)
@given(lists=LISTS, seed=st.integers(0, 99), data=st.data())
def test_the_order_of_a_list_does_not_matter(
    lists: dict[str, list[object]], seed: int, data: st.DataObject
) -> None:
    compiled = encoded(lists)
    if compiled is None:
        return
    mixed = {name: data.draw(st.permutations(entries)) for name, entries in lists.items()}
    again = encoded(mixed)
    assert again is not None
    for one, other in zip(search(compiled, seed), search(again, seed), strict=True):
        assert [h.tokens for h in one] == [h.tokens for h in other]
        assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(words=st.lists(WORD, min_size=1, max_size=6, unique=True), seed=st.integers(0, 99))
def test_an_entry_twice_is_an_entry_of_twice_the_weight(words: list[str], seed: int) -> None:
    twice = encoded({"contact": [*words, words[0]]})
    heavy = encoded({"contact": [{"text": words[0], "weight": 2.0}, *words[1:]]})
    assert twice is not None
    assert heavy is not None
    for one, other in zip(search(twice, seed), search(heavy, seed), strict=True):
        assert [h.tokens for h in one] == [h.tokens for h in other]
        assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-4)


def test_entries_that_begin_each_other_and_very_long_ones() -> None:
    nested = ["a" * n for n in range(1, 60)]
    long = ["maja " * 1000, "b" * 5000]
    compiled = encoded({"contact": [*nested, *long]})
    assert compiled is not None
    plain = encoded({"contact": nested})
    for one, other in zip(search(compiled, 3), search(plain, 3), strict=True):
        # What is too long to be said takes its share of the list and changes nothing else.
        assert {h.tokens for h in one[:1]} <= {h.tokens for h in other}


def test_a_hundred_thousand_entries_are_searched_like_the_few_that_can_be_said() -> None:
    """All weigh the same: the others divide the odds of the few by a constant, which their weights give back."""
    many = ["zz" + "".join(letters) for letters in itertools.product("abcdefghij", repeat=5)]
    few = ["maja", "novak", "abc"]
    compiled = encoded({"contact": [*({"text": text, "weight": 1e9} for text in few), *many]})
    alone = encoded({"contact": few})
    assert compiled is not None
    for one, other in zip(search(compiled, 5), search(alone, 5), strict=True):
        assert [h.tokens for h in one] == [h.tokens for h in other]
        assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-3)
