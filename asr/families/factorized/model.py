"""Factorized neural transducer, FNT (Chen et al. 2022, arXiv 2110.01500), with class tags in its predictor.

    z^B_{t,u} = w · tanh(W h_t + g_u) + b          blank, its own small predictor g over surface tokens
    a_t       = W_a tanh(h_t) + b_a                what was heard
    ℓ_u       = log softmax_V(predictor(y_<u))     what a language model expects; no blank, no end
    P(· | t, u) = softmax([z^B_{t,u} ; a_t + ℓ_u])

or, as the modular hybrid autoregressive transducer MHAT (Meng et al. 2022, arXiv 2210.17049),

    P(∅ | t, u) = σ(z^B_{t,u}),  P(v | t, u) = (1 - P(∅ | t, u)) softmax_V(a_t + ℓ_u)

The predictor also scores class tags (C-FNT, arXiv 2309.07648): trained on transcripts with entities replaced by
their tag, it says how likely "a contact" is next, and the search asks the list how likely each contact is.
The transducer loss sees surface tokens only, with ℓ normalised over V: without lists this is the plain FNT.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.data.examples import Batch
from asr.encoders.build import build_encoder
from asr.families.factorized.config import FactorizedConfig, FactorizedLossConfig
from asr.features import FeatureNormaliser
from asr.losses.ctc import ctc_loss
from asr.losses.factorized import blank_joint, factorized_loss
from lm.transformer import TransformerLM


class FactorizedTransducer(nn.Module):
    """Encoder, blank predictor, vocabulary predictor and acoustic projection."""

    def __init__(self, config: FactorizedConfig, num_tokens: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = num_tokens
        self.normaliser = FeatureNormaliser(config.encoder.features)
        self.encoder = build_encoder(config.encoder)
        self.predictor = TransformerLM(config.predictor, num_tokens, num_classes)
        self.blank_predictor = BlankPredictor(config, num_tokens)
        self.blank_frame = nn.Linear(self.encoder.width, config.blank_width)
        self.blank_output = nn.Linear(config.blank_width, 1)
        self.acoustic = nn.Linear(self.encoder.width, num_tokens)
        self.ctc = nn.Linear(self.encoder.width, num_tokens + 1)

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder frames ``(B, T, D)`` and their number ``(B,)`` from features ``(B, S, F)``."""
        encoded: tuple[Tensor, Tensor] = self.encoder(self.normaliser(features), lengths)
        return encoded

    def acoustic_logits(self, encoded: Tensor) -> Tensor:
        """a ``(B, T, V)``."""
        logits: Tensor = self.acoustic(torch.tanh(encoded))
        return logits

    def losses(self, batch: Batch, config: FactorizedLossConfig) -> dict[str, Tensor]:
        """Each part of the objective, and their weighted sum ``total``, in nats per label.

        The parts are ``transducer``, ``ctc`` and cross-entropies ``lm`` (surface) and ``class_lm`` (tagged).
        """
        encoded, frames = self.encode(batch.features, batch.feature_lengths)
        labels = batch.label_lengths.sum().clamp(min=1)
        lm_logits = self.predictor(batch.labels)[..., : self.num_tokens]
        lm_logp = lm_logits.float().log_softmax(-1)
        blank = blank_joint(
            self.blank_frame(encoded),
            self.blank_predictor(batch.labels),
            self.blank_output.weight[0],
            self.blank_output.bias,
        )
        transducer = factorized_loss(
            blank,
            self.acoustic_logits(encoded),
            lm_logp,
            batch.labels,
            frames,
            batch.label_lengths,
            variant=self.config.variant,
        )
        parts = {"transducer": transducer.sum() / labels}
        weights = {"transducer": 1.0, "ctc": config.ctc_weight, "lm": config.lm_weight}
        if config.ctc_weight:
            logp = self.ctc(encoded).float().log_softmax(-1)
            ctc, _ = ctc_loss(logp, batch.labels, frames, batch.label_lengths, blank=self.num_tokens)
            parts["ctc"] = ctc.sum() / labels
        if config.lm_weight:
            parts["lm"] = _cross_entropy(lm_logp, batch.labels, batch.label_lengths)
        if config.class_weight and self.predictor.num_classes:
            tagged = self.predictor(batch.patterns).float().log_softmax(-1)
            parts["class_lm"] = _cross_entropy(tagged, batch.patterns, batch.pattern_lengths)
            weights["class_lm"] = config.class_weight
        if len(batch.text):
            logp = self.predictor(batch.text).float().log_softmax(-1)
            parts["text_lm"] = _cross_entropy(logp, batch.text, batch.text_lengths)
            weights["text_lm"] = config.lm_weight
        parts["total"] = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        return parts


class BlankPredictor(nn.Module):
    """g: a stateless predictor over the last few surface tokens, one embedding table per place."""

    def __init__(self, config: FactorizedConfig, num_tokens: int) -> None:
        super().__init__()
        self.context = config.blank_context
        self.num_tokens = num_tokens
        # The last row of each table stands for "before the first token".
        self.embedding = nn.Embedding(self.context * (num_tokens + 1), config.blank_width)
        nn.init.normal_(self.embedding.weight, std=config.blank_width**-0.5)

    def forward(self, labels: Tensor) -> Tensor:
        """g ``(B, U + 1, H)`` for every prefix of ``labels`` ``(B, U)``."""
        padded = F.pad(labels, (self.context, 0), value=self.num_tokens)
        return self.look_up(padded.unfold(1, self.context, 1))

    def look_up(self, last: Tensor) -> Tensor:
        """g ``(..., H)`` for the last tokens ``(..., context)``, oldest first; V where there is none."""
        offsets = torch.arange(self.context, device=last.device) * (self.num_tokens + 1)
        looked_up: Tensor = self.embedding(last + offsets)
        return looked_up.sum(-2)


def _cross_entropy(logp: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
    picked = logp[:, :-1].gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    valid = torch.arange(labels.shape[1], device=labels.device) < lengths[:, None]
    return -(picked * valid).sum() / lengths.sum().clamp(min=1)
