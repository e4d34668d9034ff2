"""Configuration of the CTC model."""

from __future__ import annotations

from typing import ClassVar

from asr.encoders.build import EncoderConfig
from asr.encoders.conformer import ConformerConfig
from lm.config import Config


class CTCConfig(Config):
    """Shape of a CTC model."""

    encoder: EncoderConfig = ConformerConfig()
    """The acoustic encoder; a Conformer unless ``kind`` says ``blstm``."""


class CTCLossConfig(Config):
    """The training objective; CTC has nothing to set."""

    class_rate: ClassVar[float] = 0.0
    """No entity of the transcripts becomes its class tag: CTC knows words only."""
