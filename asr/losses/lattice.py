"""Sum over the paths of a transducer lattice, and the share of every arc in it, in plain torch.

Arcs are kept sheared: arcs[t + u, kind, u, b] is the arc of that kind that comes into cell (t, u) of
utterance b. A diagonal is then one contiguous row that depends only on the row before it, for the whole batch
at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Stands for log 0. Finite, so that a difference of two of them is 0 and never NaN, and far enough from the
# limits of float32 that thousands of them can be added.
NO_PATH = -1e30

_LABEL, _BLANK = 0, 1


def lattice_loss(blank: Tensor, label: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
    """Minus the log of the summed mass of all paths of each utterance.

    Sums in float64: in float32 a log mass of thousands of nats has no digits left for the gradient. A call
    costs two operations a diagonal, and two in backward.

    Args:
        blank: (B, T, U+1), log mass of the arc (t, u) to (t+1, u).
        label: (B, T, U), log mass of the arc (t, u) to (t, u+1).
        frames: (B,), on the CPU, each in 1..T.
        labels: (B,), on the CPU, each in 0..U.

    Returns:
        (B,) of the arcs' type, +inf where there is no path.
    """
    loss: Tensor = _Lattice.apply(blank, label, frames, labels)  # type: ignore[no-untyped-call]
    return loss


def before(lengths: Tensor, size: int, device: torch.device) -> Tensor:
    """(B, size) on the device, true before each utterance's length; the lengths are on the CPU."""
    return (torch.arange(size) < lengths[:, None]).to(device)


def _unshear(arcs: Tensor, frames: int, labels: int) -> tuple[Tensor, Tensor]:
    """Views of sheared arcs by the cell they leave: blank (B, T, U+1) and label (B, T+1, U)."""
    down, kind, across, _ = arcs.stride()
    batch, step, strides = arcs.shape[3], down + across, (1, down, down + across)
    blank = arcs.as_strided((batch, frames, labels + 1), strides, down + _BLANK * kind)
    return blank, arcs.as_strided((batch, frames + 1, labels), strides, step + _LABEL * kind)


def _shear(blank: Tensor, label: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
    """Sheared arcs, float64 (T+U+1, 2, U+2, B), of a lattice in which all utterances end in cell (T, U).

    From an utterance's own last cell one free path leads on through the padding: blanks to row T, then
    labels to column U. All other arcs there are closed, so no score in the padding is ever used.
    """
    batch, max_frames, max_labels = label.shape
    arcs = blank.new_full(
        (max_frames + max_labels + 1, 2, max_labels + 2, batch), NO_PATH, dtype=torch.float64
    )
    by_blank, by_label = _unshear(arcs, max_frames, max_labels)
    if int(frames.min()) < max_frames or int(labels.min()) < max_labels:
        row = before(frames, max_frames, blank.device)[:, :, None]
        labels = labels[:, None].to(blank.device)
        u = torch.arange(max_labels + 1, device=blank.device)
        # Where an utterance has no row left, or a row no column, blank leads on at its last column only.
        aside = torch.where(u == labels, 0.0, NO_PATH).to(blank.dtype)
        blank = torch.where(row & (u <= labels)[:, None], blank, aside[:, None])
        label = torch.where(row & (u < labels)[:, None, :-1], label, NO_PATH)
        by_label[:, -1].masked_fill_(u[:-1] >= labels, 0)
    by_blank.copy_(blank)
    by_label[:, :-1].copy_(label)
    return arcs.clamp_(min=NO_PATH)


def _sum_paths(arcs: Tensor) -> Tensor:
    """Log mass (B,) of all paths; adds to every arc, in place, the mass of the paths to the cell it leaves.

    One addition for both kinds of arcs and one logaddexp a diagonal.
    """
    batch, width = arcs.shape[3], arcs.shape[2] - 1
    # With a closed column at u = -1 the cells that labels leave and those that blanks leave are the same row
    # seen at two offsets.
    cells = arcs.new_full((width + 1, batch), NO_PATH)
    cells[1] = 0
    origin = cells.view(-1).as_strided((2, width * batch), (batch, 1))
    total = cells.view(-1)[batch:]
    pairs = arcs[1:, :, :-1].flatten(2)
    logaddexp = torch.logaddexp
    steps = zip(pairs.unbind(0), pairs[:, _LABEL].unbind(0), pairs[:, _BLANK].unbind(0), strict=True)
    for pair, label, blank in steps:
        pair.add_(origin)
        logaddexp(label, blank, out=total)
    return cells[-1]


def _occupation(arcs: Tensor, dtype: torch.dtype) -> Tensor:
    """Share of all paths' mass that passes each arc, sheared, from what `_sum_paths` left in the arcs.

    Walks back from (T, U) and splits the share of a cell between its two arcs by their masses. Being shares
    and not logarithms they need no logaddexp, and those of a diagonal sum to one whatever has been rounded.
    """
    batch, width = arcs.shape[3], arcs.shape[2] - 1
    shares = arcs.new_empty(arcs.shape, dtype=dtype)
    torch.sub(arcs[:, _LABEL], arcs[:, _BLANK], out=shares[:, _LABEL])
    torch.neg(shares[:, _LABEL], out=shares[:, _BLANK])
    shares.sigmoid_()[:, :, -1] = 0
    cell = shares.new_zeros(width * batch)
    cell[-batch:] = 1
    flat = shares[1:].flatten(2)
    pairs, labels_on, blanks = flat[:, :, :-batch], flat[:, _LABEL, batch:], flat[:, _BLANK, :-batch]
    steps = zip(pairs.unbind(0)[::-1], labels_on.unbind(0)[::-1], blanks.unbind(0)[::-1], strict=True)
    for pair, label_on, blank in steps:
        pair.mul_(cell)
        torch.add(label_on, blank, out=cell)
    return shares


class _Lattice(torch.autograd.Function):
    """Minus the log likelihood, whose gradient is minus the occupation of every arc."""

    @staticmethod
    def forward(ctx: Any, blank_logp: Tensor, label_logp: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
        arcs = _shear(blank_logp, label_logp, frames, labels)
        total = _sum_paths(arcs)
        pathless = total < NO_PATH / 2
        ctx.save_for_backward(arcs, frames, pathless)
        return torch.where(pathless, torch.inf, -total).to(blank_logp.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        arcs, frames, pathless = ctx.saved_tensors
        labels = arcs.shape[2] - 2
        max_frames = arcs.shape[0] - labels - 1
        blank, label = _unshear(_occupation(arcs, grad.dtype), max_frames, labels)
        # The free path through the padding is no part of the utterance.
        row = before(frames, max_frames, grad.device)
        scale = torch.where(row & ~pathless[:, None], -grad[:, None], 0)[:, :, None]
        blank_grad, label_grad = (scale.new_empty(x.shape) for x in (blank, label[:, :-1]))
        torch.mul(blank, scale, out=blank_grad)
        torch.mul(label[:, :-1], scale, out=label_grad)
        return blank_grad, label_grad, None, None
