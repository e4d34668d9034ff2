"""Compiled steps against steps in tensors: the same hypotheses, scores, parts, frames and spans."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import TableScorer
from toys import BigramLM, ToyEmitter
from trees import tree_of

from asr.families.ctc.emitter import CTCEmitter
from decoding.class_status import ClassGrammar
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.trace import RawHypothesis
from lm.prefix_tree import PrefixTree

VOCAB, CLASSES = 4, 2
STARTS = torch.tensor([True, True, False, False])
LISTS = {0: [([0, 2], 1.0), ([0], 2.0), ([1, 3, 1], 1.0)], 1: [([1, 3], 1.0), ([0, 2], 0.5)]}


def shown(found: list[list[RawHypothesis]]) -> list[list[tuple[object, ...]]]:
    return [[(h.tokens, h.frames, [(s.node, s.start, s.end) for s in h.spans]) for h in one] for one in found]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    beam=st.integers(1, 9),
    threshold=st.sampled_from([1.0, 4.0, 1000.0]),
    lists=st.booleans(),
    scorer=st.booleans(),
    with_lm=st.booleans(),
)
def test_compiled_steps_are_steps_in_tensors(
    seed: int, beam: int, threshold: float, lists: bool, scorer: bool, with_lm: bool
) -> None:
    def found(reference: bool) -> list[list[RawHypothesis]]:
        lm = BigramLM(VOCAB, CLASSES, seed)
        emitter = ToyEmitter([6, 9, 2], lm, seed, with_lm=with_lm, sharpness=3.0)
        tree, nothing = tree_of(LISTS, VOCAB, CLASSES), PrefixTree.empty(VOCAB, CLASSES)
        grammar = ClassGrammar(emitter.contexts, STARTS, [tree, nothing, tree], 0.7) if lists else None
        scorers = [TableScorer("table", 0.3, seed, per_utterance=True)] if scorer else []
        config = BeamConfig(beam=beam, threshold=threshold)
        return BeamSearch(emitter, config, grammar, scorers, reference=reference).run()

    fast, slow = found(False), found(True)
    assert shown(fast) == shown(slow)
    for one, other in zip(fast, slow, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-4)
            assert a.parts == pytest.approx(b.parts, abs=1e-4)
            assert a.token_logp == pytest.approx(b.token_logp, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    beam=st.integers(1, 9),
    threshold=st.sampled_from([4.0, 1000.0]),
    lists=st.booleans(),
    top=st.integers(2, VOCAB),
)
def test_compiled_steps_of_ctc(seed: int, beam: int, threshold: float, lists: bool, top: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logp = (3.0 * torch.randn(3, 9, VOCAB + 1, generator=generator)).log_softmax(-1)
    model: Any = SimpleNamespace(num_tokens=VOCAB, logp=lambda encoded: encoded)

    def found(reference: bool) -> list[list[RawHypothesis]]:
        emitter = CTCEmitter(model, logp, torch.tensor([6, 9, 2]), top)
        tree, nothing = tree_of(LISTS, VOCAB, CLASSES), PrefixTree.empty(VOCAB, CLASSES)
        contexts = BigramLM(VOCAB, CLASSES, seed).contexts()
        grammar = ClassGrammar(contexts, STARTS, [tree, nothing, tree], 0.7, lm_scale=0.5) if lists else None
        config = BeamConfig(beam=beam, threshold=threshold)
        return BeamSearch(emitter, config, grammar, reference=reference).run()

    for one, other in zip(found(False), found(True), strict=True):
        assert shown([one]) == shown([other])
        assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-3)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_an_entity_that_cannot_go_on_does_not_take_the_rest_with_it(seed: int, reference: bool) -> None:
    """A list whose entries begin like what is said, at good odds, and then go on otherwise."""
    generator = torch.Generator().manual_seed(seed)
    lm = BigramLM(VOCAB, CLASSES, seed)
    lm.table[:] = 0.0
    lm.table[:, VOCAB] = 10.0  # class 0, everywhere
    emitter = ToyEmitter([24], lm, seed)
    said = [int(t) for t in torch.randint(0, 2, (24,), generator=generator)]
    emitter.table[:] = 0.0
    for frame, token in enumerate(said):
        emitter.table[:, frame, :, token] = 40.0
    entries = [([a, b, 2, 3, 2], 1.0) for a in (0, 1) for b in (0, 1, 2, 3)]
    grammar = ClassGrammar(emitter.contexts, STARTS, [tree_of({0: entries}, VOCAB, CLASSES)])
    best = BeamSearch(emitter, BeamConfig(beam=4), grammar, reference=reference).run()[0][0]
    assert list(best.tokens) == said


@pytest.mark.parametrize("reference", [False, True])
def test_what_follows_an_entity_is_predicted_from_its_class(reference: bool) -> None:
    """The model's own language model is at the context in which the entity is a tag, the blank at its words."""
    lm = BigramLM(VOCAB, CLASSES, seed=2)
    emitter = ToyEmitter([4], lm, seed=2)
    met: list[tuple[int, int]] = []
    join = emitter.join

    def noted(state: torch.Tensor, tokens: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
        last = emitter.contexts.origin(contexts)[1]
        met.extend(zip(tokens.tolist(), last.tolist(), strict=True))
        return join(state, tokens, contexts)

    emitter.join = noted  # type: ignore[method-assign]
    grammar = ClassGrammar(emitter.contexts, STARTS, [tree_of({0: [([0, 2], 1.0)]}, VOCAB, CLASSES)], 3.0)
    BeamSearch(emitter, BeamConfig(beam=8, threshold=100.0), grammar, reference=reference).run()
    assert (2, VOCAB) in met  # the last word of the entity, remembered as class 0
    assert {token for token, last in met if last == VOCAB} == {2}
    assert all(last in (token, VOCAB) for token, last in met)


@pytest.mark.parametrize("reference", [False, True])
def test_a_scorer_of_weight_zero_is_absent_even_if_it_forbids_everything(reference: bool) -> None:
    emitter = ToyEmitter([6, 4], BigramLM(VOCAB, CLASSES, seed=1), seed=1)
    nothing = TableScorer("nothing", 0.0, seed=1, forbid=1.0)
    with_it = BeamSearch(emitter, BeamConfig(), scorers=[nothing], reference=reference).run()
    assert with_it == BeamSearch(emitter, BeamConfig(), reference=reference).run()
