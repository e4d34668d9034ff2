"""Contexts attended to in compiled loops against the same in tensors, and against whole sentences."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.transformer import TransformerContexts, TransformerLM, TransformerLMConfig


def contexts_of(model: TransformerLM, compiled: bool) -> TransformerContexts:
    store = model.contexts()
    if not compiled:
        store = TransformerContexts.__new__(TransformerContexts)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lm.transformer._compiled", lambda: None)
            TransformerContexts.__init__(store, model)
    return store


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000), positions=st.sampled_from(["rotary", "none"]), heads=st.sampled_from([1, 2, 4])
)
@torch.no_grad()
def test_compiled_contexts_are_contexts_in_tensors(
    seed: int, positions: Literal["rotary", "none"], heads: int
) -> None:
    torch.manual_seed(seed)
    config = TransformerLMConfig(layers=2, width=16, heads=heads, feed_forward=32, positions=positions)
    model = TransformerLM(config, 7, 2).eval()
    fast, slow = contexts_of(model, True), contexts_of(model, False)
    assert fast._attend is not None
    assert slow._attend is None
    sentences = torch.randint(9, (5, 80))  # longer than the tables are at first
    one = other = torch.zeros(5, dtype=torch.long)
    for place in range(sentences.shape[1]):
        one, other = fast.advance(one, sentences[:, place]), slow.advance(other, sentences[:, place])
        assert torch.equal(one, other)
    assert torch.allclose(fast.table, slow.table, atol=1e-4)
    whole = model(sentences)[:, -1]
    whole = whole - whole[:, :7].logsumexp(-1, keepdim=True)
    assert torch.allclose(fast.score(one), whole, atol=1e-4)
