"""Words, times, confidences and entities from hypotheses in tokens and frames."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.rendering import LONGEST_WORD_TAIL_S, Renderer, join_segments
from decoding.confidence import PLAIN, ConfidenceConfig
from decoding.entity_graph import EntityGraph
from decoding.result import EntitySpan, Hypothesis, Word
from decoding.trace import RawHypothesis, TokenSpan
from lm.classes import EntityCatalog, encode_catalog
from lm.prefix_tree import PrefixTree
from lm.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(
    ["call maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20, 34, ["contact", "city"], "bpe"
)
CATALOG = encode_catalog(
    EntityCatalog.from_mapping(
        {
            "contact": [
                {"text": "Maja N.", "spoken": ["maja novak"], "id": "c1"},
                "Bo",
                {"text": "Rare Bo", "spoken": ["bo"], "weight": 0.1},
            ],
            "city": ["Bo", "Ulm"],
        }
    ),
    TOKENIZER,
)
TREE = PrefixTree.build(CATALOG, TOKENIZER.vocab_size, TOKENIZER.num_classes)
NOTHING = PrefixTree.empty(TOKENIZER.vocab_size, TOKENIZER.num_classes)
# The tree stands behind another one, as in a batch whose recordings have lists of their own.
GRAPH = EntityGraph([NOTHING, TREE], torch.device("cpu"))


def node_of(class_index: int, tokens: list[int]) -> int:
    node = int(GRAPH.root_target[1, class_index, tokens[0]])
    for token in tokens[1:]:
        node = int(GRAPH.child(torch.tensor([node]), torch.tensor([token]))[0])
    assert node >= 0
    return node


def renderer(start_s: float = 0.0, duration_s: float = 10.0) -> Renderer:
    return Renderer(TOKENIZER, 0.04, start_s, duration_s, GRAPH, CATALOG.catalog)


def raw(
    parts: list[tuple[str, int | None]], frames: list[int] | None = None, score: float = -1.0
) -> RawHypothesis:
    """A hypothesis of texts, each plain (None) or an entity of a class; by default a token in each frame."""
    tokens: list[int] = []
    spans = []
    for text, class_index in parts:
        ids = TOKENIZER.encode(text)
        if class_index is not None:
            spans.append(TokenSpan(node_of(class_index, ids), len(tokens), len(tokens) + len(ids)))
        tokens += ids
    frames = frames or list(range(len(tokens)))
    return RawHypothesis(
        tuple(tokens), tuple(frames), (-0.5,) * len(tokens), score, {"model": score}, tuple(spans)
    )


def test_entities_are_those_of_the_list() -> None:
    (found,) = renderer().hypotheses(
        [raw([("call", None), ("maja novak", 0), ("ulm", None), ("ulm", 1), ("bo", 0)])]
    )
    assert found.text == "CALL MAJA NOVAK ULM ULM BO"
    assert [(e.class_name, e.text, e.written, e.id, e.start, e.end) for e in found.entities] == [
        ("contact", "MAJA NOVAK", "Maja N.", "c1", 1, 3),
        ("city", "ULM", "Ulm", None, 4, 5),
        ("contact", "BO", "Bo", None, 5, 6),
    ]
    for span in found.entities:
        assert (span.start_s, span.end_s) == (
            found.words[span.start].start_s,
            found.words[span.end - 1].end_s,
        )
        assert span.confidence == min(word.confidence for word in found.words[span.start : span.end])


def test_the_heavier_of_entries_that_sound_alike_is_written() -> None:
    (contact,), (city,) = (renderer().hypotheses([raw([("bo", index)])])[0].entities for index in range(2))
    assert (contact.class_name, contact.written) == ("contact", "Bo")
    assert (city.class_name, city.written) == ("city", "Bo")


def test_confidence_of_an_entity_is_its_share_of_the_nbest_list() -> None:
    nbest = [
        raw([("call", None), ("bo", 0)], score=-1.0),
        raw([("call", None), ("bo", 1)], score=-2.0),
        raw([("call", None), ("bo", None)], score=-3.0),
        raw([("cal", None), ("bo", 0)], score=-4.0),
    ]
    # The word is at the same time in all of them.
    at = len(nbest[0].tokens)
    frames = [[n * 5 for n in range(at - len(h.tokens), at)] for h in nbest]
    nbest = [
        RawHypothesis(h.tokens, tuple(f), h.token_logp, h.score, h.parts, h.spans)
        for h, f in zip(nbest, frames, strict=True)
    ]
    found = replace(renderer(), confidence=PLAIN).hypotheses(nbest)
    total = sum(math.exp(-n) for n in (1, 2, 3, 4))
    contact = (math.exp(-1) + math.exp(-4)) / total
    assert found[0].entities[0].confidence == pytest.approx(contact)
    assert found[3].entities[0].confidence == pytest.approx(contact)
    assert found[1].entities[0].confidence == pytest.approx(math.exp(-2) / total)
    assert found[2].entities == ()
    unsure = replace(renderer(), confidence=ConfidenceConfig(bias=-1.0, agreement=0.0)).hypotheses(nbest)
    assert unsure[0].entities[0].confidence == pytest.approx(1 / (1 + math.e)), "that of its word is lower"
    assert unsure[1].entities[0].confidence == pytest.approx(math.exp(-2) / total)


def test_the_same_name_said_twice_is_two_entities() -> None:
    """Each occurrence has its own confidence, though one ends where the other starts."""
    both = raw([("bo", 0), ("bo", 0)], score=-1.0)
    first = raw([("bo", 0), ("bo", None)], score=-1.0)
    found = replace(renderer(), confidence=PLAIN).hypotheses([both, first])
    assert [e.confidence for e in found[0].entities] == pytest.approx([1.0, 0.5])


def test_word_times() -> None:
    tokens = raw([("maja ulm bo", None)])
    words = TOKENIZER.words(tokens.tokens)
    frames = list(range(10, 10 + words[0][2])) + list(range(100, 100 + words[1][2] - words[1][1]))
    frames += list(range(frames[-1] + 1, frames[-1] + 1 + words[2][2] - words[2][1]))
    timed = RawHypothesis(tokens.tokens, tuple(frames), tokens.token_logp, -1.0, {}, ())
    (found,) = renderer(100.0, 10.0).hypotheses([timed])
    maja, ulm, bo = found.words
    assert maja.start_s == 100.4
    assert maja.end_s == pytest.approx(100 + (frames[words[0][2] - 1] + 1) * 0.04 + LONGEST_WORD_TAIL_S)
    assert (ulm.start_s, ulm.end_s) == (104.0, bo.start_s)
    assert bo.end_s == pytest.approx(100 + (frames[-1] + 1) * 0.04 + LONGEST_WORD_TAIL_S)


def test_a_word_is_as_sure_as_its_weakest_token() -> None:
    hypothesis = raw([("maja", None)])
    assert len(hypothesis.tokens) > 1
    logp = [0.2] + [-0.1] * (len(hypothesis.tokens) - 2) + [-2.0]
    changed = RawHypothesis(hypothesis.tokens, hypothesis.frames, tuple(logp), 0.0, {}, ())
    plain = replace(renderer(), confidence=PLAIN)
    (found,) = plain.hypotheses([changed])
    assert found.words[0].confidence == pytest.approx(math.exp(-2.0))
    certain = RawHypothesis(hypothesis.tokens, hypothesis.frames, (0.3,) * len(logp), 0.0, {}, ())
    assert plain.hypotheses([certain])[0].words[0].confidence == 1.0


def test_nothing_said() -> None:
    (found,) = renderer().hypotheses([RawHypothesis((), (), (), -0.5, {"model": -0.5}, ())])
    assert (found.text, found.words, found.entities, found.score) == ("", (), (), -0.5)
    assert renderer().hypotheses([]) == ()


TOKENS = st.integers(0, TOKENIZER.vocab_size - 1)


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.tuples(TOKENS, st.integers(0, 3)), max_size=30),
    start=st.integers(0, 10**6),
    tail=st.floats(0.0, 1.0),
)
def test_times_of_any_tokens_rise_and_stay_inside(
    steps: list[tuple[int, int]], start: int, tail: float
) -> None:
    frames, now = [], 0
    for _, step in steps:
        now += step  # 0: several tokens in a frame
        frames.append(now)
    duration_s = round(now * 0.04 + tail, 4) + 0.02
    tokens = tuple(token for token, _ in steps)
    hypothesis = RawHypothesis(tokens, tuple(frames), (-1.0,) * len(tokens), -1.0, {}, ())
    (found,) = renderer(start / 100, duration_s).hypotheses([hypothesis])
    assert found.text == TOKENIZER.decode(tokens)
    times = [t for word in found.words for t in (word.start_s, word.end_s)]
    starts = [word.start_s for word in found.words]
    ends = [word.end_s for word in found.words]
    assert starts == sorted(starts)
    assert ends == sorted(ends)
    assert all(word.start_s <= word.end_s for word in found.words)
    assert all(start / 100 - 1e-3 <= t <= start / 100 + duration_s + 1e-3 for t in times)
    if all(step > 0 for _, step in steps):
        assert times == sorted(times)


def hypothesis_of(text: str, start_s: float, score: float) -> Hypothesis:
    words = tuple(Word(word, start_s + n, start_s + n + 0.5, 0.9) for n, word in enumerate(text.split()))
    spans = tuple(
        EntitySpan("city", w.text, w.text, None, n, n + 1, w.start_s, w.end_s, 0.5)
        for n, w in enumerate(words)
        if w.text == "ULM"
    )
    return Hypothesis(text, score, {"model": score, **({"classes": -1.0} if spans else {})}, words, spans)


def test_segments_are_joined() -> None:
    first = (hypothesis_of("GO TO ULM", 0.0, -1.0), hypothesis_of("GO", 0.0, -2.0))
    silent = (hypothesis_of("", 5.0, -0.5),)
    last = (hypothesis_of("ULM IS IT", 10.0, -4.0),)
    alone = join_segments("a", 5.0, [first])
    assert (alone.id, alone.duration_s, alone.text, alone.hypotheses) == ("a", 5.0, "GO TO ULM", first)
    whole = join_segments("b", 15.0, [first, silent, last])
    assert whole.text == "GO TO ULM ULM IS IT"
    assert [w.start_s for w in whole.words] == [0.0, 1.0, 2.0, 10.0, 11.0, 12.0]
    assert [(e.start, e.end, e.start_s) for e in whole.entities] == [(2, 3, 2.0), (3, 4, 10.0)]
    for span in whole.entities:
        assert whole.words[span.start].text == span.text
    (joined,) = whole.hypotheses
    assert (joined.score, joined.scores) == (-5.5, {"model": -5.5, "classes": -2.0})
    assert (joined.text, joined.words, joined.entities) == (whole.text, whole.words, whole.entities)
