"""Connectionist temporal classification, CTC (Graves et al. 2006): each frame says one symbol or blank.

P(y | x) = Σ_π Π_t P(π_t | h_t)       over all π that become y when repeats are merged and blanks removed
"""

from __future__ import annotations

from torch import Tensor, nn

from asr.data.examples import Batch
from asr.encoders.build import build_encoder
from asr.families.ctc.config import CTCConfig, CTCLossConfig
from asr.features import FeatureNormaliser
from asr.losses.ctc import ctc_loss


class CTC(nn.Module):
    """Encoder and a linear layer over V labels and blank, blank last."""

    def __init__(self, config: CTCConfig, num_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = num_tokens
        self.normaliser = FeatureNormaliser(config.encoder.features)
        self.encoder = build_encoder(config.encoder)
        self.output = nn.Linear(self.encoder.width, num_tokens + 1)

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder frames ``(B, T, D)`` and their number ``(B,)`` from features ``(B, S, F)``."""
        encoded: tuple[Tensor, Tensor] = self.encoder(self.normaliser(features), lengths)
        return encoded

    def logp(self, encoded: Tensor) -> Tensor:
        """Log probabilities ``(B, T, V + 1)`` of every frame's symbols."""
        logits: Tensor = self.output(encoded)
        return logits.float().log_softmax(-1)

    def losses(self, batch: Batch, config: CTCLossConfig) -> dict[str, Tensor]:
        """``ctc``, which is also the ``total``, in nats per label.

        ``unaligned`` is the share of utterances with more labels than frames to say them in, which teach
        nothing.
        """
        encoded, frames = self.encode(batch.features, batch.feature_lengths)
        loss, impossible = ctc_loss(
            self.logp(encoded), batch.labels, frames, batch.label_lengths, blank=self.num_tokens
        )
        ctc = loss.sum() / batch.label_lengths.sum().clamp(min=1)
        return {"ctc": ctc, "unaligned": ctc.new_tensor(impossible / len(loss)), "total": ctc}
