"""Relaxed attention: a distribution over what may be seen, in training only, with or without the weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.encoders.conformer import Conformer, ConformerConfig
from asr.encoders.masks import attention_mask, valid_frames
from asr.relaxed_attention import relaxed, relaxed_values


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 0.9), lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_relaxed_attention_is_a_distribution_over_real_frames(share: float, lengths: list[int]) -> None:
    mask = valid_frames(torch.tensor(lengths), 7)
    weights = torch.randn(len(lengths), 7, dtype=torch.double).masked_fill(~mask, -torch.inf).softmax(-1)
    result = relaxed(weights, mask, share)
    assert torch.allclose(result.sum(-1), torch.ones(len(lengths), dtype=torch.double))
    assert (result[~mask] == 0).all()
    for row, length in enumerate(lengths):
        alone = relaxed(weights[row, :length], mask[row, :length], share)
        torch.testing.assert_close(result[row, :length], alone)


@settings(max_examples=30, deadline=None)
@given(
    share=st.floats(0, 0.9),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    chunk=st.sampled_from([0, 2]),
)
def test_values_are_those_of_relaxed_weights(share: float, lengths: list[int], chunk: int) -> None:
    mask = attention_mask(valid_frames(torch.tensor(lengths), 7), chunk)
    scores = torch.randn(len(lengths), 2, 7, 7, dtype=torch.double)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    values = torch.randn(len(lengths), 2, 7, 3, dtype=torch.double)
    found = relaxed_values(weights @ values, values, mask, share)
    torch.testing.assert_close(found, relaxed(weights, mask, share) @ values, rtol=0, atol=1e-6)


def encoder(chunk: int = 0, share: float = 0.0) -> Conformer:
    torch.manual_seed(0)
    config = ConformerConfig(
        features=8, layers=2, width=16, heads=2, feed_forward=32, kernel=5, dropout=0.0, chunk=chunk,
        relaxed_attention=share,
    )  # fmt: skip
    return Conformer(config)


def test_an_encoder_relaxes_in_training_only() -> None:
    plain, relaxing = encoder(), encoder(share=0.5)
    features, lengths = torch.randn(2, 40, 8), torch.tensor([40, 23])
    torch.testing.assert_close(plain.eval()(features, lengths), relaxing.eval()(features, lengths))
    assert not torch.allclose(
        plain.train()(features, lengths)[0], relaxing.train()(features, lengths)[0], atol=1e-3
    )


@pytest.mark.parametrize("chunk", [0, 3])
def test_a_relaxed_batch_is_what_its_utterances_are_alone(chunk: int) -> None:
    model = encoder(chunk, 0.3).train()
    features, lengths = torch.randn(2, 40, 8), torch.tensor([40, 23])
    together, frames = model(features, lengths)
    alone, _ = model(features[1:, :23], lengths[1:])
    torch.testing.assert_close(together[1, : int(frames[1])], alone[0], atol=1e-5, rtol=1e-5)


def test_relaxing_leaks_nothing_from_later_chunks() -> None:
    model = encoder(3, 0.3).train()
    features, lengths = torch.randn(1, 60, 8), torch.tensor([60])
    changed = features.clone()
    changed[:, 24:] += 1.0
    before, after = model(features, lengths)[0], model(changed, lengths)[0]
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6], after[:, 6], atol=1e-3)


def test_there_must_be_attention_to_relax() -> None:
    with pytest.raises(ValueError, match="relaxed_attention only with attention"):
        ConformerConfig(attention=False, relaxed_attention=0.1)
