"""The compiled selection against torch.topk."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.top_tokens import top_tokens


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 9999), rows=st.integers(0, 4), vocab=st.integers(1, 40), size=st.integers(1, 45))
def test_the_highest_in_descending_order(seed: int, rows: int, vocab: int, size: int) -> None:
    scores = torch.randn(rows, 3, vocab, generator=torch.Generator().manual_seed(seed))
    scores[scores < -1.5] = -torch.inf
    values, places = top_tokens(scores, size)
    assert torch.equal(values, scores.topk(min(size, vocab), dim=-1).values)
    assert torch.equal(scores.gather(-1, places), values)
    assert all(len(set(row)) == len(row) for row in places.flatten(0, 1).tolist())


def test_of_equal_scores_the_first() -> None:
    values, places = top_tokens(torch.tensor([[1.0, 3.0, 3.0, 1.0, 3.0]]), 2)
    assert (values.tolist(), places.tolist()) == ([[3.0, 3.0]], [[1, 2]])
