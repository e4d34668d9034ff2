"""CTC loss against the sum over all frame labellings, and its count of impossible utterances."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.losses.ctc import ctc_loss
from lm.errors import DataError


def enumerated_loss(logp: Tensor, labels: list[int], blank: int) -> Tensor:
    """One utterance (T, V+1): the labellings that collapse to the labels."""
    totals = []
    for path in itertools.product(range(logp.shape[1]), repeat=logp.shape[0]):
        collapsed = [k for k, _ in itertools.groupby(path) if k != blank]
        if collapsed == labels:
            totals.append(logp[range(len(path)), path].sum())
    return -torch.logsumexp(torch.stack(totals), 0) if totals else logp.new_tensor(math.inf)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.lists(st.integers(0, 1), min_size=0, max_size=4)),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 2),
    st.sampled_from([math.nan, math.inf, 0.0]),
    st.integers(0, 10**6),
)
def test_it_is_the_sum_over_all_labellings(
    utterances: list[tuple[int, list[int]]], blank: int, padding: float, seed: int
) -> None:
    names = [k for k in range(3) if k != blank]
    texts = [[names[k] for k in labels] for _, labels in utterances]
    frames = torch.tensor([t for t, _ in utterances])
    longest = max(map(len, texts)) + 1
    targets = torch.tensor([[*text, *[-5] * (longest - len(text))] for text in texts])
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(texts), 5, 3, dtype=torch.float64, generator=generator)
    logp = logits.log_softmax(-1)
    for row, t in enumerate(frames.tolist()):
        logp[row, t:] = padding
    logp.requires_grad_()
    loss, impossible = ctc_loss(logp, targets, frames, torch.tensor([len(x) for x in texts]), blank)
    wanted = torch.stack(
        [enumerated_loss(x[:t], y, blank) for x, t, y in zip(logp, frames, texts, strict=True)]
    )
    assert impossible == int(wanted.isinf().sum())
    torch.testing.assert_close(loss, wanted.masked_fill(wanted.isinf(), 0), rtol=1e-9, atol=1e-9)
    (grad,) = torch.autograd.grad(loss.sum(), logp)
    assert grad.isfinite().all()
    assert not grad[wanted.isinf()].any()


def test_a_certain_utterance_is_not_counted_as_impossible() -> None:
    logp = torch.full((2, 3, 4), -math.inf)
    logp[0, [0, 1, 2], [1, 0, 2]] = 0.0
    logp[1] = logp[0]
    loss, impossible = ctc_loss(
        logp, torch.tensor([[1, 2], [2, 1]]), torch.tensor([3, 3]), torch.tensor([2, 2]), blank=0
    )
    assert loss.tolist() == [0, 0]
    assert impossible == 1


def test_a_repeat_needs_a_frame_of_its_own() -> None:
    logp = torch.zeros(2, 2, 3).log_softmax(-1)
    _, impossible = ctc_loss(
        logp, torch.tensor([[1, 1], [1, 0]]), torch.tensor([2, 2]), torch.tensor([2, 2]), -1
    )
    assert impossible == 1


def test_half_precision_is_summed_in_float32() -> None:
    logp = torch.randn(1, 30, 9).log_softmax(-1).to(torch.bfloat16).requires_grad_()
    rest = torch.tensor([[1, 2, 3]]), torch.tensor([30]), torch.tensor([3])
    loss, _ = ctc_loss(logp, *rest, blank=0)
    torch.testing.assert_close(loss, ctc_loss(logp.float(), *rest, blank=0)[0])
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("targets", "frames", "labels", "blank", "message"),
    [
        ([[1, 0]], [3], [2], 0, r"target 0 as label 1; .* not blank \(0\)"),
        ([[1, 4]], [3], [2], 0, "target 4 as label 1"),
        ([[1, 2]], [0], [2], 0, "frame length 0"),
        ([[1, 2]], [3], [3], 0, "label length 3"),
        ([[1, 2], [1, 2]], [3], [2], 0, "pad both to one batch"),
        ([[1, 2]], [3], [2], 4, "blank 4 with 4 classes"),
    ],
)
def test_wrong_batches_are_told_in_one_line(
    targets: list[list[int]], frames: list[int], labels: list[int], blank: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ctc_loss(
            torch.zeros(1, 3, 4), torch.tensor(targets), torch.tensor(frames), torch.tensor(labels), blank
        )
