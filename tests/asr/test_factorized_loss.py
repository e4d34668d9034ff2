"""The factorized loss and the blank joint against the tensors they avoid."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.losses import factorized
from asr.losses.factorized import Variant, blank_joint, dense_factorized_logits, factorized_loss
from asr.losses.rnnt import rnnt_loss
from lm.errors import DataError

VARIANTS: tuple[Variant, ...] = ("fnt", "mhat")
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def random_batch(
    seed: int, frames: list[int], labels: list[int], size: int, dtype: torch.dtype, spread: float = 2.0
) -> Batch:
    """Blank logits, acoustic scores, LM log probabilities, targets and both lengths."""
    generator = torch.Generator().manual_seed(seed)
    batch, t, u = len(frames), max(frames), max(labels)
    blank, acoustic, lm = (
        torch.randn(shape, generator=generator, dtype=torch.float64) * spread
        for shape in ((batch, t, u + 1), (batch, t, size), (batch, u + 1, size))
    )
    targets = torch.randint(size, (batch, u), generator=generator)
    scores = (x.to(dtype).requires_grad_() for x in (blank, acoustic, lm.log_softmax(-1)))
    return (*scores, targets, torch.tensor(frames), torch.tensor(labels))  # type: ignore[return-value]


def dense_loss(
    blank: Tensor,
    acoustic: Tensor,
    lm: Tensor,
    *rest: Tensor,
    lm_scale: float = 1.0,
    variant: Variant = "fnt",
) -> Tensor:
    logits = dense_factorized_logits(blank, acoustic, lm, lm_scale, variant)
    return rnnt_loss(logits, *rest, blank=acoustic.shape[-1])


def as_double(batch: Batch) -> Batch:
    scores = (x.detach().double().requires_grad_() for x in batch[:3])
    return (*scores, *batch[3:])  # type: ignore[return-value]


def assert_same(
    loss: Tensor, batch: Batch, expected: Tensor, wanted: Batch, rtol: float, atol: float
) -> None:
    """Values and the gradients of all three scores, each utterance weighted differently."""
    weight = torch.linspace(0.5, 2, len(loss), dtype=loss.dtype)
    torch.testing.assert_close(loss.to(expected.dtype), expected, rtol=rtol, atol=atol)
    ours = torch.autograd.grad((loss * weight).sum(), batch[:3])
    theirs = torch.autograd.grad((expected * weight).sum(), wanted[:3])
    for grad, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(grad.to(reference.dtype), reference, rtol=rtol, atol=atol)


def test_the_dense_logits_are_the_sum_and_blank() -> None:
    blank, acoustic, lm, *_ = random_batch(0, [3], [2], 4, torch.float64)
    dense = dense_factorized_logits(blank, acoustic, lm, 0.3)
    assert dense.shape == (1, 3, 3, 5)
    assert dense[0, 2, 1, 3] == acoustic[0, 2, 3] + 0.3 * lm[0, 1, 3]
    assert dense[0, 2, 1, 4] == blank[0, 2, 1]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=4),
    st.integers(1, 9),
    st.sampled_from([1.0, 0.4, 1.7, 0.0]),
    st.sampled_from(VARIANTS),
    st.integers(0, 10**6),
)
def test_it_is_the_dense_loss(
    sizes: list[tuple[int, int]], vocabulary: int, scale: float, variant: Variant, seed: int
) -> None:
    batch = random_batch(seed, [t for t, _ in sizes], [u for _, u in sizes], vocabulary, torch.float64)
    expected = dense_loss(*batch, lm_scale=scale, variant=variant)
    loss = factorized_loss(*batch, lm_scale=scale, variant=variant)
    assert_same(loss, batch, expected, batch, 1e-9, 1e-11)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 3), st.sampled_from(VARIANTS), st.integers(0, 10**6))
def test_it_is_the_sum_over_all_paths(frames: int, labels: int, variant: Variant, seed: int) -> None:
    """Every order of T blanks and U labels with a blank at the end, from the equations cell by cell."""
    batch = random_batch(seed, [frames], [labels], 3, torch.float64)
    blank, acoustic, lm, targets = (x.detach()[0] for x in batch[:4])
    total = 0.0
    for spoken in itertools.combinations(range(frames + labels - 1), labels):
        t, u, p = 0, 0, 1.0
        for step in range(frames + labels):
            label_mass = (acoustic[t] + lm[u]).exp()
            own = blank[t, u].exp()
            waits = float(own / (own + (label_mass.sum() if variant == "fnt" else 1.0)))
            if step in spoken:
                p *= (1 - waits) * float(label_mass[targets[u]] / label_mass.sum())
                u += 1
            else:
                p *= waits
                t += 1
        total += p
    assert float(factorized_loss(*batch, variant=variant).detach()) == pytest.approx(
        -math.log(total), rel=1e-9
    )


def test_mhat_hears_no_constant_of_the_language_model() -> None:
    """What is the same for all labels decides in FNT whether to speak, and nothing in MHAT."""
    batch = random_batch(3, [5, 3], [2, 3], 4, torch.float64)
    moved: Batch = (*batch[:2], (batch[2] - 1.5).detach(), *batch[3:])  # type: ignore[assignment]
    for variant, same in (("fnt", False), ("mhat", True)):
        losses = [factorized_loss(*each, variant=variant) for each in (batch, moved)]  # type: ignore[arg-type]
        assert torch.allclose(*losses) is same


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_garbage_in_the_padding_is_ignored(value: float, variant: Variant) -> None:
    frames, labels = [5, 2, 4], [1, 3, 0]
    clean = random_batch(4, frames, labels, 6, torch.float64)
    blank, acoustic, lm, targets = (x.detach().clone() for x in clean[:4])
    for row, (t, u) in enumerate(zip(frames, labels, strict=True)):
        acoustic[row, t:], lm[row, u + 1 :], targets[row, u:] = value, value, 99
        blank[row, t:], blank[row, :, u + 1 :] = value, value
    scores = tuple(x.requires_grad_() for x in (blank, acoustic, lm))
    spoiled: Batch = (*scores, targets, *clean[4:])  # type: ignore[assignment]
    expected = factorized_loss(*clean, variant=variant)
    assert_same(factorized_loss(*spoiled, variant=variant), spoiled, expected, clean, 1e-12, 1e-14)


def test_gradcheck() -> None:
    batch = random_batch(1, [3, 2], [1, 2], 4, torch.float64)

    def loss(*scores: Tensor) -> Tensor:
        return factorized_loss(*scores, *batch[3:], lm_scale=0.7)

    assert torch.autograd.gradcheck(loss, batch[:3])


def peaked_batch(gap: float) -> Batch:
    """Float32 scores where frame 1 and label position 1 insist on different labels, `gap` nats apart."""
    batch = random_batch(7, [4, 4], [3, 2], 8, torch.float32, spread=1.0)
    blank, acoustic, lm, *rest = (x.detach().clone() for x in batch)
    acoustic[:, 1, 2] += gap / 2
    lm[:, 1, 5] += gap / 2
    blank[:, 1] -= 30
    scores = (blank, acoustic, lm.log_softmax(-1))
    return (*(x.requires_grad_() for x in scores), *rest)  # type: ignore[return-value]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("gap", [60.0, 150.0, 170.0, 200.0, 400.0])
def test_products_that_underflow_are_done_again_exactly(gap: float, variant: Variant) -> None:
    batch = peaked_batch(gap)
    wanted = as_double(batch)
    expected = dense_loss(*wanted, variant=variant)
    assert_same(factorized_loss(*batch, variant=variant), batch, expected, wanted, 2e-5, 2e-5)
    # The cell is a trap: what the plain product keeps of its sum of exponentials.
    acoustic, lm = batch[1][0, 1].detach(), batch[2][0, 1].detach()
    product = (acoustic - acoustic.max()).exp() @ (lm - lm.max()).exp()
    double = ((acoustic + lm).double() - acoustic.max().double() - lm.max().double()).exp().sum()
    assert (abs(product.double() / double - 1) > 1e-4) == (gap >= 200)


def test_only_lost_cells_are_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    original = factorized._cell_logits

    def counted(*arguments):
        done.append(torch.stack(arguments[3], 1).tolist())
        return original(*arguments)

    monkeypatch.setattr(factorized, "_cell_logits", counted)
    factorized_loss(*random_batch(1, [4, 3], [3, 2], 8, torch.float32))
    assert done == []
    factorized_loss(*peaked_batch(300.0))
    assert done == [[[0, 1, 1], [1, 1, 1]]]


def test_many_lost_cells_are_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch(3, [6, 5], [4, 2], 7, torch.float32, spread=150.0)
    wanted = as_double(batch)
    monkeypatch.setattr(factorized, "_BLOCK_CPU", 20)
    assert_same(factorized_loss(*batch), batch, dense_loss(*wanted), wanted, 2e-5, 2e-5)


def test_labels_the_language_model_forbids() -> None:
    batch = random_batch(5, [5, 4], [3, 2], 6, torch.float64)
    with torch.no_grad():
        batch[2].masked_fill_(
            torch.rand(batch[2].shape, generator=torch.Generator().manual_seed(1)) < 0.3, -math.inf
        )
        batch[2].scatter_(2, torch.nn.functional.pad(batch[3], (0, 1))[..., None], -1.0)
    loss, expected = factorized_loss(*batch), dense_loss(*batch)
    assert expected.isfinite().all()
    assert batch[2].isinf().any()
    assert_same(loss, batch, expected, batch, 1e-9, 1e-11)


@pytest.mark.parametrize("size", [1, 30, 70, 10**6])
def test_blocks_make_no_difference(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch(6, [5, 2, 7, 3, 3], [2, 4, 0, 1, 3], 6, torch.float64)
    expected = dense_loss(*batch)
    monkeypatch.setattr(factorized, "_BLOCK_CPU", size)
    assert_same(factorized_loss(*batch), batch, expected, batch, 1e-9, 1e-11)


def test_autocast_changes_nothing() -> None:
    batch = random_batch(2, [6, 4], [3, 2], 40, torch.float32)
    plain = factorized_loss(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        cast = factorized_loss(*batch)
        grads = torch.autograd.grad(cast.sum(), batch[:3])
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)
    torch.testing.assert_close(grads, torch.autograd.grad(plain.sum(), batch[:3]), rtol=0, atol=0)


def test_bfloat16_scores_are_summed_in_float32() -> None:
    batch = random_batch(2, [6, 4], [3, 2], 40, torch.bfloat16)
    wanted = as_double(batch)
    loss, expected = factorized_loss(*batch), dense_loss(*wanted)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    for grad, reference in zip(
        torch.autograd.grad(loss.sum(), batch[:3]),
        torch.autograd.grad(expected.sum(), wanted[:3]),
        strict=True,
    ):
        assert grad.dtype == torch.bfloat16
        torch.testing.assert_close(grad.double(), reference, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("backend", ["torchaudio", "k2"])
def test_other_backends(backend: str) -> None:
    pytest.importorskip(backend)
    batch = random_batch(9, [6, 4], [3, 2], 11, torch.float32)
    assert_same(factorized_loss(*batch, backend=backend), batch, factorized_loss(*batch), batch, 1e-4, 1e-5)


def test_nothing_of_the_dense_size_is_kept_for_backward() -> None:
    batch = random_batch(0, [50, 50], [20, 20], 300, torch.float32)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        factorized_loss(*batch)
    inputs = sum(x.untyped_storage().nbytes() for x in batch[:3])
    cells = batch[0].untyped_storage().nbytes()
    assert sum(kept.values()) < inputs + 12 * cells < 300 * cells / 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: torch.zeros(2, 6, 5)}, "leave blank out"),
        ({3: torch.full((2, 3), 40)}, r"target 40 .* an id in 0\.\.39"),
        ({4: torch.tensor([6, 0])}, "utterance 1 .* frame length 0"),
        ({5: torch.tensor([4, 2])}, "utterance 0 .* label length 4"),
    ],
)
def test_wrong_batches_are_told_in_one_line(change: dict[int, Tensor], message: str) -> None:
    batch = random_batch(2, [6, 4], [3, 2], 40, torch.float32)
    with pytest.raises(DataError, match=message):
        factorized_loss(*(change.get(i, x) for i, x in enumerate(batch)))


# ---- the blank joint ---------------------------------------------------------------------------------------


def joint_inputs(dtype: torch.dtype, batch: int = 2, frames: int = 7, labels: int = 3, width: int = 5):
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, frames, width), (batch, labels + 1, width), (width,), (1,))
    return tuple(torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes)


def plain_joint(frame: Tensor, label: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.tanh(frame[:, :, None] + label[:, None]) @ weight + bias


@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_blank_joint_is_the_plain_formula(chunk: int | None, dtype: torch.dtype, tolerance: float) -> None:
    inputs = joint_inputs(dtype)
    ours, expected = blank_joint(*inputs, chunk), plain_joint(*inputs)
    grad = torch.randn(ours.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize("scale", [0.001, 1.0, 100.0])
def test_blank_joint_of_small_and_of_saturated_values(scale: float) -> None:
    frame, label, weight, bias = joint_inputs(torch.float64, width=64)
    inputs = tuple(x.detach().float().requires_grad_() for x in (scale * frame, scale * label, weight, bias))
    double = tuple(x.detach().double().requires_grad_() for x in inputs)
    ours, expected = blank_joint(*inputs), plain_joint(*double)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=2e-6)
    for grad, wanted in zip(
        torch.autograd.grad(ours.sum(), inputs), torch.autograd.grad(expected.sum(), double), strict=True
    ):
        torch.testing.assert_close(grad.double(), wanted, rtol=1e-5, atol=2e-5)


def test_blank_joint_gradcheck_and_autocast() -> None:
    assert torch.autograd.gradcheck(lambda *x: blank_joint(*x, 2), joint_inputs(torch.float64, 2, 3, 1, 4))
    inputs = joint_inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        cast = blank_joint(*inputs)
        grads = torch.autograd.grad(cast.sum(), inputs)
    torch.testing.assert_close(cast, blank_joint(*inputs), rtol=0, atol=0)
    torch.testing.assert_close(grads, torch.autograd.grad(blank_joint(*inputs).sum(), inputs), rtol=0, atol=0)


def test_blank_joint_and_loss_train_together() -> None:
    batch = random_batch(2, [6, 4], [3, 2], 9, torch.float64)
    inputs = joint_inputs(torch.float64, 2, 6, 3)
    rest = batch[1:]
    ours = factorized_loss(blank_joint(*inputs, 2), *rest).sum()
    expected = dense_loss(plain_joint(*inputs), *rest).sum()
    torch.testing.assert_close(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs))


def test_blank_joint_errors() -> None:
    frame, label, weight, bias = joint_inputs(torch.float32)
    with pytest.raises(DataError, match="same width"):
        blank_joint(frame, label, weight[:-1], bias)
    with pytest.raises(DataError, match="chunk of 0 frames"):
        blank_joint(frame, label, weight, bias, chunk=0)
