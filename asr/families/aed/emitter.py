"""The attention-based encoder-decoder as a search sees it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from asr.decoders.histories import DecoderHistories
from asr.decoders.lstm import LSTMDecoder, LSTMDecoderHistories
from asr.encoders.masks import valid_frames
from asr.families.aed.model import AED
from decoding.label_emitter import LabelScores


class AEDEmitter:
    """Scores label histories of encoded utterances; see ``decoding.label_emitter.LabelSynchronous``.

    Args:
        model: the model, in evaluation mode.
        encoded: ``(B, T, D)`` encoder frames.
        lengths: ``(B,)`` frames of each utterance; so many labels it may have at most.
    """

    contexts = None

    def __init__(self, model: AED, encoded: Tensor, lengths: Tensor) -> None:
        self.num_tokens = model.num_tokens
        self.lengths = self.max_labels = lengths
        self._model = model
        self._encoded = encoded
        self._histories = _histories(model, encoded, lengths)

    def start(self) -> Tensor:
        """The empty history of each utterance ``(B,)``."""
        return torch.arange(len(self.lengths), device=self.lengths.device)

    def score(self, state: Tensor) -> LabelScores:
        """See ``LabelSynchronous.score``."""
        logp = _logits(self._model, self._histories, state).log_softmax(-1)
        return LabelScores(logp[..., :-1], logp[..., -1])

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``LabelSynchronous.advance``."""
        return self._histories.tree.advance(state, tokens)

    def where(self, state: Tensor) -> Tensor:
        """See ``Attending.where``."""
        return self._histories.where(state)

    def ctc(self) -> tuple[Tensor, Tensor] | None:
        """See ``Spelled.ctc``."""
        if not self._model.ctc.bias.any():
            return None
        return self._model.ctc(self._encoded).float().log_softmax(-1), self.lengths

    def internal(self) -> InternalAED:
        """What the decoder expects of labels when nothing is heard (ILME)."""
        return InternalAED(self._model, len(self.lengths))


class InternalAED:
    """The decoder without its encoder: what attention brings is zero (Meng et al. 2021, arXiv 2011.01991)."""

    def __init__(self, model: AED, utterances: int) -> None:
        self._model, self._utterances = model, utterances
        self.num_tokens = model.num_tokens
        if isinstance(model.decoder, LSTMDecoder):
            nothing = torch.ones(1, 1, dtype=torch.bool, device=model.output.weight.device)
            self._histories: Histories = LSTMDecoderHistories(model.decoder, None, nothing)
        else:
            self._histories = DecoderHistories(model.decoder, 1)

    def start(self) -> Tensor:
        """The empty history, one for all: ``(B,)``."""
        return torch.zeros(self._utterances, dtype=torch.long, device=self._model.output.weight.device)

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Histories ``(M,)`` after each of ``tokens`` ``(M,)``."""
        return self._histories.tree.advance(state, tokens)

    def internal_logits(self, state: Tensor) -> Tensor:
        """Logits ``(M, V)`` of what follows; the end is left out."""
        return _logits(self._model, self._histories, state)[..., :-1]


Histories = DecoderHistories | LSTMDecoderHistories


def _histories(model: AED, encoded: Tensor, lengths: Tensor) -> Histories:
    memory = model.decoder.remember(encoded)
    if isinstance(model.decoder, LSTMDecoder):
        return LSTMDecoderHistories(model.decoder, memory, valid_frames(lengths, encoded.shape[1]))
    histories = DecoderHistories(model.decoder, len(lengths))
    histories.hear(memory, lengths)
    return histories


def _logits(model: AED, histories: Histories, state: Tensor) -> Tensor:
    """Logits ``(..., V + 1)`` after histories of any shape; each is scored once."""
    distinct, place = torch.unique(state, return_inverse=True)
    if isinstance(histories, DecoderHistories):
        states = histories.states(distinct, torch.zeros_like(distinct))
    else:
        states = histories.states(distinct)
    logits = F.linear(states, model.output.weight.float(), model.output.bias.float())
    return logits[place]
