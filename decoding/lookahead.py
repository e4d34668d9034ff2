"""How many frames of each utterance are worth scoring at once: those up to the next that may say something."""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.emitter import FrameSynchronous


def next_loud(emitter: FrameSynchronous) -> Tensor | None:
    """The first loud frame from each on, ``(B, T)``; where there is none, one beyond the last."""
    if emitter.loud is None or not emitter.loud.shape[1]:
        return None
    count = emitter.loud.shape[1]
    frame = torch.arange(count, device=emitter.loud.device).expand(emitter.loud.shape)
    where = torch.where(emitter.loud, frame, count)
    return where.flip(-1).cummin(-1).values.flip(-1)


def lookahead(skipped: Tensor, most: int) -> int:
    """Frames worth scoring next, from how many were passed just now."""
    if most == 1:
        return 1
    return min(most, 1 + 2 * round(float(skipped.float().mean())))
