"""The hybrid transducer-attention model as a family: how recipes and the recognizer build it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from asr.families.taed.config import TAEDConfig, TAEDLossConfig
from asr.families.taed.emitter import TAEDEmitter
from asr.families.taed.model import TAED
from lm.config import build_config
from lm.tokenizer import Tokenizer

KNOWS_CLASSES = False
"""Whether these models have a language model of their own that knows class tags."""


class TAEDFamily:
    """See ``asr.families.Family``."""

    knows_classes = KNOWS_CLASSES

    def __init__(self, model: TAED) -> None:
        self.model = model
        self.stacking = model.config.encoder.stacking

    def loss_config(self, values: dict[str, Any]) -> TAEDLossConfig:
        """The training objective's settings."""
        return build_config(TAEDLossConfig, values, "loss")

    def emitter(self, features: Tensor, lengths: Tensor, lm_scale: float, candidates: int) -> TAEDEmitter:
        """Encode ``features`` ``(B, S, F)`` and offer them to a search; ``lm_scale`` has nothing to scale."""
        device = self.model.ctc.weight.device
        encoded, frames = self.model.encode(features.to(device), lengths.to(device))
        return TAEDEmitter(self.model, encoded, frames, candidates)


def build(config: dict[str, Any], tokenizer: Tokenizer, source: str) -> TAEDFamily:
    """A TAED with fresh weights."""
    parsed = build_config(TAEDConfig, config, f"{source}, model")
    return TAEDFamily(TAED(parsed, tokenizer.vocab_size))
