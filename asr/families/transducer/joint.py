"""The joint network of a transducer, without its (B, T, U+1, V+1) tensor in training.

    z[t, u] = W_o tanh(W_e h_t + W_p g_u) + b        over V labels and blank, blank last

The lattice needs two numbers a cell, the log probabilities of blank and of the next label. They are computed in
blocks of cells, so that nothing larger than a block is ever held. Backward computes once more only the cells that
paths pass: on a CPU those whose share of the mass is below the rounding of a float are left out.
In a trained model that is most of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from asr.losses.rnnt import checked_lengths, checked_targets, sum_dtype

# Elements worked on at a time: what stays in a core's cache, or keeps a GPU busy.
_BLOCK_CPU = 1 << 20
_BLOCK_GPU = 1 << 27

# No logit is larger than this, in binary digits, where the peak of each cell is not looked for: a sum of 2¹⁷ of
# them still is a float32.
_SAFE_LOGIT = 110.0
_LOG2_E = 1.0 / math.log(2.0)

# Cells worth a call of their own, even if some of them hold nothing.
_SMALL = 256


class Joint(nn.Module):
    """Joins encoder frames of width D with what a predictor gives, both in width J, and scores V + 1 symbols."""

    def __init__(self, encoder_width: int, width: int, num_tokens: int) -> None:
        super().__init__()
        self.frame = nn.Linear(encoder_width, width)
        self.output = nn.Linear(width, num_tokens + 1)

    def forward(self, frame: Tensor, label: Tensor) -> Tensor:
        """Logits ``(..., V + 1)``, blank last, of ``W_e h`` and ``W_p g`` ``(..., J)``, which broadcast."""
        logits: Tensor = self.output(torch.tanh(frame + label))
        return logits

    def lattice_logp(
        self, frame: Tensor, label: Tensor, targets: Tensor, frame_lengths: Tensor, label_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log probabilities of blank ``(B, T, U + 1)`` and of the next label ``(B, T, U)`` in every cell.

        Under autocast the matrix products work in its precision; all else is float32 (float64 if the scores
        are). What lies beyond an utterance's lengths must be finite and is given as anything.

        Args:
            frame: ``(B, T, J)``, W_e h.
            label: ``(B, U + 1, J)``, W_p g.
            targets: ``(B, U)``; anything may stand beyond an utterance's labels.
            frame_lengths: ``(B,)``, frames of each utterance, 1..T.
            label_lengths: ``(B,)``, labels of each utterance, 0..U.

        Raises:
            DataError: a length or a target out of range.
        """
        size = len(self.output.bias)
        frames, labels = checked_lengths(frame_lengths, label_lengths, (*frame.shape[:2], label.shape[1]))
        targets = checked_targets(targets, labels, size, blank=size - 1)
        device = frame.device.type
        dtype = sum_dtype(frame, label, self.output.weight)
        products = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
        scores = (x.to(dtype) for x in (frame, label, self.output.weight, self.output.bias))
        blank_logp, label_logp = _LatticeLogp.apply(  # type: ignore[no-untyped-call]
            *scores, targets, frames, labels, products
        )
        return blank_logp, label_logp


class _Block(NamedTuple):
    """Some frames of some utterances, with some neighbouring label positions."""

    rows: slice
    frames: slice
    labels: slice


def _blocks(frames: Tensor, labels: Tensor, weight: Tensor) -> Iterator[_Block]:
    """Neighbouring utterances together while their cells fit a block, or parts of one utterance."""
    limit = (_BLOCK_GPU if weight.is_cuda else _BLOCK_CPU) // max(weight.shape)
    lengths, widths = frames.tolist(), (labels + 1).tolist()
    start = 0
    while start < len(lengths):
        end, longest, width = start + 1, lengths[start], widths[start]
        while end < len(lengths):
            taller, wider = max(longest, lengths[end]), max(width, widths[end])
            if (end + 1 - start) * taller * wider > limit:
                break
            end, longest, width = end + 1, taller, wider
        step = max(1, limit // ((end - start) * width))
        for t in range(0, longest, step):
            yield _Block(slice(start, end), slice(t, min(t + step, longest)), slice(0, width))
        start = end


def _passed(blank_grad: Tensor, label_grad: Tensor, weight: Tensor) -> Iterator[_Block]:
    """Blocks that hold every cell whose gradient does not vanish beside the utterance's largest."""
    limit = _BLOCK_CPU // max(weight.shape)
    share = F.pad(label_grad.abs(), (0, 1)).add_(blank_grad.abs())
    least = share.amax((1, 2), keepdim=True).mul_(torch.finfo(share.dtype).eps)
    inside = ~(share <= least)  # so that NaN is inside
    first = inside.int().argmax(2).tolist()
    end = inside.mul(torch.arange(1, inside.shape[2] + 1)).amax(2).tolist()
    for row, band in enumerate(zip(first, end, strict=True)):
        for frames, labels in _rectangles(*band, limit):
            yield _Block(slice(row, row + 1), frames, labels)


def _rectangles(first: list[int], end: list[int], limit: int) -> Iterator[tuple[slice, slice]]:
    """Cover a band of cells, from ``first`` to before ``end`` in each frame; where ``end`` is 0 there are none.

    A rectangle takes in the next frame while it has at most ``limit`` cells, and is small or hardly wider than the
    band in it.
    """
    start, low, high, cells = 0, 0, 0, 0
    for t, (begin, stop) in enumerate(zip(first, end, strict=True)):
        if cells and stop:
            lower, higher, wanted = min(low, begin), max(high, stop), cells + stop - begin
            if (t + 1 - start) * (higher - lower) <= min(limit, max(_SMALL, 1.25 * wanted)):
                low, high, cells = lower, higher, wanted
                continue
        if cells:
            yield slice(start, t), slice(low, high)
        start, low, high, cells = t, begin, stop, stop - begin if stop else 0
    if cells:
        yield slice(start, len(first)), slice(low, high)


def _cells(
    frame: Tensor, label: Tensor, weight: Tensor, bias: Tensor, block: _Block
) -> tuple[Tensor, Tensor]:
    """Hidden values ``(b, t, u, J)`` and logits ``(b, t, u, V + 1)`` of a block, those in units of the weights."""
    hidden = frame[block.rows, block.frames, None] + label[block.rows, None, block.labels]
    # tanh x = 2 sigmoid(2x) - 1, a third of the time of torch.tanh on a CPU
    hidden = hidden.mul_(2).sigmoid_().mul_(2).sub_(1)
    return hidden, (hidden.to(weight.dtype) @ weight.mT).to(hidden.dtype).add_(bias)


def _logsumexp2_(logits: Tensor, bounded: bool) -> Tensor:
    """To the base 2, over the last axis, in place; ``bounded``: no power leaves a float's range."""
    if bounded:
        return logits.exp2_().sum(-1).log2_()
    peak = logits.amax(-1, keepdim=True)
    return logits.sub_(peak).exp2_().sum(-1).log2_().add_(peak[..., 0])


class _LatticeLogp(torch.autograd.Function):
    """The two log probabilities of every cell; backward computes the blocks again."""

    @staticmethod
    def forward(
        ctx: Any,
        frame: Tensor,
        label: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        frames: Tensor,
        labels: Tensor,
        products: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        log_norm = frame.new_zeros(*frame.shape[:2], label.shape[1])
        blank_logp, label_logp = torch.zeros_like(log_norm), torch.zeros_like(log_norm[..., 1:])
        # To the base 2, which is what processors raise to powers.
        binary, binary_bias = (weight * _LOG2_E).to(products), bias * _LOG2_E
        # |tanh x| < 1, so the weights bound every logit.
        bounded = bool((weight.abs().sum(1) + bias.abs()).amax() * _LOG2_E < _SAFE_LOGIT)
        with torch.autocast(frame.device.type, enabled=False):
            for block in _blocks(frames, labels, weight):
                rows, t, u = block
                width = u.stop
                _, logits = _cells(frame, label, binary, binary_bias, block)
                at = targets[rows, None, : width - 1, None].expand(-1, logits.shape[1], -1, -1)
                label_logp[rows, t, : width - 1] = logits[:, :, :-1].gather(3, at).squeeze(3)
                blank_logp[rows, t, :width] = logits[..., -1]
                log_norm[rows, t, :width] = _logsumexp2_(logits, bounded)
        ctx.save_for_backward(frame, label, weight, bias, targets, frames, labels, log_norm)
        ctx.products = products
        found = blank_logp.sub_(log_norm), label_logp.sub_(log_norm[:, :, :-1])
        return found[0].div_(_LOG2_E), found[1].div_(_LOG2_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, blank_grad: Tensor, label_grad: Tensor) -> tuple[Tensor | None, ...]:
        frame, label, weight, bias, targets, frames, labels, log_norm = ctx.saved_tensors
        # What is spent on blank and label in a cell is taken from all symbols by their probability.
        spent = F.pad(label_grad, (0, 1)).add_(blank_grad).neg_()
        to_frame, to_label, to_weight, to_bias = (torch.zeros_like(x) for x in (frame, label, weight, bias))
        narrow, binary = weight.to(ctx.products), (weight * _LOG2_E).to(ctx.products)
        binary_bias = bias * _LOG2_E
        # A GPU is faster with fewer and larger blocks.
        cuda = weight.is_cuda
        blocks = _blocks(frames, labels, weight) if cuda else _passed(blank_grad, label_grad, weight)
        with torch.autocast(frame.device.type, enabled=False):
            for block in blocks:
                rows, t, u = block
                hidden, grad = _cells(frame, label, binary, binary_bias, block)
                grad.sub_(log_norm[rows, t, u, None]).exp2_().mul_(spent[rows, t, u, None])
                grad[..., -1] += blank_grad[rows, t, u]
                picked = label_grad[rows, t, u, None]  # one less where the block goes to the last position
                at = targets[rows, None, u, None].expand_as(picked)
                grad[:, :, : picked.shape[2]].scatter_add_(3, at, picked)
                to_bias += grad.sum((0, 1, 2))
                grad = grad.to(ctx.products)
                to_weight += grad.flatten(0, 2).mT @ hidden.to(ctx.products).flatten(0, 2)
                inner = (grad @ narrow).to(hidden.dtype)
                inner.sub_(hidden.square_().mul_(inner))  # the derivative of tanh x is 1 - tanh² x
                to_frame[rows, t] += inner.sum(2)
                to_label[rows, u] += inner.sum(1)
        return to_frame, to_label, to_weight, to_bias, None, None, None, None
