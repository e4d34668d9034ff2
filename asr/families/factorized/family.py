"""The factorized transducer as a family: how recipes and the recognizer build it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from asr.families.factorized.config import FactorizedConfig, FactorizedLossConfig
from asr.families.factorized.emitter import FactorizedEmitter
from asr.families.factorized.model import FactorizedTransducer
from lm.config import build_config
from lm.tokenizer import Tokenizer

KNOWS_CLASSES = True
"""Whether these models have a language model of their own that knows class tags."""


class FactorizedFamily:
    """See ``asr.families.Family``."""

    knows_classes = KNOWS_CLASSES

    def __init__(self, model: FactorizedTransducer) -> None:
        self.model = model
        self.stacking = model.config.encoder.stacking

    def loss_config(self, values: dict[str, Any]) -> FactorizedLossConfig:
        """The training objective's settings."""
        return build_config(FactorizedLossConfig, values, "loss")

    def emitter(
        self, features: Tensor, lengths: Tensor, lm_scale: float, candidates: int
    ) -> FactorizedEmitter:
        """Encode ``features`` ``(B, S, F)`` and offer them to a search."""
        device = self.model.acoustic.weight.device
        encoded, frames = self.model.encode(features.to(device), lengths.to(device))
        return FactorizedEmitter(self.model, encoded, frames, lm_scale, candidates)


def build(config: dict[str, Any], tokenizer: Tokenizer, source: str) -> FactorizedFamily:
    """A factorized transducer with fresh weights."""
    parsed = build_config(FactorizedConfig, config, f"{source}, model")
    return FactorizedFamily(FactorizedTransducer(parsed, tokenizer.vocab_size, tokenizer.num_classes))
