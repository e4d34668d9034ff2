"""The prefix tree against a tree of dicts and against sums over whole entities."""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.classes import EncodedCatalog, EncodedClass, EncodingReport, EntityCatalog, encode_catalog
from lm.prefix_tree import PrefixTree
from lm.tokenizer import Tokenizer

V, C = 5, 3
Entity = tuple[tuple[int, ...], float]
Lists = dict[int, list[Entity]]
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
TOKENIZER = Tokenizer.train([f"{ALPHABET} john johnson smith"] * 3, 40, ["song", "contact"], "bpe")

SEQUENCE = st.lists(st.integers(0, V - 1), min_size=1, max_size=5).map(tuple)
ENTITIES = st.lists(st.tuples(SEQUENCE, st.floats(0.1, 9.0)), min_size=1, max_size=12)
LISTS = st.dictionaries(st.integers(0, C - 1), ENTITIES, max_size=C)


def compile_lists(lists: Lists, vocab_size: int = V, num_classes: int = C) -> PrefixTree:
    """The tree of ``{class index: [(tokens, weight)]}``; entry n is the n-th of its list."""
    kinds = tuple(
        EncodedClass(
            name=f"kind{index}",
            index=index,
            tokens=np.array([t for tokens, _ in entities for t in tokens], dtype=np.int64),
            offsets=np.cumsum([0, *(len(tokens) for tokens, _ in entities)]),
            entry=np.arange(len(entities)),
            weight=np.array([weight for _, weight in entities]),
        )
        for index, entities in lists.items()
    )
    nothing = EntityCatalog.empty()
    return PrefixTree.build(
        EncodedCatalog(nothing, kinds, EncodingReport(nothing, TOKENIZER, {})), vocab_size, num_classes
    )


def follow(tree: PrefixTree, index: int, tokens: tuple[int, ...]) -> tuple[int, float]:
    """Node after ``tokens`` from the root of a class, and the sum of the arcs' log P_in."""
    node, total = int(tree.root[index]), 0.0
    for token in tokens:
        target, logp = tree.lookup(torch.tensor(node), torch.tensor(token))
        node, total = int(target), total + float(logp)
    return node, total


def share(entities: list[Entity], tokens: tuple[int, ...]) -> float:
    return sum(w for s, w in entities if s == tokens) / sum(w for _, w in entities)


def test_a_small_tree_by_hand() -> None:
    tree = compile_lists({1: [((0, 1), 1.0), ((0, 1, 2), 2.0), ((3,), 1.0)]})
    assert tree.root.tolist() == [-1, 0, -1]
    assert tree.num_nodes == 5
    assert tree.arc_key.tolist() == [0 * V + 0, 0 * V + 3, 1 * V + 1, 3 * V + 2]
    assert tree.arc_target.tolist() == [1, 2, 3, 4]
    assert tree.arc_logp.exp().tolist() == pytest.approx([3 / 4, 1 / 4, 1, 2 / 3])
    assert tree.end_logp.exp().tolist() == pytest.approx([0, 0, 1, 1 / 3, 1])
    assert tree.on_logp.exp().tolist() == pytest.approx([1, 1, 0, 2 / 3, 0])
    assert tree.node_class.tolist() == [1] * 5
    assert tree.root_target.tolist() == [[-1] * V, [1, -1, -1, 2, -1], [-1] * V]
    assert tree.root_logp[1].exp().tolist() == pytest.approx([3 / 4, 0, 0, 1 / 4, 0])
    assert tree.entries_at(3) == [(1, 0, 1.0)]
    assert tree.entries_at(4) == [(1, 1, 2.0)]
    assert tree.entries_at(1) == []
    types = {
        n: getattr(tree, n).dtype for n in ("arc_key", "arc_target", "arc_logp", "end_logp", "node_class")
    }
    assert set(types.values()) == {torch.int64, torch.float32}
    assert tree.on_logp.dtype == torch.float32


@settings(max_examples=80, deadline=None)
@given(LISTS)
def test_entity_probability_is_its_weight_share_and_all_sum_to_one(lists: Lists) -> None:
    tree = compile_lists(lists)
    for index, entities in lists.items():
        total = 0.0
        for tokens in {tokens for tokens, _ in entities}:
            node, logp = follow(tree, index, tokens)
            logp += float(tree.end_logp[node])
            assert logp == pytest.approx(math.log(share(entities, tokens)), abs=1e-5)
            total += math.exp(logp)
        assert total == pytest.approx(1.0, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(LISTS)
def test_what_may_follow_each_node_sums_to_one(lists: Lists) -> None:
    tree = compile_lists(lists)
    end, on = tree.end_logp.double().exp(), tree.on_logp.double().exp()
    arcs = torch.zeros_like(on).index_add_(0, tree.arc_key // V, tree.arc_logp.double().exp())
    assert torch.allclose(arcs, on, atol=1e-5)
    assert torch.allclose(end + on, torch.ones_like(end), atol=1e-5)
    has_arcs = torch.isin(torch.arange(tree.num_nodes), tree.arc_key // V)
    assert torch.equal(torch.isfinite(tree.on_logp), has_arcs)


@settings(max_examples=60, deadline=None)
@given(LISTS, SEQUENCE)
def test_every_prefix_agrees_with_a_tree_of_dicts(lists: Lists, stranger: tuple[int, ...]) -> None:
    tree = compile_lists(lists)
    nodes = set()
    for index in range(C):
        entities = lists.get(index, [])
        below: dict[tuple[int, ...], float] = defaultdict(float)
        for tokens, weight in entities:
            for length in range(len(tokens) + 1):
                below[tokens[:length]] += weight
        for prefix in [*below, stranger]:
            node, logp = follow(tree, index, prefix)
            if prefix not in below:
                assert (node, logp) == (-1, -math.inf)
                continue
            nodes.add(node)
            assert logp == pytest.approx(math.log(below[prefix] / below[()]), abs=1e-5)
            assert int(tree.node_class[node]) == index
            ending = sorted((index, n, w) for n, (tokens, w) in enumerate(entities) if tokens == prefix)
            assert tree.entries_at(node) == ending
            assert bool(torch.isfinite(tree.end_logp[node])) == bool(ending)
            children = {p[-1] for p in below if len(p) == len(prefix) + 1 and p[:-1] == prefix}
            targets, _ = tree.lookup(torch.tensor(node), torch.arange(V))
            assert {v for v in range(V) if targets[v] >= 0} == children
    assert nodes == set(range(tree.num_nodes))


@settings(max_examples=40, deadline=None)
@given(LISTS, st.randoms(use_true_random=False))
def test_order_never_shows(lists: Lists, draw: random.Random) -> None:
    shuffled = {i: draw.sample(lists[i], len(lists[i])) for i in draw.sample(list(lists), len(lists))}
    one, two = compile_lists(lists), compile_lists(shuffled)
    for name, value in vars(one).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(two, name)), name
    assert one.entry_offset.tolist() == two.entry_offset.tolist()
    for node in range(one.num_nodes):
        assert sorted(w for _, _, w in one.entries_at(node)) == sorted(w for _, _, w in two.entries_at(node))


def test_catalog_order_never_shows_down_to_the_entries() -> None:
    draw = random.Random(5)
    names = ["".join(draw.choices("abc ", k=6)).strip() + "a" for _ in range(60)]
    rows = [{"text": name, "weight": draw.random() + 0.1, "id": n} for n, name in enumerate(names)]
    trees = []
    for _ in range(2):
        draw.shuffle(rows)
        encoded = encode_catalog(EntityCatalog.from_mapping({"song": rows, "contact": rows[::-1]}), TOKENIZER)
        trees.append(PrefixTree.build(encoded, TOKENIZER.vocab_size, TOKENIZER.num_classes))
    one, two = trees
    for name, value in vars(one).items():
        same = torch.equal(value, getattr(two, name)) if isinstance(value, torch.Tensor) else True
        assert same, name
    assert all(one.entries_at(node) == two.entries_at(node) for node in range(one.num_nodes))


def test_entries_lead_back_to_the_catalog() -> None:
    catalog = EntityCatalog.from_mapping(
        {"contact": ["John", "Johnson", {"text": "Jon", "spoken": ["john"], "weight": 3}], "song": ["Smith"]}
    )
    encoded = encode_catalog(catalog, TOKENIZER)
    tree = PrefixTree.build(encoded, TOKENIZER.vocab_size, TOKENIZER.num_classes)
    contact = TOKENIZER.class_id("contact")
    node, logp = follow(tree, contact, tuple(TOKENIZER.encode("john")))
    found = {
        (encoded.catalog.classes[TOKENIZER.classes[kind]].entries[entry].text, weight)
        for kind, entry, weight in tree.entries_at(node)
    }
    assert found == {("John", 1.0), ("Jon", 3.0)}
    assert math.exp(logp + float(tree.end_logp[node])) == pytest.approx(4 / 5)


def test_lookup_broadcasts_and_refuses_what_is_no_node_or_token() -> None:
    tree = compile_lists({0: [((0,), 1.0), ((4, 0), 1.0)], 2: [((0,), 1.0)]})
    nodes = torch.arange(-2, tree.num_nodes).unsqueeze(1)
    tokens = torch.arange(-2, V + C)
    targets, logp = tree.lookup(nodes, tokens)
    assert targets.shape == logp.shape == (tree.num_nodes + 2, V + C + 2)
    arcs = {(int(k) // V, int(k) % V): int(t) for k, t in zip(tree.arc_key, tree.arc_target, strict=True)}
    for row, node in enumerate(nodes.flatten().tolist()):
        for column, token in enumerate(tokens.tolist()):
            assert int(targets[row, column]) == arcs.get((node, token), -1)
            assert bool(torch.isfinite(logp[row, column])) == ((node, token) in arcs)
    for node in (-1, tree.num_nodes):
        with pytest.raises(IndexError):
            tree.entries_at(node)


def test_the_empty_tree() -> None:
    tree = PrefixTree.empty(V, C)
    assert tree.num_nodes == 0
    assert tree.root.tolist() == [-1] * C
    assert tree.root_target.shape == tree.root_logp.shape == (C, V)
    assert (tree.root_target == -1).all()
    assert torch.isneginf(tree.root_logp).all()
    target, logp = tree.lookup(torch.tensor([[-1], [0]]), torch.tensor([0, 3]))
    assert target.tolist() == [[-1, -1], [-1, -1]]
    assert torch.isneginf(logp).all()
    assert (target.dtype, logp.dtype) == (torch.int64, torch.float32)
    assert PrefixTree.empty(V, 0).root_logp.shape == (0, V)


def test_tokens_beyond_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="5"):
        compile_lists({0: [((0, V), 1.0)]})


def test_moving_keeps_the_tree() -> None:
    tree = compile_lists({0: [((0, 1), 1.0)]})
    moved = tree.to("meta")
    assert {v.device.type for v in vars(moved).values() if isinstance(v, torch.Tensor)} == {"meta"}
    back = tree.to("cpu")
    assert back.arc_key.tolist() == tree.arc_key.tolist()
    assert back.entries_at(2) == tree.entries_at(2) == [(0, 0, 1.0)]


def test_a_hundred_thousand_entities_compile_in_about_a_second() -> None:
    draw = random.Random(0)
    entities = [(tuple(draw.choices(range(500), k=8)), 1.0) for _ in range(100_000)]
    began = time.perf_counter()
    tree = compile_lists({1: entities}, vocab_size=500)
    assert time.perf_counter() - began < 4.0
    assert tree.num_nodes > 500_000
    node, logp = follow(tree, 1, entities[-1][0])
    assert logp + float(tree.end_logp[node]) == pytest.approx(-math.log(100_000), abs=1e-4)
