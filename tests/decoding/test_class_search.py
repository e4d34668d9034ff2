"""Class grammar inside the search, against the exact class-based language model and against no grammar."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import BigramLM, ToyEmitter, alignment_sums
from trees import tree_of

from decoding.class_status import ClassGrammar
from decoding.frame_sync import BeamConfig, BeamSearch
from lm.class_lm import ClassLM
from lm.prefix_tree import PrefixTree

VOCAB, CLASSES = 4, 2
STARTS = torch.tensor([True, True, False, False])
WIDE = BeamConfig(beam=700, threshold=1000.0, nbest=2000)


def grammar(
    emitter: ToyEmitter, trees: list[PrefixTree], bonus: float = 0.0, width: int = 64
) -> ClassGrammar:
    return ClassGrammar(emitter.contexts, STARTS, trees, bonus, width)


LISTS = {0: [([0, 2], 1.0), ([0], 2.0), ([1, 3, 1], 1.0)], 1: [([1, 3], 1.0), ([0, 2], 0.5)]}


@pytest.mark.parametrize("bonus", [0.0, 1.5])
def test_wide_beam_is_alignments_times_class_lm(bonus: float) -> None:
    lm = BigramLM(VOCAB, CLASSES, seed=3)
    emitter = ToyEmitter([3], lm, seed=4)
    tree = tree_of(LISTS, VOCAB, CLASSES)
    exact = ClassLM(lm, tree, STARTS, bonus)
    sums = alignment_sums(emitter, 0, 1)
    found = {h.tokens: h for h in BeamSearch(emitter, WIDE, grammar(emitter, [tree], bonus)).run()[0]}
    checked = 0
    for tokens, logp in sums.items():
        expected = logp + exact.score_text(list(tokens))
        if expected > -float("inf"):
            assert found[tokens].score == pytest.approx(expected, abs=1e-3), tokens
            checked += 1
        else:
            assert tokens not in found
    assert checked > 50
    assert any(h.spans for h in found.values())


def test_spans_are_entries_of_the_lists() -> None:
    emitter = ToyEmitter([6], BigramLM(VOCAB, CLASSES, seed=5), seed=6)
    tree = tree_of(LISTS, VOCAB, CLASSES)
    search = BeamSearch(
        emitter, BeamConfig(beam=30, threshold=1000.0, nbest=100), grammar(emitter, [tree], bonus=4.0)
    )
    allowed = {tuple(tokens) for entries in LISTS.values() for tokens, _ in entries}
    spans = 0
    for hypothesis in search.run()[0]:
        for span in hypothesis.spans:
            assert hypothesis.tokens[span.start : span.end] in allowed
            spans += 1
    assert spans > 20


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), beam=st.integers(1, 5))
def test_empty_lists_change_not_one_bit(seed: int, beam: int) -> None:
    emitter = ToyEmitter([6, 3], BigramLM(VOCAB, CLASSES, seed), seed)
    nothing = PrefixTree.empty(VOCAB, CLASSES)
    config = BeamConfig(beam=beam)
    assert (
        BeamSearch(emitter, config, grammar(emitter, [nothing, nothing])).run()
        == BeamSearch(emitter, config).run()
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), beam=st.integers(1, 5))
def test_each_utterance_of_a_batch_has_its_own_lists(seed: int, beam: int) -> None:
    emitter = ToyEmitter([5, 6, 2], BigramLM(VOCAB, CLASSES, seed), seed)
    trees = [
        tree_of(LISTS, VOCAB, CLASSES),
        PrefixTree.empty(VOCAB, CLASSES),
        tree_of({1: [([1, 2, 2], 1.0)]}, VOCAB, CLASSES),
    ]
    config = BeamConfig(beam=beam)
    together = BeamSearch(emitter, config, grammar(emitter, trees)).run()
    for utterance, found in enumerate(together):
        one = emitter.alone(utterance)
        alone = BeamSearch(one, config, grammar(one, [trees[utterance]])).run()[0]
        assert [h.tokens for h in alone] == [h.tokens for h in found]
        assert [h.score for h in alone] == pytest.approx([h.score for h in found], abs=1e-4)
        assert [[(s.start, s.end) for s in h.spans] for h in alone] == [
            [(s.start, s.end) for s in h.spans] for h in found
        ]


def test_class_paths_of_one_surface_count_once_in_the_beam() -> None:
    lm = BigramLM(VOCAB, CLASSES, seed=8)
    emitter = ToyEmitter([5], lm, seed=9)
    tree = tree_of({0: [([0], 1.0), ([1], 1.0)], 1: [([0], 1.0), ([1], 1.0)]}, VOCAB, CLASSES)
    search = BeamSearch(emitter, BeamConfig(beam=4, threshold=1000.0, nbest=50), grammar(emitter, [tree]))
    found = search.run()[0]
    assert 3 <= len({h.tokens for h in found}) == len(found) <= 4


def test_an_entity_of_a_long_list_is_still_shown_as_one() -> None:
    """Only whether this is a place for the class decides, not how many other entries the list has."""
    lm = BigramLM(VOCAB, CLASSES, seed=5)
    lm.table[:] = 0.0
    lm.table[:, VOCAB] = 1.0  # class 0 is a little likelier than any token, everywhere
    emitter = ToyEmitter([2], lm, seed=6)
    emitter.table[:] = 0.0
    emitter.table[:, 0, :, 0] = emitter.table[:, 1, :, 2] = 9.0
    others = [([1, a, b], 1.0) for a in range(VOCAB) for b in range(VOCAB)]
    tree = tree_of({0: [([0, 2], 1.0), *others]}, VOCAB, CLASSES)
    best = BeamSearch(emitter, BeamConfig(beam=8), grammar(emitter, [tree])).run()[0][0]
    assert best.tokens == (0, 2)
    assert [(s.start, s.end) for s in best.spans] == [(0, 2)]
    assert tree.share_logp(best.spans[0].node) == pytest.approx(-torch.tensor(17.0).log())
