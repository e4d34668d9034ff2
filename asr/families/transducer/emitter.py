"""The transducer as a search sees it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from asr.families.transducer.model import Transducer
from decoding.emitter import FrameScores
from lm.language_model import ContextStore


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
    lookahead = 4

    def __init__(self, model: Transducer, encoded: Tensor, lengths: Tensor, top: int | None = None) -> None:
        self.num_tokens = model.num_tokens
        self.lengths = lengths
        self._row = torch.arange(len(lengths), device=encoded.device)[:, None]
        self._histories = model.predictor.histories()
        self._frame = model.joint.frame(encoded).float()  # (B, T, J)
        self._weight, self._bias = model.joint.output.weight.float(), model.joint.output.bias.float()
        evidence = self._logits(self._frame)[..., :-1]
        self._all = top is None or top >= self.num_tokens
        if self._all:
            every = torch.arange(self.num_tokens, device=encoded.device)
            self.evidence, self.tokens = evidence, every.expand(evidence.shape)
        else:
            self.evidence, self.tokens = evidence.topk(top or 1, dim=-1)

    def start(self) -> Tensor:
        """The empty history of each utterance ``(B,)``."""
        return self._histories.start(len(self.lengths))

    def score(self, frames: Tensor, state: Tensor) -> FrameScores:
        """See ``FrameSynchronous.score``."""
        heard = self._frame[self._row, frames]  # (B, F, J)
        joined = self._histories.rows(state)[:, :, None] + heard[:, None]
        logp = self._logits(joined).log_softmax(-1)  # (B, K, F, V + 1)
        label = logp[..., :-1]
        if not self._all:
            tokens = self.tokens[self._row, frames]
            label = logp.gather(-1, tokens[:, None].expand(-1, state.shape[1], -1, -1))
        return FrameScores(logp[..., -1], label)

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

    def internal_logits(self, state: Tensor) -> Tensor:
        """What the labels alone let expect, logits ``(M, V)`` with nothing heard (ILME, arXiv 2011.01991)."""
        return self._logits(self._histories.rows(state))[:, :-1]

    def close(self, state: Tensor) -> Tensor:
        """See ``FrameSynchronous.close``."""
        return state

    def _logits(self, joined: Tensor) -> Tensor:
        return F.linear(torch.tanh(joined), self._weight, self._bias)
