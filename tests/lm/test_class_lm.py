"""The class-based language model is a proper distribution over surface strings."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "decoding"))
from toys import BigramLM
from trees import tree_of

from lm.class_lm import ClassLM
from lm.prefix_tree import PrefixTree

VOCAB, CLASSES = 4, 2
STARTS = torch.tensor([True, True, False, False])

entity = st.tuples(
    st.lists(st.integers(0, VOCAB - 1), min_size=0, max_size=2).flatmap(
        lambda rest: st.sampled_from([0, 1]).map(lambda first: [first, *rest])
    ),
    st.floats(0.1, 5.0),
)
lists = st.dictionaries(
    st.integers(0, CLASSES - 1), st.lists(entity, min_size=1, max_size=5, unique_by=lambda e: tuple(e[0]))
)


@settings(max_examples=25, deadline=None)
@given(lists, st.integers(0, 1000), st.floats(-2, 2))
def test_prefixes_of_each_length_sum_to_one(
    chosen: dict[int, list[tuple[list[int], float]]], seed: int, bonus: float
) -> None:
    model = ClassLM(BigramLM(VOCAB, CLASSES, seed), tree_of(chosen, VOCAB, CLASSES), STARTS, bonus)
    for length in range(1, 5):
        total = sum(
            math.exp(model.prefix_logp(list(s))) for s in itertools.product(range(VOCAB), repeat=length)
        )
        assert total == pytest.approx(1.0, abs=1e-5)


def test_texts_and_unfinished_entities_make_up_the_prefixes() -> None:
    chosen = {0: [([0, 2], 1.0), ([0], 1.0)], 1: [([1, 3, 3], 2.0)]}
    model = ClassLM(BigramLM(VOCAB, CLASSES, 5), tree_of(chosen, VOCAB, CLASSES), STARTS)
    for tokens in itertools.product(range(VOCAB), repeat=3):
        assert model.score_text(list(tokens)) <= model.prefix_logp(list(tokens)) + 1e-9
    assert model.score_text([1, 3]) < model.prefix_logp([1, 3]) - 0.1  # it may stand inside class 1's entity


def test_a_name_is_worth_its_class_times_its_share_of_the_list() -> None:
    lm = BigramLM(VOCAB, CLASSES, 6)
    one = ClassLM(lm, tree_of({0: [([0, 2, 3], 1.0)]}, VOCAB, CLASSES), STARTS)
    three = ClassLM(
        lm, tree_of({0: [([0, 2, 3], 1.0), ([0, 3], 1.0), ([1, 3], 1.0)]}, VOCAB, CLASSES), STARTS
    )
    allowed = lm(torch.tensor([[0, 2, 3]]))[0, :3, : VOCAB + 1].double().log_softmax(-1)  # V and the one tag
    tag = allowed[0, VOCAB]
    surface = float(allowed[0, 0] + allowed[1, 2] + allowed[2, 3])
    for model, share in ((one, 1.0), (three, 1 / 3)):
        expected = math.log(math.exp(float(tag)) * share + math.exp(surface))
        assert model.score_text([0, 2, 3]) == pytest.approx(expected, abs=1e-5)


def test_without_lists_it_is_the_model_over_surface_tokens() -> None:
    lm = BigramLM(VOCAB, CLASSES, 7)
    model = ClassLM(lm, PrefixTree.empty(VOCAB, CLASSES), STARTS)
    logits = lm(torch.tensor([[2, 1, 0]]))[0, :3, :VOCAB].double().log_softmax(-1)
    assert model.score_text([2, 1, 0]) == pytest.approx(
        float(logits[0, 2] + logits[1, 1] + logits[2, 0]), abs=1e-5
    )
