"""The hybrid transducer-attention model as a search sees it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from asr.decoders.histories import DecoderHistories
from asr.decoders.memory import Memory
from asr.families.taed.model import TAED
from decoding.emitter import FrameScores
from decoding.top_tokens import top_tokens
from lm.errors import ConfigError
from lm.language_model import ContextStore

LOUD = 3.0
"""A frame is worth stopping at if a label is this near to the blank in it, as far as the frame alone tells."""


class TAEDEmitter:
    """Scores frames of encoded utterances; see ``decoding.emitter.FrameSynchronous``.

    A state is a label history. What the decoder makes of it is computed anew for every chunk of frames in which it
    is alive, and by one label more within a chunk. As for a transducer, candidate tokens of a frame are chosen
    without the decoder.

    Args:
        model: the model, in evaluation mode.
        encoded: ``(B, T, D)`` encoder frames.
        lengths: ``(B,)`` frames of each utterance.
        top: candidate tokens per frame; all of V when it is not smaller, or none is given.
    """

    lm_scale: float = 0.0
    contexts: ContextStore | None = None
    repeats = False
    steady = False

    def __init__(self, model: TAED, encoded: Tensor, lengths: Tensor, top: int | None = None) -> None:
        self.num_tokens = model.num_tokens
        self._model, self._chunk = model, model.config.chunk
        self._top = self.num_tokens if top is None else min(top, self.num_tokens)
        self._all = self._top == self.num_tokens
        # Two chunks of an utterance are looked at in one step at most.
        self.lookahead = min(8, self._chunk) if self._chunk else 8
        self._weight, self._bias = model.joint.output.weight.float(), model.joint.output.bias.float()
        self._histories = DecoderHistories(model.decoder, len(lengths), self._chunk)
        self._row = torch.arange(len(lengths), device=encoded.device)[:, None]
        self._before = torch.zeros_like(lengths)
        self._heard = encoded[:, :0]
        self._memory: Memory | None = None
        self.lengths = self._before
        self.hear(encoded, lengths)

    def hear(self, encoded: Tensor, lengths: Tensor) -> None:
        """See ``FrameSynchronous.hear``; the decoder goes on hearing what came before.

        Raises:
            ConfigError: chunks that do not end where the decoder's do.
        """
        self._before = self._before + self.lengths
        if len(self._before) > 1 and self._before.any():
            raise ConfigError("several streams in one search", "one", "make a search for each stream")
        if self._before.any() and (not self._chunk or (self._before % self._chunk).any()):
            raise ConfigError(
                f"a stream in pieces of {int(self._before.max())} frames, decoder_chunk {self._chunk}",
                "a decoder_chunk that divides the encoder's chunk",
                "train the model with decoder_chunk equal to encoder.chunk",
            )
        self.lengths = lengths
        first = int(self._before.max())
        memory = self._model.decoder.remember(encoded, first)
        if self._memory is not None and first:
            pairs = zip(self._memory.layers, memory.layers, strict=True)
            memory = Memory(tuple(torch.cat((past[:, :, :first], now), dim=2) for past, now in pairs))
        self._memory = memory
        self._histories.hear(memory, self._before + lengths)
        self._frame = self._model.joint.frame(encoded).float()  # (B, T, J)
        logits = self._logits(self._frame)
        evidence = logits[..., :-1]
        if self._all:
            every = torch.arange(self.num_tokens, device=encoded.device)
            self.evidence, self.tokens = evidence, every.expand(evidence.shape)
        else:
            self.evidence, self.tokens = top_tokens(evidence, self._top)
        self.loud: Tensor | None = self.evidence.amax(-1) > logits[..., -1] - LOUD

    def start(self) -> Tensor:
        """The empty history of each utterance ``(B,)``."""
        return self._row.squeeze(1).clone()

    def score(self, frames: Tensor, state: Tensor) -> FrameScores:
        """See ``FrameSynchronous.score``."""
        joined = self._states(frames, state) + self._frame[self._row, frames][:, None]  # (B, K, F, J)
        logits = self._logits(joined)
        total = logits.logsumexp(-1)
        label = logits[..., :-1]
        if not self._all:
            tokens = self.tokens[self._row, frames][:, None].expand(-1, state.shape[1], -1, -1)
            label = label.gather(-1, tokens)
        return FrameScores(logits[..., -1] - total, label - total.unsqueeze(-1))

    def _states(self, frames: Tensor, state: Tensor) -> Tensor:
        """``W_s s`` ``(B, K, F, J)`` of states ``(B, K)`` at ``frames`` ``(B, F)``, each computed once."""
        if not self._chunk:
            distinct, place = torch.unique(state, return_inverse=True)
            return self._project(distinct, torch.zeros_like(distinct))[place].unsqueeze(2)
        chunk = (self._before[:, None] + frames) // self._chunk
        first = chunk[:, :1]
        newest = chunk - first  # 0 or 1
        size = len(self._histories.tree)
        pair = torch.stack((first, first + newest.amax(-1, keepdim=True)), dim=-1)  # (B, 1, 2)
        keys = pair * size + state[..., None]  # (B, K, 2)
        distinct, place = torch.unique(keys, return_inverse=True)
        both = self._project(distinct % size, distinct // size)[place]  # (B, K, 2, J)
        index = newest[:, None, :, None].expand(-1, state.shape[1], -1, both.shape[-1])
        return both.gather(2, index)

    def _project(self, nodes: Tensor, chunks: Tensor) -> Tensor:
        return F.linear(self._histories.states(nodes, chunks), self._model.project.weight.float())

    def lm_logp(self, state: Tensor, tokens: Tensor) -> None:
        """None: what a TAED knows of the language is not a part that could be taken out."""

    def context(self, state: Tensor) -> Tensor:
        """There are no contexts."""
        raise NotImplementedError

    def join(self, state: Tensor, tokens: Tensor, contexts: Tensor) -> Tensor:
        """There are no contexts."""
        raise NotImplementedError

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``FrameSynchronous.advance``."""
        return self._histories.tree.advance(state, tokens)

    def close(self, state: Tensor) -> Tensor:
        """See ``FrameSynchronous.close``."""
        return state

    def internal(self) -> InternalTAED:
        """What the decoder expects of labels when nothing is heard (ILME)."""
        return InternalTAED(self._model, len(self.lengths))

    def _logits(self, joined: Tensor) -> Tensor:
        return F.linear(torch.tanh(joined), self._weight, self._bias)


class InternalTAED:
    """The joint network without frames, its decoder without memory (Meng et al. 2021, arXiv 2011.01991)."""

    def __init__(self, model: TAED, utterances: int) -> None:
        self._model, self._utterances = model, utterances
        self._histories = DecoderHistories(model.decoder, 1)

    def start(self) -> Tensor:
        """The empty history, one for all: ``(B,)``."""
        return torch.zeros(self._utterances, dtype=torch.long, device=self._model.ctc.weight.device)

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Histories ``(M,)`` after each of ``tokens`` ``(M,)``."""
        return self._histories.tree.advance(state, tokens)

    def internal_logits(self, state: Tensor) -> Tensor:
        """Logits ``(M, V)`` of what follows; blank is left out."""
        states = self._histories.states(state, torch.zeros_like(state))
        model = self._model
        joined = torch.tanh(F.linear(states, model.project.weight.float()))
        return F.linear(joined, model.joint.output.weight.float(), model.joint.output.bias.float())[:, :-1]
