"""How many frames of each utterance are worth scoring at once: those up to the next that may say something."""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.emitter import FrameSynchronous


class Lookahead:
    """The frames that a search hears next.

    Args:
        emitter: the model.
        compiled: whether the kernels for a CPU are used; they give the same.
    """

    def __init__(self, emitter: FrameSynchronous, compiled: bool) -> None:
        self._emitter = emitter
        self._compiled = compiled
        self._ahead = emitter.lookahead
        self.hear()

    def hear(self) -> None:
        """Go on to the frames that the emitter has now."""
        self._next_loud = next_loud(self._emitter)

    def frames(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """The next F frames of utterances that are ``at`` ``(B,)``, and which of them there are, ``(B, F)``."""
        emitter, lengths = self._emitter, self._emitter.lengths
        if self._compiled:
            from decoding.hear_kernel import next_frames

            known = at.new_empty((len(at), 0)) if self._next_loud is None else self._next_loud
            arrays = (at.numpy(), lengths.numpy(), known.numpy())
            frames, inside = next_frames(*arrays, emitter.lookahead, self._ahead)
            return torch.from_numpy(frames), torch.from_numpy(inside)
        last, ahead = (lengths - 1).clamp_min(0), self._ahead
        if self._next_loud is not None:
            at_most = torch.minimum(at, last)
            loud = self._next_loud.gather(1, at_most[:, None]).squeeze(1)
            loud = torch.minimum(loud, at_most + emitter.lookahead - 1)
            ahead = int((loud - at_most).amax()) + 1
            last = torch.minimum(last, loud)
        columns = at[:, None] + torch.arange(ahead, device=at.device)
        return torch.minimum(columns, last[:, None]), columns < torch.minimum(lengths, last + 1)[:, None]

    def passed(self, skipped: Tensor) -> None:
        """How many frames were passed of those just heard, ``(B,)``."""
        most = self._emitter.lookahead
        self._ahead = 1 if most == 1 else min(most, 1 + 2 * round(float(skipped.float().mean())))


def next_loud(emitter: FrameSynchronous) -> Tensor | None:
    """The first loud frame from each on, ``(B, T)``; where there is none, one beyond the last."""
    if emitter.loud is None or not emitter.loud.shape[1]:
        return None
    count = emitter.loud.shape[1]
    frame = torch.arange(count, device=emitter.loud.device).expand(emitter.loud.shape)
    where = torch.where(emitter.loud, frame, count)
    return where.flip(-1).cummin(-1).values.flip(-1).contiguous()
