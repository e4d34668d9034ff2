"""The cost of a class: where it is read from, and what it does to a class-based language model."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "decoding"))
from toys import BigramLM
from trees import tree_of

from lm.class_lm import ClassLM
from lm.classes import EntityCatalog, encode_catalog
from lm.errors import EntityListError
from lm.prefix_tree import PrefixTree
from lm.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["abc cab ab"] * 5, 6, ["song", "contact"], "char")


def test_costs_are_read_and_compiled(tmp_path: Path) -> None:
    (tmp_path / "people.txt").write_text("ab\nabc\n")
    (tmp_path / "all.yaml").write_text(
        "contact: {cost: 1.5, file: people.txt}\nsong:\n  cost: -2\n  entries:\n  - cab\n  - {pattern: ab c?}\n"
    )
    loaded = EntityCatalog.load(tmp_path / "all.yaml")
    same = EntityCatalog.from_mapping(
        {
            "contact": {"cost": 1.5, "entries": ["ab", "abc"]},
            "song": {"cost": -2, "entries": ["cab", {"pattern": "ab c?"}]},
        }
    )
    assert loaded.fingerprint() == same.fingerprint()
    assert {name: kind.cost for name, kind in loaded.classes.items()} == {"contact": 1.5, "song": -2.0}
    plain = EntityCatalog.from_mapping(
        {"contact": {"entries": ["ab", "abc"]}, "song": ["cab", {"pattern": "ab c?"}]}
    )
    assert plain.fingerprint() != same.fingerprint()
    tree = PrefixTree.build(encode_catalog(loaded, TOKENIZER), TOKENIZER.vocab_size, 2)
    assert tree.class_cost.tolist() == [-2.0, 1.5]
    assert PrefixTree.empty(4, 3).class_cost.tolist() == [0.0] * 3


def test_costs_survive_merging_and_must_agree() -> None:
    one = EntityCatalog.from_mapping({"song": {"cost": 1, "entries": ["ab"]}})
    other = EntityCatalog.from_mapping({"song": ["cab"], "contact": {"cost": 3, "entries": ["abc"]}})
    for merged in (one.merge(other), other.merge(one)):
        assert {name: kind.cost for name, kind in merged.classes.items()} == {"song": 1.0, "contact": 3.0}
        assert merged.canonical().classes["song"].cost == 1.0
    with pytest.raises(EntityListError, match=r"class 'song' with costs 1\.0 and 2\.0"):
        one.merge(EntityCatalog.from_mapping({"song": {"cost": 2, "entries": ["ab"]}}))


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("song:\n- ab\ncontact: {cost: much, entries: [ab]}\n", 3, "cost 'much'"),
        ("song: {cost: .inf, entries: [ab]}\n", 1, "cost '.inf'"),
        ("song: {cost: 1}\n", 1, "a list"),
        ("song: {cost: 1, entries: []}\n", 1, "a list"),
        ("song: {cost: 1, entries: {a: b}}\n", 1, "a list"),
        ("song: {cost: 1, entries: [ab], file: x.txt}\n", 1, "a list"),
        ("song: {coast: 1, entries: [ab]}\n", 1, "a list"),
        ("song: {entries: [ab,\n  {pattern: (ab}]}\n", 2, "pattern '(ab', character 1: '(' is never closed"),
        ("song:\n- {number: zap}\n", 2, "number 'zap'"),
    ],
)
def test_mistakes_are_told_with_file_and_line(tmp_path: Path, content: str, line: int, problem: str) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(content)
    with pytest.raises(EntityListError) as caught:
        EntityCatalog.load(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"cost": "x", "entries": ["ab"]}, "cost 'x'"),
        ({"cost": True, "entries": ["ab"]}, "cost True"),
        ({"cots": 1, "entries": ["ab"]}, "did you mean 'cost'"),
        ({"cost": 1, "entries": []}, "empty list"),
    ],
)
def test_mistakes_of_mappings(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(EntityListError, match=f"class 'song'.*{problem}"):
        EntityCatalog.from_mapping({"song": given})


def test_a_cost_is_a_bonus_the_other_way_round() -> None:
    lists = {0: [([0, 2], 1.0), ([1], 2.0)], 1: [([0], 1.0)]}
    tree = tree_of(lists, 4, 2)
    starts = torch.tensor([True, True, False, False])
    lm = BigramLM(4, 2, 3)
    costly = ClassLM(lm, replace(tree, class_cost=torch.tensor([1.5, 1.5])), starts, bonus=2.0)
    cheap = ClassLM(lm, tree, starts, bonus=0.5)
    one_dear = ClassLM(lm, replace(tree, class_cost=torch.tensor([50.0, 0.0])), starts)
    without = ClassLM(lm, tree_of({1: lists[1]}, 4, 2), starts)
    total = 0.0
    for tokens in itertools.product(range(4), repeat=3):
        assert costly.prefix_logp(list(tokens)) == pytest.approx(cheap.prefix_logp(list(tokens)), abs=1e-5)
        assert one_dear.prefix_logp(list(tokens)) == pytest.approx(
            without.prefix_logp(list(tokens)), abs=1e-4
        )
        total += math.exp(one_dear.prefix_logp(list(tokens)))
    assert total == pytest.approx(1.0, abs=1e-5)
