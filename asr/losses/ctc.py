"""CTC loss (Graves et al., 2006), with the utterances it cannot align counted instead of lost."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from asr.losses.rnnt import checked_lengths, checked_targets, sum_dtype
from lm.errors import DataError


def ctc_loss(
    logp: Tensor, targets: Tensor, frame_lengths: Tensor, label_lengths: Tensor, blank: int
) -> tuple[Tensor, int]:
    """Negative log likelihood of each utterance, in nats, and how many utterances have no alignment at all.

    An utterance with fewer frames than labels (and one more frame for each label that repeats the one before
    it) cannot be aligned. It gets the loss 0 and no gradient, and is counted.

    Args:
        logp: (B, T, V+1), log probabilities, blank among them.
        targets: (B, U), label ids; anything may stand beyond an utterance's labels.
        frame_lengths: (B,), frames of each utterance, 1..T.
        label_lengths: (B,), labels of each utterance, 0..U.
        blank: the id of blank in the last axis; negative counts from the end.

    Returns:
        losses (B,), float64 for float64 input, else float32; and the number of impossible utterances.

    Raises:
        DataError: shapes that do not fit, a length out of range, a target that is blank or not in the axis.
    """
    if logp.dim() != 3 or targets.dim() != 2 or len(targets) != len(logp):
        raise DataError(
            f"log probabilities of shape {tuple(logp.shape)} and targets of shape {tuple(targets.shape)}",
            "(B, T, V+1) and (B, U)",
            "pad both to one batch",
        )
    size = logp.shape[2]
    if not -size <= blank < size:
        raise DataError(f"blank {blank} with {size} classes", f"{-size} to {size - 1}", "give its index")
    blank %= size
    frames, labels = checked_lengths(
        frame_lengths, label_lengths, (len(logp), logp.shape[1], targets.shape[1] + 1)
    )
    targets = checked_targets(targets, labels, size, blank)
    logp = logp.to(sum_dtype(logp)).transpose(0, 1)
    loss = F.ctc_loss(logp, targets, frames, labels, blank, reduction="none", zero_infinity=True)
    # torch zeroes an infinite loss without saying so; only the zeros need a second look.
    zero = loss.detach() == 0
    if not zero.any():
        return loss, 0
    rows = zero.nonzero().squeeze(1)
    chosen = rows.cpu()
    again = F.ctc_loss(
        logp.detach()[:, rows], targets[rows], frames[chosen], labels[chosen], blank, reduction="none"
    )
    return loss, int(torch.isinf(again).sum())
