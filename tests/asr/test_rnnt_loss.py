"""The transducer loss against path enumeration, torchaudio and k2."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.losses import rnnt
from asr.losses.rnnt import rnnt_loss, transducer_loss_from_logp
from lm.errors import ConfigError, DataError


def enumerated_loss(blank_logp: Tensor, label_logp: Tensor) -> Tensor:
    """One utterance, (T, U+1) and (T, U): every order of T-1 blanks and U labels, then the last blank."""
    frames, labels = label_logp.shape
    paths = []
    for places in itertools.combinations(range(frames - 1 + labels), labels):
        t = u = 0
        total = blank_logp[frames - 1, labels]
        for step in range(frames - 1 + labels):
            if step in places:
                total, u = total + label_logp[t, u], u + 1
            else:
                total, t = total + blank_logp[t, u], t + 1
        paths.append(total)
    return -torch.logsumexp(torch.stack(paths), 0)


def random_arcs(seed: int, batch: int, frames: int, labels: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    blank = torch.randn(batch, frames, labels + 1, dtype=dtype, generator=generator) - 2
    label = torch.randn(batch, frames, labels, dtype=dtype, generator=generator) - 2
    return blank.requires_grad_(), label.requires_grad_()


def lengths(*values: int) -> Tensor:
    return torch.tensor(values)


def spoil_padding(blank: Tensor, label: Tensor, frames: list[int], labels: list[int], value: float):
    blank, label = blank.detach().clone(), label.detach().clone()
    for row, (t, u) in enumerate(zip(frames, labels, strict=True)):
        blank[row, t:], blank[row, :, u + 1 :] = value, value
        label[row, t:], label[row, :, u:] = value, value
    return blank.requires_grad_(), label.requires_grad_()


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
@pytest.mark.parametrize("labels", [0, 1, 2, 3])
def test_values_and_gradients_are_those_of_all_paths(frames: int, labels: int) -> None:
    blank, label = random_arcs(frames * 7 + labels, 1, frames, labels)
    loss = transducer_loss_from_logp(blank, label, lengths(frames), lengths(labels))
    expected = enumerated_loss(blank[0], label[0])
    torch.testing.assert_close(loss[0], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(loss.sum(), (blank, label)),
        torch.autograd.grad(expected, (blank, label), materialize_grads=True),
        rtol=1e-10,
        atol=1e-12,
    )


@st.composite
def ragged_batches(draw: st.DrawFn):
    sizes = draw(st.lists(st.tuples(st.integers(1, 7), st.integers(0, 6)), min_size=1, max_size=4))
    extra = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    value = draw(st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 0.0]))
    return [t for t, _ in sizes], [u for _, u in sizes], extra, value, draw(st.integers(0, 10**6))


@settings(max_examples=60, deadline=None)
@given(ragged_batches())
def test_a_batch_is_its_utterances_one_by_one_whatever_the_padding_holds(case) -> None:
    frames, labels, (more_t, more_u), value, seed = case
    blank, label = random_arcs(seed, len(frames), max(frames) + more_t, max(labels) + more_u)
    blank, label = spoil_padding(blank, label, frames, labels, value)
    weight = torch.rand(len(frames), dtype=torch.float64) + 0.5
    loss = transducer_loss_from_logp(blank, label, lengths(*frames), lengths(*labels))
    blank_grad, label_grad = torch.autograd.grad((loss * weight).sum(), (blank, label))
    for row, (t, u) in enumerate(zip(frames, labels, strict=True)):
        alone = blank[row : row + 1, :t, : u + 1], label[row : row + 1, :t, :u]
        expected = transducer_loss_from_logp(*alone, lengths(t), lengths(u))
        torch.testing.assert_close(loss[row], expected[0], rtol=1e-12, atol=1e-12)
        whole = torch.autograd.grad(expected.sum() * weight[row], (blank, label))
        torch.testing.assert_close(blank_grad[row], whole[0][row], rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(label_grad[row], whole[1][row], rtol=1e-10, atol=1e-14)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(0, 30), st.floats(0.1, 100))
def test_every_path_spends_all_frames_and_all_labels(
    seed: int, frames: int, labels: int, spread: float
) -> None:
    blank, label = (x.detach() * spread for x in random_arcs(seed, 2, frames, labels, torch.float32))
    blank.requires_grad_(), label.requires_grad_()
    ends = lengths(frames, max(1, frames // 2)), lengths(labels, labels // 2)
    loss = transducer_loss_from_logp(blank, label, *ends)
    blank_grad, label_grad = torch.autograd.grad(loss.sum(), (blank, label))
    torch.testing.assert_close(-blank_grad.sum((1, 2)), ends[0].float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(-label_grad.sum((1, 2)), ends[1].float(), rtol=1e-5, atol=1e-5)
    assert blank_grad.max() <= 0
    assert label_grad.max() <= 0 if labels else True


def test_float32_inputs_lose_no_digits_in_a_long_lattice() -> None:
    blank, label = random_arcs(3, 2, 300, 60, torch.float32)
    ends = lengths(300, 250), lengths(60, 40)
    with torch.no_grad():
        blank -= 6
    loss = transducer_loss_from_logp(blank, label, *ends)
    double = tuple(x.detach().double().requires_grad_() for x in (blank, label))
    expected = transducer_loss_from_logp(*double, *ends)
    assert expected.min() > 1000
    torch.testing.assert_close(loss.double(), expected, rtol=1e-7, atol=0)
    for grad, wanted in zip(
        torch.autograd.grad(loss.sum(), (blank, label)),
        torch.autograd.grad(expected.sum(), double),
        strict=True,
    ):
        torch.testing.assert_close(grad.double(), wanted, rtol=1e-4, atol=1e-7)


def test_gradcheck_of_both_entrances() -> None:
    ends = lengths(3, 4, 1), lengths(2, 0, 2)
    arcs = random_arcs(0, 3, 4, 2)
    assert torch.autograd.gradcheck(lambda b, a: transducer_loss_from_logp(b, a, *ends), arcs)
    logits = torch.randn(3, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[0, 3], [-1, 99], [3, 3]])
    assert torch.autograd.gradcheck(lambda x: rnnt_loss(x, targets, *ends, blank=-1), (logits,))


@pytest.mark.parametrize("backend", ["torch", "torchaudio", "k2"])
def test_closed_arcs_and_impossible_utterances(backend: str) -> None:
    if backend != "torch":
        pytest.importorskip(backend)
    blank, label = (x.detach().float() for x in random_arcs(5, 3, 4, 2))
    blank[0, 1, 1] = label[0, 2, 0] = -math.inf  # both ways into cell (2, 1)
    label[1, :, 0] = -math.inf  # no way to the first label
    blank.requires_grad_(), label.requires_grad_()
    loss = transducer_loss_from_logp(blank, label, lengths(4, 3, 4), lengths(2, 2, 1), backend)
    expected = enumerated_loss(blank[0], label[0])
    torch.testing.assert_close(loss[0], expected)
    assert loss[1] == math.inf
    assert loss[2].isfinite()
    blank_grad, label_grad = torch.autograd.grad(loss.sum(), (blank, label))
    assert blank_grad.isfinite().all()
    assert label_grad.isfinite().all()
    assert label_grad[0, 2, 0] == 0 == blank_grad[0, 1, 1]
    assert not blank_grad[1].any()
    assert not label_grad[1].any()
    torch.testing.assert_close(-blank_grad[0].sum(), torch.tensor(4.0))


def test_a_nan_inside_is_seen_and_stays_in_its_utterance() -> None:
    blank, label = random_arcs(1, 2, 4, 2)
    with torch.no_grad():
        blank[0, 1, 1] = math.nan
    loss = transducer_loss_from_logp(blank, label, lengths(4, 4), lengths(2, 2))
    (blank_grad,) = torch.autograd.grad(loss.sum(), blank)
    assert loss.isnan().tolist() == [True, False]
    assert blank_grad[0].isnan().any()
    assert blank_grad[1].isfinite().all()


@pytest.mark.parametrize("backend", ["torchaudio", "k2"])
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_the_other_backends_sum_the_same_lattice(backend: str, value: float) -> None:
    pytest.importorskip(backend)
    frames, labels = [9, 4, 1, 6], [5, 0, 2, 3]
    arcs = [x.float() for x in random_arcs(8, 4, 11, 6)]
    arcs = spoil_padding(*arcs, frames, labels, value)
    ends = lengths(*frames), lengths(*labels)
    ours = transducer_loss_from_logp(*arcs, *ends)
    theirs = transducer_loss_from_logp(*arcs, *ends, backend)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), arcs), torch.autograd.grad(theirs.sum(), arcs), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("blank", [0, 6, -1])
@pytest.mark.parametrize("other", ["torchaudio", "k2"])
def test_dense_logits_agree_with_the_other_backends(blank: int, other: str) -> None:
    pytest.importorskip(other)
    logits = (torch.randn(3, 8, 5, 7, generator=torch.Generator().manual_seed(2)) * 3).requires_grad_()
    targets = torch.tensor([[1, 2, 3, 4], [5, 5, -1, -1], [-1, -1, -1, -1]])
    ends = lengths(7, 3, 5), lengths(4, 2, 0)
    ours = rnnt_loss(logits, targets, *ends, blank)
    theirs = rnnt_loss(logits, targets, *ends, blank, other)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours_grad, theirs_grad = (torch.autograd.grad(x.sum(), logits)[0] for x in (ours, theirs))
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-4, atol=1e-5)
    assert not ours_grad[:, 7:].any()


def test_dense_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 9, 4, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1, 2, 3], [4, 0, 0]])
    ends = lengths(9, 5), lengths(3, 1)
    whole = rnnt_loss(logits, targets, *ends, blank=5)
    monkeypatch.setattr(rnnt, "_BLOCK_CPU", 50)
    parts = rnnt_loss(logits, targets, *ends, blank=5)
    torch.testing.assert_close(parts, whole, rtol=1e-14, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(parts.sum(), logits),
        torch.autograd.grad(whole.sum(), logits),
        rtol=1e-12,
        atol=1e-15,
    )


def test_dense_garbage_in_the_padding_is_ignored() -> None:
    logits = torch.randn(2, 6, 4, 5)
    logits[1, 3:], logits[1, :, 2:] = math.nan, math.inf
    logits.requires_grad_()
    loss = rnnt_loss(logits, torch.tensor([[1, 2, 3], [2, 7, 7]]), lengths(6, 3), lengths(3, 1), blank=0)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all()
    assert grad.isfinite().all()
    assert grad[1, :3, :2].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 6, 4, 5).to(dtype).requires_grad_()
    targets, ends = torch.tensor([[1, 2, 3], [2, 4, 0]]), (lengths(6, 3), lengths(3, 1))
    loss = rnnt_loss(logits, targets, *ends, blank=0)
    torch.testing.assert_close(loss, rnnt_loss(logits.float(), targets, *ends, blank=0))
    assert loss.dtype == torch.float32
    assert torch.autograd.grad(loss.sum(), logits)[0].dtype == dtype


def call(**changes: object) -> Tensor:
    arguments: dict[str, object] = {
        "logits": torch.zeros(2, 4, 3, 5),
        "targets": torch.tensor([[1, 2], [3, 4]]),
        "frame_lengths": lengths(4, 2),
        "label_lengths": lengths(2, 1),
        "blank": 0,
    }
    return rnnt_loss(**(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_lengths": lengths(4, 0)}, "utterance 1 .* frame length 0; expected 1 to 4"),
        ({"frame_lengths": lengths(5, 1)}, "utterance 0 .* frame length 5"),
        ({"label_lengths": lengths(2, 3)}, "utterance 1 .* label length 3; expected 0 to 2"),
        ({"label_lengths": torch.ones(2)}, "label lengths of type torch.float32"),
        ({"frame_lengths": lengths(4)}, r"frame lengths of shape \(1,\)"),
        ({"targets": torch.tensor([[1, 5], [3, 4]])}, "utterance 0 .* target 5 as label 1"),
        ({"targets": torch.tensor([[1, 2], [0, 4]])}, r"target 0 .* not blank \(0\)"),
        ({"targets": torch.zeros(2, 3, dtype=torch.long)}, "logits of shape"),
        ({"blank": 5}, "blank 5 with 5 logits"),
    ],
)
def test_wrong_batches_are_told_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call(**changes)


def test_wrong_arc_shapes() -> None:
    with pytest.raises(DataError, match="one blank score more"):
        transducer_loss_from_logp(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), lengths(2), lengths(2))


def test_backends_that_do_not_exist_or_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="torch, torchaudio or k2"):
        call(backend="warp")
    monkeypatch.setitem(sys.modules, "k2", None)
    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    with pytest.raises(ConfigError, match="k2 wheel for your torch"):
        call(backend="k2")
    with pytest.raises(ConfigError, match=r"pip install 'vocative\[torchaudio\]'"):
        call(backend="torchaudio")
