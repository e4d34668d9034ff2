"""Recurrent neural network transducer, RNN-T (Graves 2012, arXiv 1211.3711).

    z_{t,u} = W_o tanh(W_e h_t + W_p g_u) + b      over V labels and blank
    P(· | t, u) = softmax(z_{t,u})

h are the encoder's frames and g what a predictor makes of the labels so far. A transducer has no language model
of its own that could be told apart, so class tags mean nothing to it: it is trained on surface tokens.
"""

from __future__ import annotations

from torch import Tensor, nn

from asr.data.examples import Batch
from asr.encoders.build import build_encoder
from asr.families.transducer.config import TransducerConfig, TransducerLossConfig
from asr.families.transducer.joint import Joint
from asr.families.transducer.predictor import LSTMPredictor, StatelessPredictor
from asr.features import FeatureNormaliser
from asr.losses.ctc import ctc_loss
from asr.losses.rnnt import transducer_loss_from_logp


class Transducer(nn.Module):
    """Encoder, predictor and joint network, with a CTC head for training."""

    def __init__(self, config: TransducerConfig, num_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = num_tokens
        self.normaliser = FeatureNormaliser(config.encoder.features)
        self.encoder = build_encoder(config.encoder)
        kind = StatelessPredictor if config.predictor.kind == "stateless" else LSTMPredictor
        self.predictor = kind(config.predictor, num_tokens, config.joint_width)
        self.joint = Joint(self.encoder.width, config.joint_width, num_tokens)
        self.ctc = nn.Linear(self.encoder.width, num_tokens + 1)

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder frames ``(B, T, D)`` and their number ``(B,)`` from features ``(B, S, F)``."""
        encoded: tuple[Tensor, Tensor] = self.encoder(self.normaliser(features), lengths)
        return encoded

    def losses(self, batch: Batch, config: TransducerLossConfig) -> dict[str, Tensor]:
        """The parts ``transducer`` and ``ctc`` of the objective, and their sum ``total``, in nats per label."""
        encoded, frames = self.encode(batch.features, batch.feature_lengths)
        count = batch.label_lengths.sum().clamp(min=1)
        blank_logp, label_logp = self.joint.lattice_logp(
            self.joint.frame(encoded),
            self.predictor(batch.labels),
            batch.labels,
            frames,
            batch.label_lengths,
        )
        loss = transducer_loss_from_logp(blank_logp, label_logp, frames, batch.label_lengths, config.backend)
        parts = {"transducer": loss.sum() / count}
        total = parts["transducer"]
        if config.ctc_weight:
            logp = self.ctc(encoded).float().log_softmax(-1)
            ctc, _ = ctc_loss(logp, batch.labels, frames, batch.label_lengths, blank=self.num_tokens)
            parts["ctc"] = ctc.sum() / count
            total = total + config.ctc_weight * parts["ctc"]
        return parts | {"total": total}
