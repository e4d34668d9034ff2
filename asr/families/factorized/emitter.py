"""The factorized transducer as a search sees it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from asr.families.factorized.model import FactorizedTransducer
from decoding.emitter import FrameScores
from decoding.top_tokens import top_tokens
from lm.errors import ConfigError
from lm.language_model import ContextStore, Rows

MOST_TAILS = 2**38
"""Combinations of last surface tokens that leave room for the contexts of a search in an integer."""


class FactorizedEmitter:
    """Scores frames of encoded utterances; see ``decoding.emitter.FrameSynchronous``.

    The normaliser of ``P(· | t, u)`` is one dot product of V numbers per hypothesis (METHODS 1d):
    ``log Z = logaddexp(z^B, A_t + log Σ_v exp(a_t[v] - A_t) · exp(μ ℓ_u[v]))``, and both factors are computed
    once, per frame and per context. MHAT's labels have a normaliser over V alone, the same product, and
    ``log(1 - P(∅))`` on top; a class grammar replaces ``μ ℓ`` in either and leaves the normaliser as it is.

    Args:
        model: the model, in evaluation mode.
        encoded: ``(B, T, D)`` encoder frames.
        lengths: ``(B,)`` frames of each utterance.
        lm_scale: μ, weight of the vocabulary predictor while decoding.
        top: candidate tokens per frame, chosen by the acoustic score; all of V when it is not smaller.
        contexts: the predictor's contexts, when they are shared with a class grammar.
    """

    repeats = False
    lookahead = 8
    steady = False
    loud: Tensor | None = None

    def __init__(
        self,
        model: FactorizedTransducer,
        encoded: Tensor,
        lengths: Tensor,
        lm_scale: float = 1.0,
        top: int = 32,
        contexts: ContextStore | None = None,
    ) -> None:
        self.num_tokens = model.num_tokens
        self.lm_scale = lm_scale
        self.contexts = contexts or model.predictor.contexts()
        self._model, self._top = model, min(top, model.num_tokens)
        self.hear(encoded, lengths)
        self._row = torch.arange(len(encoded), device=encoded.device)
        self._predictor = model.blank_predictor
        self._output = model.blank_output
        self._expected = Rows((self.num_tokens,), torch.float32, encoded.device)  # exp(μ ℓ) by context
        # A state is a context of the vocabulary predictor, times this, plus the last surface tokens in digits: an
        # entity may be a class tag in the context, but the blank predictor hears its words.
        self._base = self.num_tokens + 1
        self._tails: int = self._base**self._predictor.context
        if self._tails > MOST_TAILS:
            problem = f"blank_context {self._predictor.context} with {self.num_tokens} tokens"
            raise ConfigError(
                problem, f"at most {MOST_TAILS:.0e} combinations", "use a smaller blank_context"
            )

    def hear(self, encoded: Tensor, lengths: Tensor) -> None:
        """See ``FrameSynchronous.hear``."""
        self.lengths = lengths
        acoustic = self._model.acoustic_logits(encoded).float()
        self._peak = acoustic.amax(-1)  # (B, T)
        self._heard = (acoustic - self._peak[..., None]).exp()  # (B, T, V)
        self.evidence, self.tokens = top_tokens(acoustic, self._top)
        self._frame = self._model.blank_frame(encoded).float()  # (B, T, H)

    def start(self) -> Tensor:
        """The empty context of each utterance ``(B,)``."""
        state: Tensor = self.contexts.start(len(self.lengths)) * self._tails + self._tails - 1
        return state

    def score(self, frames: Tensor, state: Tensor) -> FrameScores:
        """See ``FrameSynchronous.score``."""
        if len(self._expected.data) < len(self.contexts):
            self._follow()
        row = self._row[:, None]
        context, tail = self.context(state), state % self._tails
        digits = [tail // self._base**place % self._base for place in range(self._predictor.context)]
        blank_context = self._predictor.look_up(torch.stack(digits[::-1], dim=-1)).float()
        hidden = torch.tanh(blank_context[:, :, None] + self._frame[row, frames][:, None])
        blank = torch.matmul(hidden, self._output.weight[0]) + self._output.bias  # (B, K, F)
        total = self._expectations(context, frames)
        labels = total.clamp_min(torch.finfo(torch.float32).tiny).log() + self._peak[row, frames][:, None]
        if self._model.config.variant == "mhat":
            blank_logp, normaliser = F.logsigmoid(blank), labels - F.logsigmoid(-blank)
        else:
            normaliser = torch.logaddexp(blank, labels)
            blank_logp = blank - normaliser
        return FrameScores(blank_logp, self.evidence[row, frames][:, None] - normaliser.unsqueeze(-1))

    def _expectations(self, context: Tensor, frames: Tensor) -> Tensor:
        """Σ_v exp(a_t[v] - A_t) · exp(μ ℓ_u[v]), ``(B, K, F)``."""
        if context.device.type != "cpu":
            return torch.bmm(
                self._expected.data[context], self._heard[self._row[:, None], frames].transpose(1, 2)
            )
        from asr.families.factorized.kernel import expectations

        total = torch.empty((*context.shape, frames.shape[1]))
        tables = (self._expected.data.numpy(), context.contiguous().numpy(), self._heard.contiguous().numpy())
        expectations(*tables, frames.contiguous().numpy(), total.numpy())
        return total

    def lm_logp(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``FrameSynchronous.lm_logp``."""
        logp = self.contexts.score(self.context(state), tokens.flatten(1)[:, None])
        return logp.view(*state.shape, *tokens.shape[1:])

    def close(self, state: Tensor) -> Tensor:
        """See ``FrameSynchronous.close``."""
        return state

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``FrameSynchronous.advance``."""
        return self.join(state, tokens, self.contexts.advance(self.context(state), tokens))

    def context(self, state: Tensor) -> Tensor:
        """See ``FrameSynchronous.context``."""
        context: Tensor = state // self._tails
        return context

    def join(self, state: Tensor, tokens: Tensor, contexts: Tensor) -> Tensor:
        """See ``FrameSynchronous.join``."""
        after: Tensor = contexts * self._tails + (state % self._tails * self._base + tokens) % self._tails
        return after

    def _follow(self) -> None:
        """Compute this emitter's part of the contexts that were added since the last call."""
        new = self.contexts.table[len(self._expected.data) :, : self.num_tokens]
        self._expected.append((self.lm_scale * new).exp())
