"""Configuration of the attention-based encoder-decoder."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from asr.decoders.config import DecoderConfig, TransformerDecoderConfig
from asr.encoders.build import EncoderConfig
from asr.encoders.conformer import ConformerConfig
from lm.config import Config


class AEDConfig(Config):
    """Shape of an attention-based encoder-decoder (AED)."""

    encoder: EncoderConfig = ConformerConfig()
    """The acoustic encoder; a Conformer unless ``kind`` says ``blstm``."""
    decoder: DecoderConfig = TransformerDecoderConfig()
    """The decoder; a Transformer unless ``kind`` says ``lstm``."""


class AEDLossConfig(Config):
    """The training objective."""

    ctc_weight: float = Field(0.5, ge=0)
    """CTC loss on the encoder: without it attention seldom finds its way on little data (arXiv 1805.03294)."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of the target that is spread evenly over all symbols; off while layers are still being added."""
    class_rate: ClassVar[float] = 0.0
    """No entity of the transcripts becomes its class tag: an AED knows words only."""
