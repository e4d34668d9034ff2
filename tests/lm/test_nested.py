"""Classes inside classes against the enumeration of everything they can say."""

from __future__ import annotations

import math
import random
import string
import time
from collections import defaultdict
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import automaton
from lm.class_encoding import ClassGraph
from lm.classes import EncodedCatalog, EntityCatalog, encode_catalog
from lm.errors import EntityListError
from lm.prefix_tree import PrefixTree
from lm.tokenizer import Tokenizer

ALPHABET = string.ascii_lowercase
TOKENIZER = Tokenizer.train(
    [f"{ALPHABET} john's smith o'neil light lamp the of ab ba abb"] * 5,
    60,
    ["contact", "device", "thing"],
    "bpe",
)
V, C = TOKENIZER.vocab_size, TOKENIZER.num_classes

NAME = st.lists(st.sampled_from(["a", "ab", "b", "abb", "ba"]), min_size=1, max_size=2).map(" ".join)
LIST = st.dictionaries(NAME, st.floats(0.1, 9.0), min_size=1, max_size=6)
TEMPLATES = (
    "<contact>'s <device>",
    "<contact> <device>",
    "<device> ab <contact>",
    "ab <contact>",
    "ba <contact>",
    "<contact>'s",
    "o'<contact> b",
    "<device> <device>",
)


def encode(**lists: Any) -> EncodedCatalog:
    return encode_catalog(EntityCatalog.from_mapping(lists), TOKENIZER)


def graph_of(encoded: EncodedCatalog, name: str = "thing") -> ClassGraph:
    graph = next(found.graph for found in encoded.classes if found.name == name)
    assert graph is not None
    return graph


def paths(encoded: EncodedCatalog, name: str = "thing") -> dict[tuple[int, ...], float]:
    """Every token sequence of a class in the compiled tree, with its probability."""
    tree = PrefixTree.build(encoded, V, C)
    arcs = defaultdict(list)
    for key, target, logp in zip(
        tree.arc_key.tolist(), tree.arc_target.tolist(), tree.arc_logp.tolist(), strict=True
    ):
        arcs[key // V].append((key % V, target, math.exp(logp)))
    found: dict[tuple[int, ...], float] = defaultdict(float)
    stack = [(int(tree.root[TOKENIZER.class_id(name)]), (), 1.0)]
    while stack:
        node, tokens, p = stack.pop()
        assert int(tree.node_class[node]) == TOKENIZER.class_id(name)
        if tree.end_logp[node] > -math.inf:
            found[tokens] += p * math.exp(tree.end_logp[node])
        stack += [(target, (*tokens, token), p * q) for token, target, q in arcs[node]]
    return found


def fill(template: str, lists: dict[str, dict[str, float]]) -> dict[str, float]:
    """Every filling of a template with its probability."""
    import re

    parts = re.split(r"(<\w+>)", template)
    choices = []
    for part in parts:
        if part.startswith("<"):
            entries = lists[part[1:-1]]
            total = sum(entries.values())
            choices.append([(text, weight / total) for text, weight in entries.items()])
        else:
            choices.append([(part, 1.0)])
    found: dict[str, float] = defaultdict(float)
    for ways in product(*choices):
        found["".join(text for text, _ in ways)] += math.prod(p for _, p in ways)
    return found


@settings(max_examples=120, deadline=None)
@given(
    LIST,
    LIST,
    st.dictionaries(st.sampled_from(TEMPLATES), st.floats(0.1, 9.0), min_size=1, max_size=4),
    st.dictionaries(NAME, st.floats(0.1, 9.0), max_size=3),
)
def test_nested_classes_are_the_products_of_their_parts(
    contact: dict[str, float], device: dict[str, float], templates: dict[str, float], plain: dict[str, float]
) -> None:
    entries = [{"text": text, "weight": weight} for text, weight in {**templates, **plain}.items()]
    encoded = encode(
        contact=[{"text": t, "weight": w} for t, w in contact.items()],
        device=[{"text": t, "weight": w} for t, w in device.items()],
        thing=entries,
    )
    total = sum(templates.values()) + sum(plain.values())
    expected: dict[tuple[int, ...], float] = defaultdict(float)
    for template, weight in {**templates, **plain}.items():
        for text, p in fill(template, {"contact": contact, "device": device}).items():
            expected[tuple(TOKENIZER.encode(text))] += p * weight / total
    found = paths(encoded)
    assert found.keys() == expected.keys()
    for tokens, p in expected.items():
        assert found[tokens] == pytest.approx(p, rel=1e-4)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    # What is said is what its tokens lead to, whichever node they share.
    tree = PrefixTree.build(encoded, V, C)
    tokens = max(expected, key=lambda each: (len(each), each))
    node = tree.root[TOKENIZER.class_id("thing")]
    for token in tokens:
        node, _ = tree.lookup(node, torch.tensor(token))
    assert tree.share_logp(int(node), tokens) == pytest.approx(math.log(expected[tokens]), abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    LIST,
    LIST,
    st.lists(st.sampled_from(TEMPLATES), min_size=1, unique=True),
    st.randoms(use_true_random=False),
)
def test_order_never_shows(
    contact: dict[str, float], device: dict[str, float], templates: list[str], draw: random.Random
) -> None:
    lists: dict[str, list[Any]] = {
        "contact": [{"text": t, "weight": w} for t, w in contact.items()],
        "device": [{"text": t, "weight": w} for t, w in device.items()],
        "thing": [*templates, "ab", {"pattern": "ab (ba | b)?"}],
    }
    trees = []
    for _ in range(2):
        lists = {name: draw.sample(lists[name], len(lists[name])) for name in draw.sample(list(lists), 3)}
        trees.append(PrefixTree.build(encode(**lists), V, C))
    for name, value in vars(trees[0]).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(trees[1], name)), name


def names(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return sorted({" ".join("".join(draw.choices(ALPHABET, k=4)) for _ in range(2)) for _ in range(count)})


def test_sizes_add_up() -> None:
    people, things = names(400), names(300, seed=1)
    inner = {"contact": people, "device": things}

    def size(*templates: str) -> int:
        return len(graph_of(encode(**inner, thing=list(templates))).end_logp)

    person, device, both = size("<contact>"), size("<device>"), size("<contact> <device>")
    assert both < person + device  # the ends of the first are the beginning of the second
    assert size("<contact> <device>", "<contact> now", "<contact> <contact>") < 2 * person + device + 10
    # Whatever leads to it, a class at the end stands once.
    assert size("call <contact>", "ring <contact>", "the <contact>") < person + 20
    assert size("<contact>'s <device>") < size("<contact>'s") + device


def test_a_name_that_goes_on_may_also_be_followed_by_the_next_class() -> None:
    encoded = encode(contact=["john", "john light"], device=["light", "lamp"], thing=["<contact> <device>"])
    found = {TOKENIZER.decode(tokens).lower(): p for tokens, p in paths(encoded).items()}
    assert found == pytest.approx(
        {"john light": 0.25, "john lamp": 0.25, "john light light": 0.25, "john light lamp": 0.25}, abs=1e-6
    )


def test_classes_nest_deeper_and_helpers_need_no_tag() -> None:
    encoded = encode(
        person=["john", "smith"],
        room=["ab", {"pattern": "ba{1,2}"}],
        contact=["<person>", "the <person>"],
        thing=["<contact>'s <room>", "<room>"],
    )
    found = {TOKENIZER.decode(tokens).lower(): p for tokens, p in paths(encoded).items()}
    who = {"john's": 0.25, "smith's": 0.25, "the john's": 0.25, "the smith's": 0.25}
    where = {"ab": 0.5, "ba": 0.25, "ba ba": 0.25}
    expected = {f"{a} {b}": p * q / 2 for a, p in who.items() for b, q in where.items()}
    assert found == pytest.approx(expected | {b: q / 2 for b, q in where.items()}, abs=1e-6)
    assert [one.name for one in encoded.classes] == ["contact", "thing"]
    rows = {(row.class_name, row.text): row for row in encoded.report.rows()}
    assert {row.status for row in rows.values()} == {"ok"}
    assert len(rows) == 8
    (example,) = rows["thing", "<contact>'s <room>"].pieces
    ids = tuple(TOKENIZER.pieces.index(piece) for piece in example)
    assert ids in paths(encoded)


def test_references_that_lead_nowhere_are_refused() -> None:
    with pytest.raises(EntityListError, match=r"<device> in 'the <device>' of class 'thing'.*contact, thing"):
        encode(contact=["a"], thing=["the <device>"])
    with pytest.raises(EntityListError, match=r"contains itself \(thing -> thing\)"):
        encode(thing=["a", "the <thing>"])
    with pytest.raises(EntityListError, match=r"contact -> device -> thing -> contact"):
        encode(contact=["<device> a"], device=[{"pattern": "<thing>"}], thing=["<contact>"])
    with pytest.raises(EntityListError, match="class 'room'.*a class of the model"):
        encode(contact=["a"], room=["b"])
    with pytest.raises(EntityListError, match="no entry of class 'room' encodes"):
        encode(room=["7", "8"], thing=["the <room>", "a"])
    with pytest.raises(EntityListError, match="class 'thing', entry 1: .*does not say <contact>"):
        encode(contact=["a"], thing=[{"text": "<contact>'s lamp", "spoken": ["the lamp"]}])
    with pytest.raises(EntityListError, match="class 'thing', entry 2: .*touch"):
        encode(contact=["a"], thing=["a", "<contact><contact>"])


def test_what_cannot_be_spelled_is_reported_and_left_out() -> None:
    encoded = encode(
        contact=["john", "7"],
        thing=[
            "<contact> 9",
            {"pattern": "ab | 8"},
            "<contact>",
            {"text": "x", "spoken": ["the <contact>", "6"]},
        ],
    )
    rows = {row.text: row for row in encoded.report.rows() if row.class_name == "thing"}
    assert {text: (row.status, row.unencodable) for text, row in rows.items()} == {
        "<contact> 9": ("failed", "9"),
        "ab | 8": ("failed", "8"),
        "<contact>": ("ok", ""),
        "x": ("partly", "6"),
    }
    found = {TOKENIZER.decode(tokens).lower(): p for tokens, p in paths(encoded).items()}
    assert found == pytest.approx({"john": 0.5, "the john": 0.5}, abs=1e-6)


def test_plain_classes_beside_nested_ones_are_what_they_were() -> None:
    contact = [{"text": "john", "weight": 3}, "john smith", "ab"]
    alone, beside = encode(contact=contact), encode(contact=contact, thing=["the <contact>"])
    assert paths(alone, "contact") == paths(beside, "contact")
    one, two = PrefixTree.build(alone, V, C), PrefixTree.build(beside, V, C)
    assert torch.equal(one.arc_key, two.arc_key[: len(one.arc_key)])
    assert [one.entries_at(node) for node in range(one.num_nodes)] == [
        two.entries_at(node) for node in range(one.num_nodes)
    ]


def test_too_large_is_refused_and_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.perf_counter()
    with pytest.raises(EntityListError, match="class 'thing' has patterns too large"):
        encode(thing=[{"pattern": "((((a?){100} b){100} ab){100} b){100}"}])
    assert time.perf_counter() - began < 10.0
    monkeypatch.setattr(automaton, "MOST_SPLICED", 1000)
    with pytest.raises(EntityListError, match="nodes of lists"):
        encode(contact=names(100), thing=[{"pattern": "<contact>{1,9}"}])


def test_twenty_thousand_names_inside_another_class_compile_quickly() -> None:
    people = names(20_000)  # and two thousand that begin others
    people += [name.split()[0] for name in people[:2000]]
    began = time.perf_counter()
    encoded = encode(
        contact=people,
        device=["light", "lamp"],
        thing=["<contact>'s <device>", "<contact> <device>", "the <device> of <contact>"],
    )
    assert time.perf_counter() - began < 10.0
    found = encoded.reading("thing", f"the lamp of {people[7]}")
    assert found is not None
    assert found.written == f"the lamp of {people[7]}"
