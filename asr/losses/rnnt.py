"""Transducer loss: one function, three ways to sum the lattice (plain torch, torchaudio, k2).

Graves, "Sequence transduction with recurrent neural networks" (arXiv 1211.3711), equations 12 to 18.

The lattice has cells (t, u): `t` frames consumed, `u` labels emitted. From a cell a blank leads to (t+1, u)
and the next label leads to (t, u+1); an utterance with T frames and U labels runs from (0, 0) to (T, U) and
its last step is a blank. Whatever the vocabulary, the sum over paths needs two numbers a cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lm.errors import ConfigError, DataError

Backend = Literal["torch", "torchaudio", "k2"]

# Stands for log 0. Finite, so that a difference of two of them is 0 and never NaN, and far enough from the
# limits of float32 that thousands of them can be added.
NO_PATH = -1e30

# Elements of the dense logits worked on at a time: what stays in a core's cache, or keeps a GPU busy.
_BLOCK_CPU = 1 << 19
_BLOCK_GPU = 1 << 26


def transducer_loss_from_logp(
    blank_logp: Tensor,
    label_logp: Tensor,
    frame_lengths: Tensor,
    label_lengths: Tensor,
    backend: Backend = "torch",
) -> Tensor:
    """Negative log likelihood of each utterance, in nats, from the two log probabilities of every cell.

    What lies beyond an utterance's lengths is never read, and its gradient is zero. A cell may be -inf; an
    utterance without any possible path has the loss +inf and a zero gradient.

    Args:
        blank_logp: (B, T, U+1), log probability of blank after t frames and u labels.
        label_logp: (B, T, U), log probability of label u+1 there.
        frame_lengths: (B,), frames of each utterance, 1..T.
        label_lengths: (B,), labels of each utterance, 0..U; may exceed the number of frames.
        backend: `torch` sums in float64 whatever the inputs are; `torchaudio` sums in float32; `k2` in the
            precision of the inputs.

    Returns:
        (B,), float64 for float64 inputs, else float32.

    Raises:
        DataError: shapes that do not fit, or a length out of range.
        ConfigError: a backend that does not exist or is not installed.
    """
    if blank_logp.dim() != 3 or label_logp.shape != (*blank_logp.shape[:2], blank_logp.shape[2] - 1):
        raise DataError(
            f"blank_logp of shape {tuple(blank_logp.shape)} and label_logp of shape {tuple(label_logp.shape)}",
            "(B, T, U+1) and (B, T, U)",
            "give one blank score more than labels in every frame",
        )
    frames, labels = checked_lengths(frame_lengths, label_lengths, blank_logp.shape)
    dtype = sum_dtype(blank_logp, label_logp)
    blank_logp, label_logp = blank_logp.to(dtype), label_logp.to(dtype)
    if backend == "torch":
        return _TorchLattice.apply(blank_logp, label_logp, frames, labels)  # type: ignore[no-any-return]
    if backend == "torchaudio":
        return _torchaudio_loss(blank_logp, label_logp, frames, labels)
    if backend == "k2":
        return _k2_loss(blank_logp, label_logp, frames, labels)
    raise ConfigError(f"transducer loss backend {backend!r}", "torch, torchaudio or k2", "choose one of these")


def rnnt_loss(
    logits: Tensor,
    targets: Tensor,
    frame_lengths: Tensor,
    label_lengths: Tensor,
    blank: int,
    backend: Backend = "torch",
) -> Tensor:
    """Transducer loss of each utterance, in nats, from the joint network's logits over labels and blank.

    Apart from the logits and their gradient nothing of that size is held.

    Args:
        logits: (B, T, U+1, V+1), not normalised.
        targets: (B, U), label ids; anything may stand beyond an utterance's labels.
        frame_lengths: (B,), frames of each utterance, 1..T.
        label_lengths: (B,), labels of each utterance, 0..U.
        blank: the id of blank in the last axis; negative counts from the end.
        backend: see `transducer_loss_from_logp`; `torchaudio` here means its own kernel on the logits.

    Returns:
        (B,), float64 for float64 logits, else float32.

    Raises:
        DataError: shapes that do not fit, a length out of range, a target that is blank or not in the axis.
        ConfigError: a backend that does not exist or is not installed.
    """
    if logits.dim() != 4 or targets.shape != (logits.shape[0], logits.shape[2] - 1):
        raise DataError(
            f"logits of shape {tuple(logits.shape)} and targets of shape {tuple(targets.shape)}",
            "(B, T, U+1, V+1) and (B, U)",
            "give logits for one label position more than targets",
        )
    size = logits.shape[3]
    frames, labels = checked_lengths(frame_lengths, label_lengths, logits.shape)
    blank = blank + size if blank < 0 else blank
    targets = checked_targets(targets, labels, size, blank)
    if backend == "torchaudio":
        width = int(labels.max()) + 1
        logits, targets = logits[:, : int(frames.max()), :width], targets[:, : width - 1]
        return _torchaudio_kernel(logits, targets, frames, labels, blank, normalise=True)
    blank_logp, label_logp = _DenseLogp.apply(logits, targets, frames, labels, blank)
    return transducer_loss_from_logp(blank_logp, label_logp, frames, labels, backend)


# ---- checks shared by the losses ---------------------------------------------------------------------------


def sum_dtype(*tensors: Tensor) -> torch.dtype:
    """The precision a loss works in: float64 if any input has it, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def checked_lengths(
    frame_lengths: Tensor, label_lengths: Tensor, shape: torch.Size | tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Both lengths as int64 (B,) on the CPU, where the losses slice by them.

    Args:
        frame_lengths: (B,), expected in 1..T.
        label_lengths: (B,), expected in 0..U.
        shape: begins with B, T, U+1.

    Raises:
        DataError: a length out of range, naming the utterance.
    """
    batch, max_frames, width = shape[:3]
    checked = []
    for what, given, low, high in (
        ("frame", frame_lengths, 1, max_frames),
        ("label", label_lengths, 0, width - 1),
    ):
        if given.shape != (batch,):
            raise DataError(f"{what} lengths of shape {tuple(given.shape)}", f"({batch},)", "give one a row")
        lengths = given.detach().to("cpu", torch.int64)
        wrong = (lengths < low) | (lengths > high)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise DataError(
                f"utterance {row} of the batch has {what} length {int(lengths[row])}",
                f"{low} to {high}",
                "drop or mend the utterance",
            )
        checked.append(lengths)
    return checked[0], checked[1]


def checked_targets(targets: Tensor, labels: Tensor, size: int, blank: int | None = None) -> Tensor:
    """Targets as int64 (B, U) with 0 beyond each utterance's labels.

    Args:
        targets: (B, U).
        labels: (B,), on the CPU.
        size: ids must lie in 0..size-1.
        blank: an id that may not stand among the labels, if there is one.

    Raises:
        DataError: an id out of range or equal to blank, naming the utterance.
    """
    beyond = torch.arange(targets.shape[1]) >= labels[:, None]
    targets = targets.to(torch.int64).masked_fill(beyond.to(targets.device), 0)
    wrong = (targets < 0) | (targets >= size)
    if blank is not None:
        wrong |= (targets == blank) & ~beyond.to(targets.device)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise DataError(
            f"utterance {row} of the batch has the target {int(targets[row, column])} as label {column}",
            f"an id in 0..{size - 1}" + ("" if blank is None else f" that is not blank ({blank})"),
            "encode the transcript with the tokenizer of this model",
        )
    return targets


# ---- the lattice in plain torch ------------------------------------------------------------------------------
#
# Arcs are kept sheared: arcs[t + u, kind, u, b] is the arc of kind LABEL or BLANK that comes into cell (t, u). A
# diagonal is then one contiguous row that depends only on the row before, for the whole batch at once.

_LABEL, _BLANK = 0, 1


def _unshear(arcs: Tensor, frames: int, labels: int) -> tuple[Tensor, Tensor]:
    """Views of sheared arcs by the cell they leave: blank (B, T, U+1) and label (B, T+1, U)."""
    down, kind, across, _ = arcs.stride()
    batch, step, strides = arcs.shape[3], down + across, (1, down, down + across)
    blank = arcs.as_strided((batch, frames, labels + 1), strides, down + _BLANK * kind)
    return blank, arcs.as_strided((batch, frames + 1, labels), strides, step + _LABEL * kind)


def _shear(blank: Tensor, label: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
    """Sheared arcs of a lattice in which all utterances end in the same cell (T, U), float64 (T+U+1, 2, U+2, B).

    From an utterance's own last cell one free path leads on through the padding: blanks to row T, then
    labels to column U. All other arcs there are closed, so no score in the padding is ever used.
    """
    batch, max_frames, max_labels = label.shape
    arcs = blank.new_full((max_frames + max_labels + 1, 2, max_labels + 2, batch), NO_PATH, dtype=torch.float64)
    by_blank, by_label = _unshear(arcs, max_frames, max_labels)
    blank, label = blank.clamp(min=NO_PATH), label.clamp(min=NO_PATH)
    if int(frames.min()) < max_frames or int(labels.min()) < max_labels:
        u = torch.arange(max_labels + 1, device=blank.device)
        frames, labels = frames.to(blank.device)[:, None], labels.to(blank.device)[:, None]
        row = (u.new_ones(max_frames).cumsum(0) <= frames)[:, :, None]
        closed = blank.new_full((batch, max_labels + 1), NO_PATH)
        blank = torch.where(row & (u <= labels)[:, None], blank, closed.masked_fill(u == labels, 0)[:, None])
        label = torch.where(row & (u < labels)[:, None, :-1], label, closed[:, None, :-1])
        by_label[:, -1].masked_fill_(u[:-1] >= labels, 0)
    by_blank.copy_(blank)
    by_label[:, :-1].copy_(label)
    return arcs


def _sum_paths(arcs: Tensor) -> Tensor:
    """Log mass (B,) of all paths; adds to every arc, in place, the mass of the paths to the cell it leaves.

    One addition for both kinds of arcs and one logaddexp a diagonal.
    """
    batch, width = arcs.shape[3], arcs.shape[2] - 1
    # One closed column at u = -1: the cell before (which labels leave) and the cell itself (which blanks leave)
    # are then the same row seen at two offsets.
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
    difference = arcs[:, _LABEL] - arcs[:, _BLANK]
    shares = torch.stack([difference, -difference], 1).to(dtype).sigmoid_()
    shares[:, :, -1] = 0
    cell = shares.new_zeros(width * batch)
    cell[-batch:] = 1
    flat = shares[1:].flatten(2)
    pairs, labels_on, blanks = flat[:, :, :-batch], flat[:, _LABEL, batch:], flat[:, _BLANK, :-batch]
    steps = zip(pairs.unbind(0)[::-1], labels_on.unbind(0)[::-1], blanks.unbind(0)[::-1], strict=True)
    for pair, label_on, blank in steps:
        pair.mul_(cell)
        torch.add(label_on, blank, out=cell)
    return shares


class _TorchLattice(torch.autograd.Function):
    """Minus the log likelihood, whose gradient is minus the occupation of every arc."""

    @staticmethod
    def forward(ctx: Any, blank_logp: Tensor, label_logp: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
        arcs = _shear(blank_logp, label_logp, frames, labels)
        total = _sum_paths(arcs)
        possible = total > NO_PATH / 2
        ctx.save_for_backward(arcs, frames, possible)
        return torch.where(possible | total.isnan(), -total, torch.inf).to(blank_logp.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        arcs, frames, possible = ctx.saved_tensors
        labels = arcs.shape[2] - 2
        max_frames = arcs.shape[0] - labels - 1
        blank, label = _unshear(_occupation(arcs, grad.dtype), max_frames, labels)
        # The free path through the padding is no part of the utterance.
        row = torch.arange(max_frames) < frames[:, None]
        scale = torch.where(row.to(grad.device) & possible[:, None], -grad[:, None], 0)[:, :, None]
        blank_grad, label_grad = (scale.new_empty(x.shape) for x in (blank, label[:, :-1]))
        torch.mul(blank, scale, out=blank_grad)
        torch.mul(label[:, :-1], scale, out=label_grad)
        return blank_grad, label_grad, None, None
