"""The CTC model as a search sees it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from asr.families.ctc.model import CTC
from decoding.emitter import FrameScores
from decoding.top_tokens import top_tokens
from lm.language_model import ContextStore


class CTCEmitter:
    """Scores frames of encoded utterances; see ``decoding.emitter.FrameSynchronous``.

    The state of a hypothesis is ``2 (last token + 1) + open``. It is open right after a label and while the
    label is repeated: the same label again would be the same token, so a second one needs a blank between,
    which closes the state. Before the first label the last token is -1.

    Args:
        model: the model, in evaluation mode.
        encoded: ``(B, T, D)`` encoder frames.
        lengths: ``(B,)`` frames of each utterance.
        top: candidate tokens per frame, the most probable; all of V when it is not smaller.
    """

    lm_scale: float = 0.0
    contexts: ContextStore | None = None
    repeats = True
    lookahead = 8
    steady = True
    loud: Tensor | None = None

    def __init__(self, model: CTC, encoded: Tensor, lengths: Tensor, top: int = 32) -> None:
        self.num_tokens = model.num_tokens
        self._row = torch.arange(len(lengths), device=encoded.device)[:, None]
        self._model, self._top = model, min(top, model.num_tokens)
        self.hear(encoded, lengths)

    def hear(self, encoded: Tensor, lengths: Tensor) -> None:
        """See ``FrameSynchronous.hear``."""
        self.lengths = lengths
        self._logp = self._model.logp(encoded).contiguous()  # (B, T, V + 1)
        self.evidence, self.tokens = top_tokens(self._logp[..., :-1], self._top)
        self._compiled = self._logp.device.type == "cpu" and self._logp.dtype == torch.float32

    def start(self) -> Tensor:
        """Nothing said yet, for each utterance ``(B,)``."""
        return torch.zeros(len(self.lengths), dtype=torch.long, device=self._logp.device)

    def score(self, frames: Tensor, state: Tensor) -> FrameScores:
        """See ``FrameSynchronous.score``."""
        shape = (*state.shape, frames.shape[1])
        if self._compiled:
            return self._score(frames, state, shape)
        last = (state // 2 - 1)[..., None]
        open_ = (state % 2 > 0)[..., None] & (torch.arange(shape[-1], device=state.device) == 0)
        logp, tokens = self._logp[self._row, frames], self.tokens[self._row, frames]
        again = (tokens[:, None] == last[..., None]) & open_[..., None]
        label = self.evidence[self._row, frames][:, None].masked_fill(again, -torch.inf)
        repeat = logp.gather(2, last.clamp_min(0).mT.expand(-1, shape[-1], -1)).mT
        blank = logp[:, None, :, -1].expand(shape)
        return FrameScores(blank, label, repeat.masked_fill(~open_, -torch.inf))

    def _score(self, frames: Tensor, state: Tensor, shape: tuple[int, ...]) -> FrameScores:
        """The same in compiled code."""
        from asr.families.ctc import kernel

        blank, repeat = np.empty((2, *shape), np.float32)
        label = np.empty((*shape, self.tokens.shape[2]), np.float32)
        heard = self._logp.numpy(), self.evidence.numpy(), self.tokens.numpy()
        kernel.score(*heard, frames.contiguous().numpy(), state.contiguous().numpy(), blank, label, repeat)
        return FrameScores(*map(torch.from_numpy, (blank, label, repeat)))

    def lm_logp(self, state: Tensor, tokens: Tensor) -> None:
        """None: CTC has no language model."""

    def context(self, state: Tensor) -> Tensor:
        """There are no contexts."""
        raise NotImplementedError

    def join(self, state: Tensor, tokens: Tensor, contexts: Tensor) -> Tensor:
        """There are no contexts."""
        raise NotImplementedError

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``FrameSynchronous.advance``."""
        return 2 * (tokens + 1) + 1

    def close(self, state: Tensor) -> Tensor:
        """See ``FrameSynchronous.close``."""
        return state - state % 2
