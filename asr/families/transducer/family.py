"""The transducer as a family: how recipes and the recognizer build it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from asr.families.transducer.config import TransducerConfig, TransducerLossConfig
from asr.families.transducer.emitter import TransducerEmitter
from asr.families.transducer.model import Transducer
from lm.config import build_config
from lm.tokenizer import Tokenizer

KNOWS_CLASSES = False
"""Whether these models have a language model of their own that knows class tags."""


class TransducerFamily:
    """See ``asr.families.Family``."""

    knows_classes = KNOWS_CLASSES

    def __init__(self, model: Transducer) -> None:
        self.model = model
        self.stacking = model.config.encoder.stacking

    def loss_config(self, values: dict[str, Any]) -> TransducerLossConfig:
        """The training objective's settings."""
        return build_config(TransducerLossConfig, values, "loss")

    def emitter(
        self, features: Tensor, lengths: Tensor, lm_scale: float, candidates: int
    ) -> TransducerEmitter:
        """Encode ``features`` ``(B, S, F)`` and offer them to a search; ``lm_scale`` has nothing to scale."""
        device = self.model.ctc.weight.device
        encoded, frames = self.model.encode(features.to(device), lengths.to(device))
        return TransducerEmitter(self.model, encoded, frames, candidates)


def build(config: dict[str, Any], tokenizer: Tokenizer, source: str) -> TransducerFamily:
    """A transducer with fresh weights."""
    parsed = build_config(TransducerConfig, config, f"{source}, model")
    return TransducerFamily(Transducer(parsed, tokenizer.vocab_size))
