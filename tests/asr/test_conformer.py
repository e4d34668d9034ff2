"""The Conformer: padding changes nothing, chunks leak nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.encoders.conformer import Conformer, ConformerConfig
from asr.encoders.masks import attention_mask, valid_frames


def make(chunk: int = 0, left_chunks: int = -1) -> Conformer:
    torch.manual_seed(0)
    config = ConformerConfig(
        features=8,
        layers=2,
        width=16,
        heads=2,
        feed_forward=32,
        kernel=5,
        chunk=chunk,
        left_chunks=left_chunks,
    )
    return Conformer(config).eval()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.sampled_from([0, 3]))
@torch.no_grad()
def test_batch_equals_single_whatever_the_padding(lengths: list[int], chunk: int) -> None:
    model = make(chunk)
    features = torch.randn(len(lengths), max(lengths), 8)
    together, frames = model(features, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone, count = model(features[row : row + 1, :length], torch.tensor([length]))
        assert int(count) == int(frames[row]) == -(-length // 4)
        assert torch.allclose(together[row, : int(count)], alone[0], atol=1e-5)


@pytest.mark.parametrize("left_chunks", [-1, 1])
@torch.no_grad()
def test_a_chunk_does_not_see_later_chunks(left_chunks: int) -> None:
    model = make(chunk=3, left_chunks=left_chunks)
    features = torch.randn(1, 60, 8)  # 15 encoder frames, 5 chunks
    before, _ = model(features, torch.tensor([60]))
    for chunk in range(1, 5):
        changed = features.clone()
        changed[:, chunk * 12 :] += 1.0
        after, _ = model(changed, torch.tensor([60]))
        assert torch.allclose(after[:, : chunk * 3], before[:, : chunk * 3], atol=1e-6)
        assert not torch.allclose(after[:, chunk * 3], before[:, chunk * 3], atol=1e-3)


@torch.no_grad()
def test_full_context_sees_the_end() -> None:
    model = make()
    features = torch.randn(1, 40, 8)
    changed = features.clone()
    changed[:, -1] += 1.0
    assert not torch.allclose(
        model(features, torch.tensor([40]))[0][:, 0], model(changed, torch.tensor([40]))[0][:, 0]
    )


def test_left_chunks_limit_what_is_seen() -> None:
    mask = attention_mask(valid_frames(torch.tensor([6]), 6), chunk=2, left_chunks=1)[0, 0]
    assert mask[5].tolist() == [False, False, True, True, True, True]
    assert mask[1].tolist() == [True, True, False, False, False, False]
