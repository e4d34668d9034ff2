"""The attention-based encoder-decoder as a family: how recipes and the recognizer build it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from asr.families.aed.config import AEDConfig, AEDLossConfig
from asr.families.aed.emitter import AEDEmitter
from asr.families.aed.model import AED
from lm.config import build_config
from lm.tokenizer import Tokenizer

KNOWS_CLASSES = False
"""Whether these models have a language model of their own that knows class tags."""


class AEDFamily:
    """See ``asr.families.Family``."""

    knows_classes = KNOWS_CLASSES

    def __init__(self, model: AED) -> None:
        self.model = model
        self.stacking = model.config.encoder.stacking

    def loss_config(self, values: dict[str, Any]) -> AEDLossConfig:
        """The training objective's settings."""
        return build_config(AEDLossConfig, values, "loss")

    def emitter(self, features: Tensor, lengths: Tensor, lm_scale: float, candidates: int) -> AEDEmitter:
        """Encode ``features`` ``(B, S, F)`` and offer them to a search.

        ``lm_scale`` has nothing to scale, and all labels are ``candidates`` at every step.
        """
        device = self.model.ctc.weight.device
        encoded, frames = self.model.encode(features.to(device), lengths.to(device))
        return AEDEmitter(self.model, encoded, frames)


def build(config: dict[str, Any], tokenizer: Tokenizer, source: str) -> AEDFamily:
    """An AED with fresh weights."""
    parsed = build_config(AEDConfig, config, f"{source}, model")
    return AEDFamily(AED(parsed, tokenizer.vocab_size))
