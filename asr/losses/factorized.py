"""The exact loss of a factorized transducer without its (B, T, U+1, V+1) tensor.

The vocabulary logits of a factorized transducer (Chen et al., arXiv 2110.01500) are a sum of a part that
depends on the frame alone and a language model's log probabilities, which depend on the labels alone:

    z[t, u, v] = a[t, v] + mu * l[u, v]      sum_v exp z[t, u, v] = sum_v exp a[t, v] * exp(mu * l[u, v])

so the normalisers of all cells are one matrix product, and beside them the lattice needs no more than the
logits of blank and of the next label. Two outputs are made of it:

    fnt     P(. | t, u) = softmax([blank; z])
    mhat    P(blank) = sigmoid(blank), P(v) = (1 - P(blank)) softmax_V(z)     (Meng et al., arXiv 2210.17049)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from asr.losses.lattice import before
from asr.losses.rnnt import (
    Backend,
    checked_lengths,
    checked_targets,
    exp_,
    sum_dtype,
    transducer_loss_from_logp,
)
from lm.errors import DataError

Variant = Literal["fnt", "mhat"]

# Elements worked on at a time: what stays in cache, or keeps a GPU busy.
_BLOCK_CPU = 1 << 21
_BLOCK_GPU = 1 << 26
_HIDDEN_CPU = 1 << 19


def factorized_loss(
    blank_logit: Tensor,
    acoustic: Tensor,
    lm_logp: Tensor,
    targets: Tensor,
    frame_lengths: Tensor,
    label_lengths: Tensor,
    lm_scale: float = 1.0,
    backend: Backend = "torch",
    variant: Variant = "fnt",
) -> Tensor:
    """Transducer loss of each utterance, in nats, whose labels score acoustic + lm_scale * lm.

    Works in float32 (float64 if any input is) also under autocast. Memory is that of the gradients, of a few
    (B, T, U+1) tensors and of one block of utterances. What lies beyond an utterance's lengths is never used.
    On CUDA the products follow `torch.set_float32_matmul_precision`: its default keeps them exact.

    Args:
        blank_logit: (B, T, U+1), z^B.
        acoustic: (B, T, V), unnormalised scores of the labels in each frame.
        lm_logp: (B, U+1, V), log probabilities of the labels after u labels.
        targets: (B, U), label ids; anything may stand beyond an utterance's labels.
        frame_lengths: (B,), frames of each utterance, 1..T.
        label_lengths: (B,), labels of each utterance, 0..U.
        lm_scale: the weight mu of the language model.
        backend: how the lattice is summed, see `asr.losses.rnnt.transducer_loss_from_logp`.
        variant: whether blank shares the labels' softmax or has a sigmoid of its own.

    Returns:
        (B,), float64 for float64 inputs, else float32; the gradient reaches all three score tensors.

    Raises:
        DataError: shapes that do not fit, a length or a target out of range.
    """
    frames, labels, targets = _checked(blank_logit, acoustic, lm_logp, targets, frame_lengths, label_lengths)
    blank_logp, label_logp = _FactorizedLogp.apply(  # type: ignore[no-untyped-call]
        blank_logit, acoustic, lm_logp, targets, frames, labels, float(lm_scale), variant
    )
    return transducer_loss_from_logp(blank_logp, label_logp, frames, labels, backend)


def dense_factorized_logits(
    blank_logit: Tensor, acoustic: Tensor, lm_logp: Tensor, lm_scale: float = 1.0, variant: Variant = "fnt"
) -> Tensor:
    """The logits (B, T, U+1, V+1) the loss avoids, blank last: what tests and benchmarks compare it with."""
    vocabulary = acoustic[:, :, None] + lm_scale * lm_logp[:, None]
    if variant == "mhat":
        vocabulary = vocabulary.log_softmax(-1) + F.logsigmoid(-blank_logit)[..., None]
        blank_logit = F.logsigmoid(blank_logit)
    return torch.cat([vocabulary, blank_logit[..., None]], -1)


def blank_joint(
    frame_proj: Tensor, label_proj: Tensor, weight: Tensor, bias: Tensor, chunk: int | None = None
) -> Tensor:
    """Blank logits z^B[t, u] = weight . tanh(frame[t] + label[u]) + bias, never holding (B, T, U+1, H).

    Hidden values are computed in blocks of frames, and again in backward. Works in float32 (float64 if any
    input is) also under autocast.

    Args:
        frame_proj: (B, T, H), projected encoder output.
        label_proj: (B, U+1, H), projected output of the blank predictor.
        weight: (H,).
        bias: one number, of shape () or (1,).
        chunk: frames a block; by default as many as fit a core's cache (or keep a GPU busy).

    Returns:
        (B, T, U+1).

    Raises:
        DataError: shapes that do not fit, or a chunk below 1.
    """
    batch, _, width = frame_proj.shape
    if label_proj.shape[::2] != (batch, width) or weight.shape != (width,) or bias.numel() != 1:
        raise DataError(
            f"blank joint of shapes {[tuple(x.shape) for x in (frame_proj, label_proj, weight, bias)]}",
            "(B, T, H), (B, U+1, H), (H,) and one number",
            "project both sides to the same width",
        )
    if chunk is None:
        size = _BLOCK_GPU if frame_proj.is_cuda else _HIDDEN_CPU
        chunk = max(1, size // max(1, label_proj.numel()))
    if chunk < 1:
        raise DataError(f"a chunk of {chunk} frames", "1 or more", "leave it out for the default")
    dtype = sum_dtype(frame_proj, label_proj, weight, bias)
    inputs = (x.to(dtype) for x in (frame_proj, label_proj, weight, bias.reshape(())))
    logits: Tensor = _BlankJoint.apply(*inputs, chunk)  # type: ignore[no-untyped-call]
    return logits


def _checked(
    blank_logit: Tensor, acoustic: Tensor, lm_logp: Tensor, targets: Tensor, frames: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths and targets as the losses want them; raises DataError."""
    batch, max_frames, width = blank_logit.shape
    size = acoustic.shape[-1]
    wanted = ((batch, max_frames, size), (batch, width, size), (batch, width - 1))
    if (acoustic.shape, lm_logp.shape, targets.shape) != wanted:
        raise DataError(
            f"shapes {[tuple(x.shape) for x in (blank_logit, acoustic, lm_logp, targets)]}",
            "blank (B, T, U+1), acoustic (B, T, V), language model (B, U+1, V) and targets (B, U)",
            "leave blank out of the vocabulary scores",
        )
    frames, labels = checked_lengths(frames, labels, blank_logit.shape)
    return frames, labels, checked_targets(targets, labels, size)


class _Block(NamedTuple):
    """Some utterances, cut to the longest of them."""

    rows: slice
    frames: int
    width: int


def _blocks(frames: Tensor, labels: Tensor, vocabulary: int, device: torch.device) -> Iterator[_Block]:
    """Neighbouring utterances together while their acoustic scores fit the block size."""
    limit = (_BLOCK_GPU if device.type == "cuda" else _BLOCK_CPU) // vocabulary
    lengths, start, longest = frames.tolist(), 0, 0
    for row, length in enumerate([*lengths, limit + 1]):
        if row > start and (row + 1 - start) * max(longest, length) > limit:
            yield _Block(slice(start, row), longest, int(labels[start:row].max()) + 1)
            start, longest = row, 0
        longest = max(longest, length)


def _peak_and_exp(
    scores: Tensor, lengths: Tensor, dtype: torch.dtype, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Largest score of each row (b, n, 1) and the exponentials relative to it (b, n, V).

    Rows in the padding get 0 and ones, whatever stood there: finite, so that a zero gradient stays zero.
    """
    scores = scores.to(dtype) if scale == 1.0 else scores.to(dtype) * scale
    peak = scores.amax(-1, keepdim=True)
    relative = exp_(scores - peak)
    if int(lengths.min()) < scores.shape[1]:
        padding = ~before(lengths, scores.shape[1], scores.device)[..., None]
        peak.masked_fill_(padding, 0)
        relative.masked_fill_(padding, 1)
    return peak, relative


def _without_padding(blank_logit: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
    """Blank logits with 0 beyond the lengths."""
    rows = before(frames, blank_logit.shape[1], blank_logit.device)
    columns = before(labels + 1, blank_logit.shape[2], blank_logit.device)
    return torch.where(rows[:, :, None] & columns[:, None], blank_logit, 0)


def _parts(cells: Tensor, vocabulary: int) -> Iterator[tuple[Tensor, ...]]:
    """Indices (b, t, u) of some cells at a time, few enough to hold all their logits."""
    step = max(1, _BLOCK_CPU // vocabulary)
    for start in range(0, len(cells), step):
        yield cells[start : start + step].unbind(1)


def _cell_logits(
    acoustic: Tensor, lm_logp: Tensor, scale: float, cells: tuple[Tensor, ...], dtype: torch.dtype
) -> Tensor:
    """(n, V), the vocabulary logits of single cells."""
    row, t, u = cells
    return acoustic[row, t].to(dtype) + scale * lm_logp[row, u].to(dtype)


class _FactorizedLogp(torch.autograd.Function):
    """The two log probabilities of every cell; backward computes the exponentials again."""

    @staticmethod
    def forward(
        ctx: Any,
        blank_logit: Tensor,
        acoustic: Tensor,
        lm_logp: Tensor,
        targets: Tensor,
        frames: Tensor,
        labels: Tensor,
        lm_scale: float,
        variant: Variant,
    ) -> tuple[Tensor, Tensor]:
        dtype, device = sum_dtype(blank_logit, acoustic, lm_logp), acoustic.device
        blank_logit = _without_padding(blank_logit.to(dtype), frames, labels)
        batch, max_frames, width = blank_logit.shape
        mass = blank_logit.new_ones(blank_logit.shape)
        frame_peak, label_peak = mass.new_zeros(batch, max_frames, 1), mass.new_zeros(batch, 1, width)
        with torch.autocast(device.type, enabled=False):
            for at, t, u in _blocks(frames, labels, acoustic.shape[2], device):
                frame_peak[at, :t], by_frame = _peak_and_exp(acoustic[at, :t], frames[at], dtype)
                peak, by_label = _peak_and_exp(lm_logp[at, :u], labels[at] + 1, dtype, lm_scale)
                label_peak[at, :, :u] = peak.mT
                torch.bmm(by_frame, by_label.mT, out=mass[at, :t, :u])
        # Every product below `tiny` is lost: up to V * tiny of the sum, which must stay within its rounding.
        limits = torch.finfo(dtype)
        lost = (mass < acoustic.shape[2] * limits.tiny / limits.eps).nonzero()
        log_mass = mass.log_().add_(frame_peak).add_(label_peak)
        for cells in _parts(lost, acoustic.shape[2]):
            log_mass[cells] = _cell_logits(acoustic, lm_logp, lm_scale, cells, dtype).logsumexp(-1)
        log_norm = torch.logaddexp(blank_logit, log_mass, out=log_mass) if variant == "fnt" else log_mass
        ctx.save_for_backward(
            blank_logit, acoustic, lm_logp, targets, frames, labels, log_norm, frame_peak, label_peak, lost
        )
        ctx.lm_scale, ctx.variant = lm_scale, variant
        index = targets[:, None].expand(-1, max_frames, -1)
        label_logp = acoustic.gather(2, index).to(dtype) - log_norm[:, :, :-1]
        label_logp += lm_scale * lm_logp[:, :-1].gather(2, targets[..., None]).to(dtype).mT
        if variant == "mhat":
            return F.logsigmoid(blank_logit), label_logp.add_(F.logsigmoid(-blank_logit[:, :, :-1]))
        return blank_logit - log_norm, label_logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, blank_grad: Tensor, label_grad: Tensor) -> tuple[Tensor | None, ...]:
        blank_logit, acoustic, lm_logp, targets, frames, labels, log_norm, *peaks, lost = ctx.saved_tensors
        scale, device, dtype = ctx.lm_scale, acoustic.device, log_norm.dtype
        # d loss / d z[t,u,k] is spent[t,u] * P(k|t,u) and the gradient of what was picked. P of a label is a
        # product of three: one factor of the frame, one of the label, and what depends on both. Where blank has a
        # sigmoid of its own, P is that among the labels, and blank's gradient does not go through their sum.
        emitted = F.pad(label_grad, (0, 1)).neg_()
        alone = ctx.variant == "mhat"
        spent = emitted if alone else emitted - blank_grad
        both = torch.add(*peaks).sub_(log_norm).exp_().mul_(spent)
        both[lost.unbind(1)] = 0
        acoustic_grad, lm_grad = torch.empty_like(acoustic), torch.empty_like(lm_logp)
        with torch.autocast(device.type, enabled=False):
            for at, t, u in _blocks(frames, labels, acoustic.shape[2], device):
                _, by_frame = _peak_and_exp(acoustic[at, :t], frames[at], dtype)
                _, by_label = _peak_and_exp(lm_logp[at, :u], labels[at] + 1, dtype, scale)
                picked, label = label_grad[at, :t, : u - 1], targets[at, : u - 1]
                to_label = torch.bmm(both[at, :t, :u].mT, by_frame).mul_(by_label)
                to_label[:, :-1].scatter_add_(2, label[..., None], picked.sum(1)[..., None])
                to_frame = torch.bmm(both[at, :t, :u], by_label).mul_(by_frame)
                to_frame.scatter_add_(2, label[:, None].expand(-1, t, -1), picked)
                acoustic_grad[at, :t], acoustic_grad[at, t:] = to_frame, 0
                lm_grad[at, :u], lm_grad[at, u:] = to_label, 0
        for cells in _parts(lost[spent[lost.unbind(1)] != 0], acoustic.shape[2]):
            logits = _cell_logits(acoustic, lm_logp, scale, cells, dtype)
            share = logits.sub_(log_norm[cells][:, None]).exp_().mul_(spent[cells][:, None])
            acoustic_grad.index_put_(cells[:2], share.to(acoustic_grad.dtype), accumulate=True)
            lm_grad.index_put_(cells[::2], share.to(lm_grad.dtype), accumulate=True)
        blank_p = blank_logit.sigmoid() if alone else (blank_logit - log_norm).exp_()
        blank_grad = blank_p.mul_(emitted - blank_grad).add_(blank_grad)
        return blank_grad, acoustic_grad, lm_grad.mul_(scale), *[None] * 5


class _BlankJoint(torch.autograd.Function):
    """tanh(frame + label) . weight + bias in blocks of frames.

    Written with s = sigmoid(2x): tanh(x) = 2s - 1, and its derivative is 4(s - s^2). That is several times
    faster than torch.tanh; each hidden value is rounded as a number near 1 is.
    """

    @staticmethod
    def forward(ctx: Any, frame: Tensor, label: Tensor, weight: Tensor, bias: Tensor, chunk: int) -> Tensor:
        frame, label = 2 * frame, 2 * label
        ctx.save_for_backward(frame, label, weight)
        ctx.chunk = chunk
        logits = frame.new_empty(*frame.shape[:2], label.shape[1])
        with torch.autocast(frame.device.type, enabled=False):
            for start in range(0, frame.shape[1], chunk):
                part = slice(start, start + chunk)
                hidden = (frame[:, part, None] + label[:, None]).sigmoid_()
                logits[:, part] = hidden @ (2 * weight)
        return logits.add_(bias - weight.sum())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        frame, label, weight = ctx.saved_tensors
        to_frame, to_label, to_weight = (torch.zeros_like(x) for x in (frame, label, weight))
        with torch.autocast(frame.device.type, enabled=False):
            for start in range(0, frame.shape[1], ctx.chunk):
                part = slice(start, start + ctx.chunk)
                hidden = (frame[:, part, None] + label[:, None]).sigmoid_()
                to_weight += grad[:, part].reshape(-1) @ hidden.flatten(0, 2)
                hidden.addcmul_(hidden, hidden, value=-1).mul_(grad[:, part, :, None])
                to_frame[:, part] = hidden.sum(2)
                to_label += hidden.sum(1)
        total = grad.sum()
        return to_frame.mul_(4 * weight), to_label.mul_(4 * weight), to_weight.mul_(2) - total, total, None
