"""The transducer as a search sees it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from asr.families.transducer.model import Transducer
from asr.families.transducer.predictor import LastTokens
from decoding.emitter import FrameScores
from decoding.top_tokens import top_tokens
from lm.language_model import ContextStore

LOUD = 3.0
"""A frame is worth stopping at if a label is this near to the blank in it, as far as the frame alone tells."""


class TransducerEmitter:
    """Scores frames of encoded utterances; see ``decoding.emitter.FrameSynchronous``.

    Which tokens a frame of a transducer allows depends on the label history. With fewer candidates than V
    they are chosen by the joint network without its predictor, ``W_o tanh(W_e h_t)``, before the search;
    a token that only the history makes likely is then missed. The scores are normalised over all of V either
    way.

    Args:
        model: the model, in evaluation mode.
        encoded: ``(B, T, D)`` encoder frames.
        lengths: ``(B,)`` frames of each utterance.
        top: candidate tokens per frame; all of V when it is not smaller, or none is given.
    """

    lm_scale: float = 0.0
    contexts: ContextStore | None = None
    repeats = False
    lookahead = 8

    def __init__(self, model: Transducer, encoded: Tensor, lengths: Tensor, top: int | None = None) -> None:
        self.num_tokens = model.num_tokens
        self._row = torch.arange(len(lengths), device=encoded.device)[:, None]
        self._histories = model.predictor.histories()
        self.steady = isinstance(self._histories, LastTokens)
        self._joint = model.joint
        self._weight, self._bias = model.joint.output.weight.float(), model.joint.output.bias.float()
        self._top = self.num_tokens if top is None else min(top, self.num_tokens)
        self._all = self._top == self.num_tokens
        self.hear(encoded, lengths)

    def hear(self, encoded: Tensor, lengths: Tensor) -> None:
        """See ``FrameSynchronous.hear``."""
        self.lengths = lengths
        self._frame = self._joint.frame(encoded).float()  # (B, T, J)
        logits = self._logits(self._frame)
        evidence = logits[..., :-1]
        if self._all:
            every = torch.arange(self.num_tokens, device=encoded.device)
            self.evidence, self.tokens = evidence, every.expand(evidence.shape)
        else:
            self.evidence, self.tokens = top_tokens(evidence, self._top)
        self.loud = self.evidence.amax(-1) > logits[..., -1] - LOUD

    def start(self) -> Tensor:
        """The empty history of each utterance ``(B,)``."""
        return self._histories.start(len(self.lengths))

    def score(self, frames: Tensor, state: Tensor) -> FrameScores:
        """See ``FrameSynchronous.score``."""
        if state.device.type == "cpu":
            return self._score(frames, state)
        joined = self._histories.rows(state)[:, :, None] + self._frame[self._row, frames][:, None]
        logits = self._logits(joined)  # (B, K, F, V + 1)
        total = logits.logsumexp(-1, keepdim=True)
        blank, label = logits[..., -1:], logits[..., :-1]
        if not self._all:
            tokens = self.tokens[self._row, frames][:, None]
            label = label.gather(-1, tokens.expand(*label.shape[:-1], -1))
        return FrameScores((blank - total).squeeze(-1), label - total)

    def _score(self, frames: Tensor, state: Tensor) -> FrameScores:
        """The same on a CPU, where frames that are asked for twice are scored once too."""
        from asr.families.transducer import kernel

        state, frames = state.contiguous(), frames.contiguous()
        shape = (*state.shape, frames.shape[1])
        history, first = np.empty((2, state.numel()), np.int64)
        pairs, place = np.empty((state.numel() * shape[-1], 2), np.int64), np.empty(shape, np.int64)
        sizes = kernel.distinct(state.numpy(), frames.numpy(), history, first, pairs, place)
        rows = self._histories.rows(torch.from_numpy(history[: sizes[0]]))
        joined = torch.empty((sizes[1], rows.shape[-1]))
        kernel.join(rows.numpy(), pairs, first, self._frame.numpy(), joined.numpy())
        logits = F.linear(joined.tanh_(), self._weight, self._bias)
        total = logits.logsumexp(-1)
        if self._all:
            logits = (logits - total[:, None])[torch.from_numpy(place)]
            return FrameScores(logits[..., -1], logits[..., :-1])
        blank, label = torch.empty(shape), torch.empty((*shape, self._top))
        tables = (logits.numpy(), total.numpy(), self.tokens.numpy(), frames.numpy(), place)
        kernel.spread(*tables, blank.numpy(), label.numpy())
        return FrameScores(blank, label)

    def lm_logp(self, state: Tensor, tokens: Tensor) -> None:
        """None: what a transducer knows of the language is not a part that could be taken out."""

    def context(self, state: Tensor) -> Tensor:
        """There are no contexts."""
        raise NotImplementedError

    def join(self, state: Tensor, tokens: Tensor, contexts: Tensor) -> Tensor:
        """There are no contexts."""
        raise NotImplementedError

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``FrameSynchronous.advance``."""
        return self._histories.advance(state, tokens)

    def internal(self) -> TransducerEmitter:
        """What offers ``internal_logits``: itself."""
        return self

    def internal_logits(self, state: Tensor) -> Tensor:
        """What the labels alone let expect, logits ``(M, V)`` with nothing heard (ILME, arXiv 2011.01991)."""
        return self._logits(self._histories.rows(state))[:, :-1]

    def close(self, state: Tensor) -> Tensor:
        """See ``FrameSynchronous.close``."""
        return state

    def _logits(self, joined: Tensor) -> Tensor:
        return F.linear(torch.tanh(joined), self._weight, self._bias)
