"""Configuration of the factorized transducer."""

from __future__ import annotations

from pydantic import Field, model_validator

from asr.encoders.build import EncoderConfig
from asr.encoders.conformer import ConformerConfig
from asr.losses.factorized import Variant
from lm.config import Config
from lm.transformer import TransformerLMConfig


class FactorizedConfig(Config):
    """Shape of a factorized transducer (FNT) whose vocabulary predictor may be class-based (C-FNT)."""

    variant: Variant = "fnt"
    """``fnt``: one softmax over labels and blank. ``mhat``: blank has a sigmoid of its own, the labels share the
    rest by a softmax over V alone; the language model then never decides when to speak (arXiv 2210.17049)."""
    encoder: EncoderConfig = ConformerConfig()
    """The acoustic encoder; a Conformer unless ``kind`` says ``blstm``."""
    predictor: TransformerLMConfig = TransformerLMConfig()
    """The vocabulary predictor: a language model over surface tokens and class tags."""
    blank_width: int = Field(128, ge=1)
    """Width H of the blank joint."""
    blank_context: int = Field(2, ge=1)
    """Surface tokens that the blank predictor remembers."""

    @model_validator(mode="after")
    def _endless(self) -> FactorizedConfig:
        if self.predictor.end:
            raise ValueError("predictor.end false: a vocabulary predictor has no end of the sentence")
        return self


class FactorizedLossConfig(Config):
    """Weights of the training objective."""

    lm_weight: float = Field(0.5, ge=0)
    """λ: cross-entropy of the vocabulary predictor on the transcript (arXiv 2110.01500)."""
    class_weight: float = Field(0.5, ge=0)
    """Cross-entropy of the predictor on transcripts whose entities are replaced by their class tag."""
    class_rate: float = Field(0.5, ge=0, le=1)
    """Share of the entities replaced by their tag in that text; the rest keep their words, so that the odds of
    class against surface stay calibrated."""
    ctc_weight: float = Field(0.3, ge=0)
    """CTC loss on the encoder, which speeds up convergence (arXiv 2212.01992)."""
