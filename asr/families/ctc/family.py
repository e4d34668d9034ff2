"""The CTC model as a family: how recipes and the recognizer build it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from asr.families.ctc.config import CTCConfig, CTCLossConfig
from asr.families.ctc.emitter import CTCEmitter
from asr.families.ctc.model import CTC
from lm.config import build_config
from lm.tokenizer import Tokenizer

KNOWS_CLASSES = False
"""Whether these models have a language model of their own that knows class tags."""


class CTCFamily:
    """See ``asr.families.Family``."""

    knows_classes = KNOWS_CLASSES

    def __init__(self, model: CTC) -> None:
        self.model = model
        self.stacking = model.config.encoder.stacking

    def loss_config(self, values: dict[str, Any]) -> CTCLossConfig:
        """The training objective's settings."""
        return build_config(CTCLossConfig, values, "loss")

    def emitter(self, features: Tensor, lengths: Tensor, lm_scale: float, candidates: int) -> CTCEmitter:
        """Encode ``features`` ``(B, S, F)`` and offer them to a search; ``lm_scale`` has nothing to scale."""
        device = self.model.output.weight.device
        encoded, frames = self.model.encode(features.to(device), lengths.to(device))
        return CTCEmitter(self.model, encoded, frames, candidates)


def build(config: dict[str, Any], tokenizer: Tokenizer, source: str) -> CTCFamily:
    """A CTC model with fresh weights."""
    parsed = build_config(CTCConfig, config, f"{source}, model")
    return CTCFamily(CTC(parsed, tokenizer.vocab_size))
