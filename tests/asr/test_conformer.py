"""The Conformer: padding changes nothing, chunks leak nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.encoders.conformer import Conformer, ConformerConfig
from asr.encoders.masks import LARGEST_CHUNK, attention_mask, random_context, valid_frames
from lm.config import build_config
from lm.errors import ConfigError


def make(chunk: int = 0, left_chunks: int = -1, **more: Any) -> Conformer:
    torch.manual_seed(0)
    values = {"features": 8, "layers": 2, "width": 16, "heads": 2, "feed_forward": 32, "kernel": 5} | more
    return Conformer(ConformerConfig(chunk=chunk, left_chunks=left_chunks, **values)).eval()


def reach(model: Conformer, features: torch.Tensor, first: int, last: int) -> list[list[int]]:
    """The input frames that outputs ``first`` to ``last`` depend on, by their gradient, for each block."""
    outputs: list[torch.Tensor] = []
    hooks = [b.register_forward_hook(lambda _, __, output: outputs.append(output)) for b in model.blocks]
    features.requires_grad_()
    model(features, torch.tensor([features.shape[1]]))
    for hook in hooks:
        hook.remove()
    touched = []
    for output in outputs:
        weight = torch.randn(output[:, first:last].shape)
        (grad,) = torch.autograd.grad((output[:, first:last] * weight).sum(), features, retain_graph=True)
        touched.append(grad[0].abs().sum(-1).nonzero().flatten().tolist())
    return touched


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


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.sampled_from([-1, 0, 1, 3]),
    st.booleans(),
    st.integers(1, 70),
    st.sampled_from([1, 4, 7]),
)
def test_no_block_leaks_the_future_into_a_chunk(
    chunk: int, left_chunks: int, dynamic: bool, length: int, kernel: int
) -> None:
    model = make(chunk, left_chunks, dynamic_chunk=dynamic, layers=3, kernel=kernel)
    features = torch.randn(1, length, 8)
    frames = -(-length // 4)
    for number in range(-(-frames // chunk)):
        end = min((number + 1) * chunk, frames)
        for touched in reach(model, features, number * chunk, end):
            assert touched[-1] == min(end * 4, length) - 1  # the whole chunk is seen, and nothing behind it


def test_limited_left_chunks_reach_as_far_as_the_blocks_add_up() -> None:
    """Each block sees a chunk of attention and kernel - 1 frames of convolution further back."""
    model = make(chunk=3, left_chunks=1, layers=2, kernel=3)
    touched = reach(model, torch.randn(1, 120, 8), 27, 30)
    # Frame 27: convolution to 25, whose chunk begins at 24 and sees the one from 21; once more: 19, 18, 15.
    assert [block[0] // 4 for block in touched] == [21, 15]


@pytest.mark.parametrize("chunk", [0, 4])
def test_without_attention_only_the_convolutions_reach(chunk: int) -> None:
    model = make(chunk, attention=False, layers=3, kernel=5)
    assert not [name for name, _ in model.named_parameters() if "attention" in name]
    features = torch.randn(1, 120, 8)
    for block, touched in enumerate(reach(model, features, 15, 16), start=1):
        back, ahead = (4 * block, 0) if chunk else (2 * block, 2 * block)
        assert touched == list(range((15 - back) * 4, (15 + ahead + 1) * 4))


def test_with_attention_everything_is_reached() -> None:
    assert reach(make(), torch.randn(1, 80, 8), 10, 11)[0] == list(range(80))


def test_dynamic_chunks_are_drawn_in_training_from_the_global_generator() -> None:
    model = make(4, dynamic_chunk=True, dropout=0.0)
    features, lengths = torch.randn(2, 120, 8), torch.tensor([120, 90])
    model.train()
    torch.manual_seed(1)
    drawn = [model(features, lengths)[0] for _ in range(12)]
    torch.manual_seed(1)
    for again in drawn:
        assert torch.equal(model(features, lengths)[0], again)
    assert len({round(float(y.detach()[..., 0].sum()), 3) for y in drawn}) > 4
    torch.manual_seed(1)
    contexts = [random_context(4, -1) for _ in drawn]
    for output, (chunk, _) in zip(drawn, contexts, strict=True):
        alike = make(chunk, dynamic_chunk=True)
        torch.testing.assert_close(output, alike(features, lengths)[0], atol=1e-5, rtol=0)
    assert {chunk > 0 for chunk, _ in contexts} == {True, False}


@pytest.mark.parametrize("dynamic", [True, False])
@torch.no_grad()
def test_nothing_is_drawn_where_the_context_is_fixed(dynamic: bool) -> None:
    """In use, and in training without dynamic chunks, the deployed chunk is what counts."""
    model = make(3, dynamic_chunk=dynamic, dropout=0.0).train(not dynamic)
    features, lengths = torch.randn(1, 60, 8), torch.tensor([60])
    state = torch.get_rng_state()
    outputs = [model(features, lengths)[0] for _ in range(5)]
    assert torch.equal(torch.get_rng_state(), state)
    expected, _ = make(3)(features, lengths)
    assert all(torch.equal(output, expected) for output in outputs)


@pytest.mark.parametrize("chunk", [0, 8, 40])
def test_half_of_the_contexts_are_full_and_the_others_chunks_of_any_size(chunk: int) -> None:
    torch.manual_seed(0)
    drawn = [random_context(chunk, -1) for _ in range(4000)]
    full = [context for context in drawn if context == (0, -1)]
    assert abs(len(full) / len(drawn) - 0.5) < 0.03
    assert {size for size, _ in drawn} == set(range(max(chunk, LARGEST_CHUNK) + 1))
    assert {left for _, left in drawn} == {-1}


def test_limited_left_context_is_as_long_in_training_as_when_deployed() -> None:
    torch.manual_seed(0)
    for size, left in {random_context(8, 4) for _ in range(2000)} - {(0, -1)}:
        assert 32 <= size * left < 32 + size
    assert {left for size, left in (random_context(8, 0) for _ in range(200)) if size} == {0}


def test_a_padded_frame_behind_random_chunks_gives_no_nan() -> None:
    model = make(dynamic_chunk=True).train()
    for _ in range(20):
        output, _ = model(torch.randn(2, 160, 8), torch.tensor([160, 3]))
        output.square().sum().backward()
        assert torch.isfinite(output).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"left_chunks": 2}, "left_chunks only together with a chunk"),
        ({"attention": False, "dynamic_chunk": True}, "only with attention"),
        ({"attention": False, "chunk": 4, "left_chunks": 1}, "only with attention"),
    ],
)
def test_contexts_that_make_no_sense_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_config(ConformerConfig, values, "model")


def test_a_width_that_cannot_be_rotated_is_refused() -> None:
    with pytest.raises(ConfigError, match="a width that 4 heads divide into even parts, like 80"):
        build_config(ConformerConfig, {"width": 84, "heads": 4}, "here")
