"""Attention-based encoder-decoder, AED (Chan et al. 2016, arXiv 1508.01211).

    P(y | x) = Π_u P(y_u | y_<u, h) · P(end | y, h),     P(· | y_<u, h) = softmax(W Dec(y_<u; h) + b)

over V labels and the end, which is last.
"""

from __future__ import annotations

from torch import Tensor, nn

from asr.data.examples import Batch
from asr.decoders.config import TransformerDecoderConfig
from asr.decoders.lstm import LSTMDecoder
from asr.decoders.transformer import TransformerDecoder
from asr.encoders.build import build_encoder
from asr.encoders.masks import valid_frames
from asr.families.aed.config import AEDConfig, AEDLossConfig
from asr.features import FeatureNormaliser
from asr.losses.attention import attention_loss
from asr.losses.ctc import ctc_loss


class AED(nn.Module):
    """Encoder and decoder, with a CTC head for training and for the search."""

    def __init__(self, config: AEDConfig, num_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = num_tokens
        self.normaliser = FeatureNormaliser(config.encoder.features)
        self.encoder = build_encoder(config.encoder)
        self.decoder: TransformerDecoder | LSTMDecoder
        if isinstance(config.decoder, TransformerDecoderConfig):
            self.decoder = TransformerDecoder(config.decoder, num_tokens, self.encoder.width)
        else:
            self.decoder = LSTMDecoder(config.decoder, num_tokens, self.encoder.width)
        self.output = nn.Linear(self.decoder.width, num_tokens + 1)
        self.ctc = nn.Linear(self.encoder.width, num_tokens + 1)
        # So that a search can tell a head that was not trained: training moves every bias.
        nn.init.zeros_(self.ctc.bias)
        self._growing = False

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder frames ``(B, T, D)`` and their number ``(B,)`` from features ``(B, S, F)``."""
        encoded: tuple[Tensor, Tensor] = self.encoder(self.normaliser(features), lengths)
        return encoded

    def pretraining(self, growing: bool) -> None:
        """Whether layers are still being added; labels are not smoothed until all are there."""
        self._growing = growing

    def losses(self, batch: Batch, config: AEDLossConfig) -> dict[str, Tensor]:
        """The parts ``attention`` and ``ctc`` of the objective, and their sum ``total``, in nats per label.

        The end of an utterance counts as a label in ``attention``.
        """
        encoded, frames = self.encode(batch.features, batch.feature_lengths)
        visible = valid_frames(frames, encoded.shape[1])
        states = self.decoder(batch.labels, self.decoder.remember(encoded), visible)
        smoothing = 0.0 if self._growing else config.label_smoothing
        loss = attention_loss(self.output(states), batch.labels, batch.label_lengths, smoothing)
        parts = {"attention": loss.sum() / (batch.label_lengths + 1).sum()}
        total = parts["attention"]
        if config.ctc_weight:
            logp = self.ctc(encoded).float().log_softmax(-1)
            ctc, _ = ctc_loss(logp, batch.labels, frames, batch.label_lengths, blank=self.num_tokens)
            parts["ctc"] = ctc.sum() / batch.label_lengths.sum().clamp(min=1)
            total = total + config.ctc_weight * parts["ctc"]
        return parts | {"total": total}
