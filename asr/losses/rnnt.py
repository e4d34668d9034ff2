"""Transducer loss: one function, three ways to sum the lattice (plain torch, torchaudio, k2).

Graves, "Sequence transduction with recurrent neural networks" (arXiv 1211.3711), equations 12 to 18.

The lattice has cells (t, u): `t` frames consumed, `u` labels emitted. From a cell a blank leads to (t+1, u)
and the next label leads to (t, u+1); an utterance with T frames and U labels runs from (0, 0) to (T, U) and
its last step is a blank. Whatever the vocabulary, the sum over paths needs two numbers a cell.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from asr.losses.lattice import NO_PATH, before, lattice_loss
from lm.errors import ConfigError, DataError

Backend = Literal["torch", "torchaudio", "k2"]

# Elements of the dense logits worked on at a time: what stays in a core's cache, or keeps a GPU busy.
_BLOCK_CPU = 1 << 20
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
            f"blank_logp of shape {tuple(blank_logp.shape)} and label_logp of {tuple(label_logp.shape)}",
            "(B, T, U+1) and (B, T, U)",
            "give one blank score more than labels in every frame",
        )
    frames, labels = checked_lengths(frame_lengths, label_lengths, blank_logp.shape)
    dtype = sum_dtype(blank_logp, label_logp)
    blank_logp, label_logp = blank_logp.to(dtype), label_logp.to(dtype)
    if backend == "torch":
        return lattice_loss(blank_logp, label_logp, frames, labels)
    if backend == "torchaudio":
        return _torchaudio_loss(blank_logp, label_logp, frames, labels)
    if backend == "k2":
        return _k2_loss(blank_logp, label_logp, frames, labels)
    raise ConfigError(
        f"transducer loss backend {backend!r}", "torch, torchaudio or k2", "choose one of these"
    )


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
    if not -size <= blank < size:
        raise DataError(
            f"blank {blank} with {size} logits a cell", f"{-size} to {size - 1}", "give its index"
        )
    frames, labels = checked_lengths(frame_lengths, label_lengths, logits.shape)
    blank %= size
    targets = checked_targets(targets, labels, size, blank)
    if backend == "torchaudio":
        width = int(labels.max()) + 1
        logits, targets = logits[:, : int(frames.max()), :width], targets[:, : width - 1]
        return _torchaudio_kernel(logits, targets, frames, labels, blank, normalise=True)
    blank_logp, label_logp = _DenseLogp.apply(  # type: ignore[no-untyped-call]
        logits, targets, frames, labels, blank
    )
    return transducer_loss_from_logp(blank_logp, label_logp, frames, labels, backend)


# ---- shared by the losses ----------------------------------------------------------------------------------


def sum_dtype(*tensors: Tensor) -> torch.dtype:
    """The precision a loss works in: float64 if any input has it, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def exp_(x: Tensor) -> Tensor:
    """exp in place, with |x| times the rounding of torch's own and in a third of its time on CPU."""
    return x.mul_(math.log2(math.e)).exp2_()


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
        if given.is_floating_point():
            raise DataError(f"{what} lengths of type {given.dtype}", "integers", "round them as you mean it")
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


# ---- the lattice elsewhere ---------------------------------------------------------------------------------


def _module(name: str, backend: str, fix: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"transducer loss backend {backend!r} without a {name} that can be imported ({error})",
            f"{name} to be installed",
            f'{fix}, or choose backend "torch"',
        ) from error


def _closed(arcs: Tensor, frames: Tensor, widths: Tensor) -> Tensor:
    """Arcs with nothing but finite numbers, closed outside the utterances."""
    inside_t = before(frames, arcs.shape[1], arcs.device)
    inside_u = before(widths, arcs.shape[2], arcs.device)
    return torch.where(inside_t[:, :, None] & inside_u[:, None], arcs.clamp(min=NO_PATH), NO_PATH)


def _loss_of_total(total: Tensor) -> Tensor:
    """Minus the total, with +inf and no gradient for an utterance that has no path."""
    return torch.where(total < NO_PATH / 2, torch.inf, -total)


def _torchaudio_loss(blank: Tensor, label: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
    """The lattice as a transducer over two classes: 0 is blank and 1 is the next label."""
    longest, width = int(frames.max()), int(labels.max()) + 1
    blank = _closed(blank[:, :longest, :width], frames, labels + 1)
    label = _closed(label[:, :longest, : width - 1], frames, labels)
    classes = torch.stack([blank, F.pad(label, (0, 1), value=NO_PATH)], -1)
    targets = torch.ones(len(labels), width - 1, dtype=torch.int64, device=blank.device)
    return _loss_of_total(-_torchaudio_kernel(classes, targets, frames, labels, 0, normalise=False))


def _torchaudio_kernel(
    logits: Tensor, targets: Tensor, frames: Tensor, labels: Tensor, blank: int, normalise: bool
) -> Tensor:
    """torchaudio's loss, which wants tensors cut to the longest utterance and knows no float64."""
    functional = _module("torchaudio.functional", "torchaudio", "pip install 'vocative[torchaudio]'")
    loss: Tensor = functional.rnnt_loss(
        logits.float().contiguous(),
        targets.int().contiguous(),
        frames.to(logits.device, torch.int32),
        labels.to(logits.device, torch.int32),
        blank=blank,
        reduction="none",
        fused_log_softmax=normalise,
    )
    return loss.to(sum_dtype(logits))


def _k2_loss(blank: Tensor, label: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
    """k2 wants the label axis first and, for labels, a last column where no label can come any more."""
    k2 = _module(
        "k2", "k2", "install the k2 wheel for your torch from https://k2-fsa.github.io/k2/installation"
    )
    blank = _closed(blank, frames, labels + 1).mT.contiguous()
    label = F.pad(_closed(label, frames, labels).mT, (0, 1), value=NO_PATH).contiguous()
    boundary = torch.zeros(len(labels), 4, dtype=torch.int64, device=blank.device)
    boundary[:, 2], boundary[:, 3] = labels, frames
    total: Tensor = k2.mutual_information_recursion(label, blank, boundary)
    return _loss_of_total(total)


# ---- from dense logits -------------------------------------------------------------------------------------


class _DenseLogp(torch.autograd.Function):
    """The two log probabilities of every cell of dense logits, in blocks; backward fills the one gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, frames: Tensor, labels: Tensor, blank: int
    ) -> tuple[Tensor, Tensor]:
        dtype = sum_dtype(logits)
        log_norm = logits.new_zeros(logits.shape[:3], dtype=dtype)
        for at in _dense_blocks(logits, frames, labels):
            block = logits[at].to(dtype)
            peak = block.amax(-1, keepdim=True)
            torch.add(exp_(block - peak).sum(-1).log_(), peak[..., 0], out=log_norm[at])
        ctx.save_for_backward(logits, targets, frames, labels, log_norm)
        ctx.blank = blank
        index = targets[:, None, :, None].expand(-1, logits.shape[1], -1, -1)
        label_logp = logits[:, :, :-1].gather(3, index).squeeze(3).to(dtype)
        return logits[..., blank].to(dtype) - log_norm, label_logp - log_norm[:, :, :-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, blank_grad: Tensor, label_grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, targets, frames, labels, log_norm = ctx.saved_tensors
        # What is spent on blank and label in a cell is taken from all symbols by their probability.
        spent = blank_grad.neg()
        spent[:, :, :-1] -= label_grad
        full = int(frames.min()) == logits.shape[1] and int(labels.min()) == targets.shape[1]
        grad = torch.empty_like(logits) if full else torch.zeros_like(logits)
        for row, t, u in _dense_blocks(logits, frames, labels):
            block = logits[row, t, u].to(log_norm.dtype) - log_norm[row, t, u, None]
            exp_(block).mul_(spent[row, t, u, None])
            block[..., ctx.blank] += blank_grad[row, t, u]
            picked = label_grad[row, t, : u.stop - 1]
            index = targets[row, None, : u.stop - 1].expand_as(picked)
            block[:, :-1].scatter_add_(2, index[..., None], picked[..., None])
            grad[row, t, u] = block
        return grad, None, None, None, None


def _dense_blocks(logits: Tensor, frames: Tensor, labels: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Utterance, frames and label positions of blocks of cells that hold all that is inside the lengths."""
    limit = _BLOCK_GPU if logits.is_cuda else _BLOCK_CPU
    for row, (length, width) in enumerate(zip(frames.tolist(), (labels + 1).tolist(), strict=True)):
        step = max(1, limit // (width * logits.shape[3]))
        for start in range(0, length, step):
            yield row, slice(start, min(start + step, length)), slice(0, width)
