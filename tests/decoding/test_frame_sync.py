"""The beam search against exhaustive enumeration, greedy search and itself."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import BigramLM, ToyEmitter, alignment_sums

from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.greedy import greedy_search

WIDE = BeamConfig(beam=600, threshold=1000.0, nbest=2000)


def surface_logp(lm: BigramLM, labels: tuple[int, ...]) -> float:
    """log P over V alone of a label sequence."""
    logits = (
        lm(torch.tensor([labels], dtype=torch.long))[0, :-1, : lm.num_tokens] if labels else torch.zeros(0, 1)
    )
    return float(sum(logits.double().log_softmax(-1)[i, token] for i, token in enumerate(labels)))


@pytest.mark.parametrize("max_symbols", [1, 2])
def test_wide_beam_finds_every_sequence_with_its_exact_probability(max_symbols: int) -> None:
    lm = BigramLM(3, 0, seed=1)
    emitter = ToyEmitter([3, 2] if max_symbols == 1 else [2, 1], lm, seed=2)
    config = WIDE.model_copy(update={"max_symbols_per_frame": max_symbols})
    for utterance, found in enumerate(BeamSearch(emitter, config).run()):
        sums = alignment_sums(emitter, utterance, max_symbols)
        assert {h.tokens for h in found} == set(sums)
        for hypothesis in found:
            expected = sums[hypothesis.tokens] + surface_logp(lm, hypothesis.tokens)
            assert hypothesis.score == pytest.approx(expected, abs=1e-4)
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("max_symbols", [1, 2])
def test_recombination_by_the_best_finds_the_best_alignment(max_symbols: int, reference: bool) -> None:
    lm = BigramLM(3, 0, seed=1)
    emitter = ToyEmitter([3, 2] if max_symbols == 1 else [2, 1], lm, seed=2)
    config = WIDE.model_copy(update={"max_symbols_per_frame": max_symbols, "recombine": "max"})
    for utterance, found in enumerate(BeamSearch(emitter, config, reference=reference).run()):
        best = alignment_sums(emitter, utterance, max_symbols, max)
        assert {h.tokens for h in found} == set(best)
        for hypothesis in found:
            expected = best[hypothesis.tokens] + surface_logp(lm, hypothesis.tokens)
            assert hypothesis.score == pytest.approx(expected, abs=1e-4)
            assert hypothesis.score == pytest.approx(sum(hypothesis.parts.values()), abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), beam=st.integers(1, 6), symbols=st.integers(1, 3))
def test_batch_equals_single(seed: int, beam: int, symbols: int) -> None:
    emitter = ToyEmitter([6, 1, 4], BigramLM(4, 0, seed), seed, sharpness=2.0)
    config = BeamConfig(beam=beam, max_symbols_per_frame=symbols)
    together = BeamSearch(emitter, config).run()
    for utterance, found in enumerate(together):
        alone = BeamSearch(emitter.alone(utterance), config).run()[0]
        assert [h.tokens for h in alone] == [h.tokens for h in found]
        assert [h.score for h in alone] == pytest.approx([h.score for h in found], abs=1e-4)
        assert [h.frames for h in alone] == [h.frames for h in found]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), symbols=st.integers(1, 3), with_lm=st.booleans())
def test_beam_of_one_is_greedy(seed: int, symbols: int, with_lm: bool) -> None:
    emitter = ToyEmitter([7, 3, 5], BigramLM(4, 0, seed), seed, with_lm, sharpness=3.0)
    beams = BeamSearch(emitter, BeamConfig(beam=1, max_symbols_per_frame=symbols)).run()
    for found, (tokens, frames) in zip(beams, greedy_search(emitter, symbols), strict=True):
        assert list(found[0].tokens) == tokens
        assert list(found[0].frames) == frames


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_parts_and_token_scores_add_up_where_nothing_was_recombined(seed: int) -> None:
    emitter = ToyEmitter([5], BigramLM(3, 0, seed), seed)
    best = BeamSearch(emitter, BeamConfig(beam=1)).run()[0][0]
    assert sum(best.parts.values()) == pytest.approx(best.score, abs=1e-4)
    assert best.parts["lm"] == pytest.approx(surface_logp(emitter.contexts.model, best.tokens), abs=1e-4)
    assert len(best.token_logp) == len(best.tokens) == len(best.frames)
    assert sum(best.token_logp) >= best.score - 1e-4
    assert math.isfinite(best.score)
