"""Patterns say what their text says, with the probabilities that a plain reading of the notation gives."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.class_encoding import ClassGraph
from lm.classes import EntityCatalog, encode_catalog
from lm.errors import EntityListError
from lm.patterns import parse_pattern, parse_template, references_of, words_of
from lm.prefix_tree import PrefixTree
from lm.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["a b c ab ba aab abc zero one two"] * 9, 24, ["thing", "song"], "bpe")
Said = dict[tuple[str, ...], float]

# The grammar of patterns once more, as nested tuples that are written out and enumerated here.
WORD = st.sampled_from(["a", "b", "ab", "ba", "aab", "abc"]).map(lambda word: ("word", word))
SHAPE = st.recursive(
    WORD,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: ("all", parts)),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: ("one", parts)),
        st.tuples(inner, st.sampled_from([(0, 1), (1, 2), (2, 2), (0, 2), (1, 3)])).map(
            lambda pair: ("times", *pair)
        ),
    ),
    max_leaves=6,
)


def written(shape: Any) -> str:
    """The pattern of a shape."""
    kind, inner = shape[0], shape[1]
    if kind == "word":
        return str(inner)
    if kind == "all":
        return " ".join(written(part) for part in inner)
    if kind == "one":
        return "(" + " | ".join(written(part) for part in inner) + ")"
    low, high = shape[2]
    count = "?" if (low, high) == (0, 1) else f"{{{low}}}" if low == high else f"{{{low},{high}}}"
    return f"({written(inner)}){count}"


def said(shape: Any) -> Said:
    """Every sequence of words with its probability."""
    kind, inner = shape[0], shape[1]
    if kind == "word":
        return {(inner,): 1.0}
    found: Said = defaultdict(float)
    if kind == "all":
        for ways in product(*(said(part).items() for part in inner)):
            found[sum((words for words, _ in ways), ())] += math.prod(p for _, p in ways)
    elif kind == "one":
        for part in inner:
            for words, p in said(part).items():
                found[words] += p / len(inner)
    else:
        low, high = shape[2]
        for count in range(low, high + 1):
            for ways in product(said(inner).items(), repeat=count):
                found[sum((w for w, _ in ways), ())] += math.prod(p for _, p in ways) / (high - low + 1)
    return found


def texts(graph: ClassGraph) -> dict[tuple[int, ...], float]:
    """Every token sequence of a graph with its probability."""
    arcs = defaultdict(list)
    for source, token, target, logp in zip(
        graph.source, graph.token, graph.target, graph.arc_logp, strict=True
    ):
        arcs[int(source)].append((int(token), int(target), math.exp(logp)))
    found: dict[tuple[int, ...], float] = defaultdict(float)
    stack: list[tuple[int, tuple[int, ...], float]] = [(0, (), 1.0)]
    while stack:
        node, tokens, p = stack.pop()
        if graph.end_logp[node] > -math.inf:
            found[tokens] += p * math.exp(graph.end_logp[node])
        stack += [(target, (*tokens, token), p * q) for token, target, q in arcs[node]]
    return found


def graph_of(*entries: Any, tokenizer: Tokenizer = TOKENIZER, **others: list[Any]) -> ClassGraph:
    encoded = encode_catalog(EntityCatalog.from_mapping({"thing": list(entries), **others}), tokenizer)
    graph = next(found.graph for found in encoded.classes if found.name == "thing")
    assert graph is not None
    return graph


@settings(max_examples=150, deadline=None)
@given(SHAPE)
def test_a_pattern_is_the_distribution_of_its_choices(shape: Any) -> None:
    expected = said(shape)
    if () in expected:
        with pytest.raises(EntityListError, match="said as nothing"):
            parse_pattern(written(shape))
        return
    graph = graph_of({"pattern": written(shape)})
    found = texts(graph)
    assert sum(found.values()) == pytest.approx(1.0)
    assert {TOKENIZER.decode(tokens).lower() for tokens in found} == {" ".join(words) for words in expected}
    for words, p in expected.items():
        assert found[tuple(TOKENIZER.encode(" ".join(words)))] == pytest.approx(p)


@settings(max_examples=60, deadline=None)
@given(st.lists(SHAPE, min_size=1, max_size=3), st.lists(st.floats(0.1, 9.0), min_size=6, max_size=6))
def test_graphs_are_deterministic_sums_to_one_and_go_forward(shapes: list[Any], weights: list[float]) -> None:
    entries: list[Any] = [
        {"pattern": written(shape), "weight": weight}
        for shape, weight in zip(shapes, weights, strict=False)
        if () not in said(shape)
    ]
    plain = [
        {"text": text, "weight": weight} for text, weight in zip(("a", "ab b"), weights[4:], strict=True)
    ]
    if not entries:
        return
    graph = graph_of(*entries, *plain)
    arcs = list(zip(graph.source.tolist(), graph.token.tolist(), strict=True))
    assert arcs == sorted(set(arcs))
    assert (graph.target > graph.source).all()
    total = [math.exp(end) for end in graph.end_logp]
    for source, logp in zip(graph.source, graph.arc_logp, strict=True):
        total[source] += math.exp(logp)
    assert total == pytest.approx([1.0] * len(total))
    assert [math.exp(a) + math.exp(b) for a, b in zip(graph.end_logp, graph.on_logp, strict=True)] == (
        pytest.approx([1.0] * len(total))
    )
    whole = sum(weights[: len(shapes)][i] for i, s in enumerate(shapes) if () not in said(s)) + sum(
        weights[4:]
    )
    expected: Said = defaultdict(float)
    for shape, weight in zip(shapes, weights, strict=False):
        if () not in said(shape):
            for words, p in said(shape).items():
                expected[words] += p * weight / whole
    for entry in plain:
        expected[tuple(str(entry["text"]).split())] += float(entry["weight"]) / whole  # type: ignore[arg-type]
    found = texts(graph)
    assert len(found) == len(expected)
    for words, p in expected.items():
        assert found[tuple(TOKENIZER.encode(" ".join(words)))] == pytest.approx(p)


def test_digits_share_their_nodes() -> None:
    """A hundred thousand zip codes are a few dozen nodes."""
    tokenizer = Tokenizer.train(["zero one two three four five six seven eight nine oh"] * 9, 40, ["thing"])
    graph = graph_of({"pattern": r"\d{5}"}, tokenizer=tokenizer)
    one = graph_of({"pattern": r"\d"}, tokenizer=tokenizer)
    assert len(graph.end_logp) == 5 * (len(one.end_logp) - 1) + 1
    found = texts(one)
    assert found[tuple(tokenizer.encode("seven"))] == pytest.approx(0.1)
    for zero in ("oh", "zero"):
        assert found[tuple(tokenizer.encode(zero))] == pytest.approx(0.05)
    encoded = encode_catalog(EntityCatalog.from_mapping({"thing": [{"pattern": r"\d{5}"}]}), tokenizer)
    tree = PrefixTree.build(encoded, tokenizer.vocab_size, tokenizer.num_classes)
    tokens = tokenizer.encode("one five two three two")
    node = int(tree.root[0])
    for token in tokens:
        node = int(tree.lookup(tree.root.new_tensor(node), tree.root.new_tensor(token))[0])
    assert tree.share_logp(node, tokens) == pytest.approx(-5 * math.log(10), abs=1e-4)
    assert tree.share_logp(node) == pytest.approx(0.0, abs=1e-4)  # every code ends there
    with pytest.raises(ValueError, match="lead to"):
        tree.share_logp(node, tokens[:-1])
    assert tree.entries_at(node) == []


@pytest.mark.parametrize(
    ("pattern", "place", "problem"),
    [
        ("a (b | c", 3, "never closed"),
        ("a b) c", 4, "closes nothing"),
        ("a | | b", 5, "without words"),
        ("()", 2, "without words"),
        ("?", 1, "stands for nothing"),
        ("a{3,2}", 2, "repetition {3,2}"),
        ("a{0}", 2, "repetition"),
        ("a{1,1000}", 2, "repetition"),
        ("a{,2}", 2, "stands for nothing"),
        ("a?{2}", 3, "repetition of a repetition"),
        ("work(s|ed)", 5, "touches"),
        (r"\d{5}-\d{4}", 6, "touches"),
        ("colou?r", 7, "touches"),
        (r"\w", 1, "stands for nothing"),
        ("a <B> c", 3, "stands for nothing"),
        ("a? b?", 1, "said as nothing"),
        ("(" * 30 + "a" + ")" * 30, 22, "more than 20 brackets"),
    ],
)
def test_mistakes_say_where(pattern: str, place: int, problem: str) -> None:
    with pytest.raises(EntityListError) as caught:
        EntityCatalog.from_mapping({"thing": ["a", {"pattern": pattern}]})
    message = str(caught.value)
    assert message.startswith("class 'thing', entry 2: pattern ")
    assert f"character {place}: " in message
    assert problem in message


@settings(max_examples=200, deadline=None)
@given(st.text("ab()|?{}1,\\d <x>'", max_size=16))
def test_any_text_is_a_pattern_or_a_clear_error(text: str) -> None:
    part, problem = None, ""
    try:
        part = parse_pattern(text)
    except EntityListError as error:
        problem = error.given
    if part is None:
        assert problem.startswith("pattern ")
    else:
        assert list(words_of(part)) or list(references_of(part))


def test_templates_keep_what_touches_a_class() -> None:
    def shown(text: str) -> list[Any]:
        return [
            part.said if hasattr(part, "said") else (part.before, part.class_name, part.after)  # type: ignore[union-attr]
            for part in parse_template(text).parts
        ]

    assert shown("call <contact>'s <device>") == ["call", ("", "contact", "'s"), ("", "device", "")]
    assert shown("Mc<surname>, (<city>)") == [("Mc", "surname", ""), ("", "city", "")]
    assert shown("<contact>-mobile now") == [("", "contact", ""), "mobile", "now"]
    with pytest.raises(EntityListError, match="touch at character 6"):
        parse_template("call <a><b>")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a b", {"xa by"}),
        ("(a | b c)", {"xay", "xb cy"}),
        ("a{1,3}", {"xay", "xa ay", "xa a ay"}),
        ("(a | b){2} c", {"xa a cy", "xa b cy", "xb a cy", "xb b cy"}),
        ("a", {"xay"}),
    ],
)
def test_letters_touch_the_first_and_the_last_word(pattern: str, expected: set[str]) -> None:
    tokenizer = Tokenizer.train(["abcxy x y a b c"] * 9, 12, ["thing"], "char")
    graph = graph_of("<song>", tokenizer=tokenizer, song=[{"pattern": pattern}])
    plain = texts(graph)
    touched = texts(graph_of("x<song>y", tokenizer=tokenizer, song=[{"pattern": pattern}]))
    assert {tokenizer.decode(tokens).lower() for tokens in touched} == expected
    assert sorted(touched.values()) == pytest.approx(sorted(plain.values()))


def test_letters_cannot_touch_what_may_be_missing() -> None:
    with pytest.raises(EntityListError, match="something optional"):
        graph_of("<song>ab b", song=[{"pattern": "a b?"}])
