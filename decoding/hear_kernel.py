"""Which frames a search hears next, compiled for a CPU: what ``Lookahead.frames`` does in tensors."""

from __future__ import annotations

import numpy as np

from decoding.kernel_types import Bools, Floats, Longs
from lm.machine_code import compiled


@compiled
def next_frames(at: Longs, lengths: Longs, loud: Longs, most: int, ahead: int) -> tuple[Longs, Bools]:
    """The next frames of each utterance.

    Args:
        at: ``(B,)`` where the utterances are.
        lengths: ``(B,)`` frames they have.
        loud: ``(B, T)`` the first loud frame from each on; ``(B, 0)`` where that is not known.
        most: frames worth scoring at once.
        ahead: frames to score where no loud frame is known.

    Returns:
        ``frames`` and ``inside`` ``(B, F)`` as in ``fast_step.Frames``.
    """
    batch = len(at)
    last = np.empty(batch, np.int64)
    known = loud.shape[1] > 0
    if known:
        ahead = 1
    for b in range(batch):
        last[b] = max(lengths[b] - 1, 0)
        if known:
            place = min(at[b], last[b])
            stop = min(loud[b, place], place + most - 1)
            ahead = max(ahead, stop - place + 1)
            last[b] = min(last[b], stop)
    frames, inside = np.empty((batch, ahead), np.int64), np.empty((batch, ahead), np.bool_)
    for b in range(batch):
        for f in range(ahead):
            frame = at[b] + f
            inside[b, f] = frame < min(lengths[b], last[b] + 1)
            frames[b, f] = min(frame, last[b])
    return frames, inside


@compiled
def live_states(score: Floats, model: Longs) -> Longs:
    """``model`` ``(B, K)`` with the first in the places of hypotheses that are no more."""
    states = np.empty(model.shape, np.int64)
    for b in range(len(model)):
        for k in range(model.shape[1]):
            states[b, k] = model[b, k] if score[b, k] > -np.inf else model[b, 0]
    return states
