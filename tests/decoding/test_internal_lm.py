"""Internal language models taken out, and external ones mixed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import VOCAB, TableScorer, score_alone
from torch import Tensor
from toys import BigramLM, ToyEmitter

from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.internal_lm import ContextScorer, InternalContexts, Interpolated, density_ratio, ilme, lodr
from decoding.scorer import Scorer
from decoding.trace import RawHypothesis
from lm.contextual import ContextualLM, ContextualLMConfig
from lm.errors import ConfigError
from lm.utterance_context import CategoricalField, UtteranceContext

SEEDS = st.integers(0, 100_000)
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=5)


def search(emitter: ToyEmitter, scorers: list[Scorer]) -> list[list[RawHypothesis]]:
    return BeamSearch(emitter, BeamConfig(beam=5), scorers=scorers).run()


def same(found: list[list[RawHypothesis]], expected: list[list[RawHypothesis]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert [h.tokens for h in one] == [h.tokens for h in other]
        assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-3)


@pytest.mark.parametrize("take_out", [density_ratio, lodr])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_subtracted_cancels_what_was_added(
    take_out: Callable[[Scorer, float], Scorer], seed: int
) -> None:
    emitter = ToyEmitter([6, 4], BigramLM(VOCAB, 0, seed), seed, sharpness=2.0)
    added, removed = TableScorer("lm2", 0.4, seed), take_out(TableScorer("any", 99.0, seed), 0.4)
    assert removed.weight == -0.4
    same(search(emitter, [added, removed]), search(emitter, []))
    state = removed.start(1)
    assert torch.equal(removed.finish(state), added.finish(state))
    assert score_alone(removed, [1, 2]) == pytest.approx(-score_alone(added, [1, 2]))


@pytest.mark.parametrize("seed", range(4))
def test_ilme_of_a_predictor_is_a_lower_scale_of_it(seed: int) -> None:
    emitter = ToyEmitter([6, 4], BigramLM(VOCAB, 0, seed), seed, sharpness=2.0)
    found = search(emitter, [ilme(emitter.contexts, 0.3)])
    emitter.lm_scale = 0.7
    expected = search(emitter, [])
    same(found, expected)
    for one, other in zip(found, expected, strict=True):
        assert one[0].parts["ilme"] == pytest.approx(-0.3 * one[0].parts["lm"], abs=1e-4)
        assert other[0].parts["lm"] == pytest.approx(0.7 * one[0].parts["lm"], abs=1e-4)


class ToyJoint:
    """A transducer whose joint network is a table over the last token when it hears nothing."""

    num_tokens = VOCAB

    def __init__(self, seed: int) -> None:
        self.contexts = BigramLM(VOCAB, 0, 0).contexts()
        self.table = torch.randn(VOCAB + 1, VOCAB, generator=torch.Generator().manual_seed(seed))

    def start(self) -> Tensor:
        return self.contexts.start(1)

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        return self.contexts.advance(state, tokens)

    def internal_logits(self, state: Tensor) -> Tensor:
        return self.table[self.contexts.origin(state)[1]]


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, tokens=TOKENS)
def test_ilme_of_a_joint_network_is_normalised_without_blank(seed: int, tokens: list[int]) -> None:
    joint = ToyJoint(seed)
    scorer = ilme(joint, 0.5)
    logp = joint.table.log_softmax(-1)
    expected = sum(float(logp[before, t]) for before, t in zip([-1, *tokens], tokens, strict=False))
    assert score_alone(scorer, tokens) == pytest.approx(-0.5 * expected, abs=1e-4)
    everything = torch.arange(VOCAB)[None]
    inner = InternalContexts(joint)
    assert float(inner.score(inner.start(1), everything).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def walk(store: Interpolated, tokens: list[int]) -> Tensor:
    state = store.start(1)
    for token in tokens:
        state = store.advance(state, torch.tensor([token]))
    return store.score(state)[0]


@settings(max_examples=50, deadline=None)
@given(
    seed=SEEDS,
    weight=st.floats(0, 1),
    history=st.lists(st.integers(0, VOCAB + 1), max_size=4),
    tagged=st.booleans(),
)
def test_interpolation_is_linear_and_sums_to_one(
    seed: int, weight: float, history: list[int], tagged: bool
) -> None:
    internal, external = BigramLM(VOCAB, 2, seed), BigramLM(VOCAB, 2 if tagged else 0, seed + 1)
    mixed = walk(Interpolated(internal.contexts(), external.contexts(), weight), history).double().exp()
    assert float(mixed[:VOCAB].sum()) == pytest.approx(1.0, abs=1e-5)

    def odds(model: BigramLM, context: list[int]) -> Tensor:
        logits = model.table[context[-1] if context else -1].double()
        return (logits - logits[:VOCAB].logsumexp(-1)).exp()

    inner = odds(internal, history)
    outer = odds(external, history if tagged else [t for t in history if t < VOCAB])
    torch.testing.assert_close(
        mixed[:VOCAB], weight * outer[:VOCAB] + (1 - weight) * inner[:VOCAB], atol=1e-5, rtol=1e-4
    )
    tags = weight * outer[VOCAB:] + (1 - weight) * inner[VOCAB:] if tagged else inner[VOCAB:]
    torch.testing.assert_close(mixed[VOCAB:], tags, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_interpolated_contexts_serve_a_search(seed: int) -> None:
    """Weight 0 is the model's own search, weight 1 that of the other language model."""
    one, two = BigramLM(VOCAB, 0, seed), BigramLM(VOCAB, 0, seed + 1)
    for weight, alone in ((0.0, one), (1.0, two)):
        emitter, expected = (ToyEmitter([5, 3], lm, seed, sharpness=2.0) for lm in (one, alone))
        emitter.contexts = Interpolated(one.contexts(), two.contexts(), weight)
        same(search(emitter, []), search(expected, []))


@pytest.mark.parametrize("how", ["stacked", "mixed"])
def test_a_search_hears_each_utterance_in_its_own_context(how: str) -> None:
    torch.manual_seed(0)
    values = ("maps", "music")
    fields = (CategoricalField(kind="categorical", name="app", values=values),)
    external = ContextualLM(ContextualLMConfig(fields=fields, width=8, context_width=4), VOCAB, 0).eval()
    for parameter in external.parameters():
        parameter.data.mul_(4.0)

    def found(lengths: list[int], said: Sequence[UtteranceContext | None]) -> list[list[RawHypothesis]]:
        emitter, store = (
            ToyEmitter(lengths, BigramLM(VOCAB, 0, 1), 1),
            external.contexts(context=external.encode(said)),
        )
        if how == "stacked":
            return search(emitter, [ContextScorer(store, "fusion", 1.0)])
        emitter.contexts = Interpolated(emitter.contexts, store, 0.9)
        return search(emitter, [])

    contexts: list[Any] = [{"app": "maps"}, None, {"app": "music"}, {"app": "maps"}]
    together = found([5] * 4, contexts)
    # The toy's acoustics differ by place, so an utterance alone is one whose neighbours have no context.
    for place, said in enumerate(contexts):
        others = [said if n == place else None for n in range(4)]
        same(together[place : place + 1], found([5] * 4, others)[place : place + 1])
    swapped = found([5] * 4, [{"app": "music"}, *contexts[1:]])
    assert [h.score for h in swapped[0]] != pytest.approx([h.score for h in together[0]], abs=1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_scorer_of_contexts_is_their_log_probability(seed: int) -> None:
    lm = BigramLM(VOCAB, 0, seed)
    scorer = ContextScorer(lm.contexts(), "lm2", 2.0)
    tokens = [0, 3, 1]
    expected = float(lm.score_text(torch.tensor([tokens])).sum())
    assert score_alone(scorer, tokens) == pytest.approx(2.0 * expected, abs=1e-4)


def test_what_cannot_be_mixed_is_refused() -> None:
    store = BigramLM(VOCAB, 2, 0).contexts()
    with pytest.raises(ConfigError, match="weight of 1.5"):
        Interpolated(store, store, 1.5)
    with pytest.raises(ConfigError, match="over 3 tokens and 0 class tags"):
        Interpolated(store, BigramLM(3, 0, 0).contexts(), 0.5)
    with pytest.raises(ConfigError, match="4 tokens and 1 class tags"):
        Interpolated(store, BigramLM(VOCAB, 1, 0).contexts(), 0.5)
    for scale in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="without its minus sign"):
            lodr(TableScorer("x", 1.0, 0), scale)
        with pytest.raises(ConfigError, match="ilme with scale"):
            ilme(store, scale)
