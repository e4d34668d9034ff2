"""Configuration of the transducer (RNN-T)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from asr.encoders.build import EncoderConfig
from asr.encoders.conformer import ConformerConfig
from asr.losses.rnnt import Backend
from lm.config import Config


class PredictorConfig(Config):
    """Shape of the predictor, which remembers the labels so far."""

    kind: Literal["stateless", "lstm"] = "stateless"
    """``stateless`` sees the last few tokens only; ``lstm`` sees all of them."""
    width: int | None = Field(None, ge=1)
    """Width of embeddings and LSTM; that of the joint where none is given. A stateless predictor with a width
    of its own has a ReLU and a projection behind its embeddings; without, they are added to the joint as they
    are."""
    context: int = Field(2, ge=1, le=4)
    """Tokens that a stateless predictor remembers."""
    layers: int = Field(1, ge=1)
    """LSTM layers."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the embeddings and between LSTM layers, in training only."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> PredictorConfig:
        if self.kind == "stateless" and self.layers != 1:
            raise ValueError("no layers in a stateless predictor; they are of kind lstm")
        if self.kind == "lstm" and self.context != 2:
            raise ValueError(
                "no context in an lstm predictor, which sees all tokens; it is of kind stateless"
            )
        return self


class TransducerConfig(Config):
    """Shape of a transducer."""

    encoder: EncoderConfig = ConformerConfig()
    """The acoustic encoder; a Conformer unless ``kind`` says ``blstm``."""
    predictor: PredictorConfig = PredictorConfig()
    """The predictor."""
    joint_width: int = Field(256, ge=1)
    """Width J in which encoder and predictor are joined."""


class TransducerLossConfig(Config):
    """The training objective."""

    ctc_weight: float = Field(0.3, ge=0)
    """CTC loss on the encoder, which speeds up convergence (arXiv 2212.01992)."""
    backend: Backend = "torch"
    """What sums the lattice; ``torchaudio`` and ``k2`` must be installed."""
    class_rate: ClassVar[float] = 0.0
    """No entity of the transcripts becomes its class tag: a transducer knows words only."""
