"""Configuration of the decoders that attend to the encoder."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from lm.config import Config
from lm.rotary import check_heads


class TransformerDecoderConfig(Config):
    """Shape of a Transformer decoder."""

    kind: Literal["transformer"] = "transformer"
    """What it is."""
    layers: int = Field(4, ge=1)
    """Number of blocks."""
    width: int = Field(192, ge=1)
    """Model width W."""
    heads: int = Field(4, ge=1)
    """Attention heads; must divide the width into even parts."""
    feed_forward: int = Field(768, ge=1)
    """Inner width of the feed-forward layers."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on embeddings and residual branches, in training only."""
    relaxed_attention: float = Field(0.0, ge=0, lt=1)
    """Share γ of the attention to the encoder that is spread evenly over its frames, in training only (arXiv
    2107.01275)."""

    @model_validator(mode="after")
    def _heads(self) -> TransformerDecoderConfig:
        check_heads(self.width, self.heads)
        return self


class LSTMDecoderConfig(Config):
    """Shape of an LSTM decoder with additive attention and weight feedback."""

    kind: Literal["lstm"]
    """What it is."""
    embedding: int = Field(128, ge=1)
    """Width of the labels' embeddings."""
    width: int = Field(256, ge=1)
    """Width of the LSTM and of its readout."""
    key: int = Field(128, ge=1)
    """Width in which attention compares."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout on embeddings and readout, in training only."""
    relaxed_attention: float = Field(0.0, ge=0, lt=1)
    """Share γ of the attention that is spread evenly over the encoder's frames, in training only."""


def _kind(value: Any) -> str:
    """``kind`` of a decoder as YAML or objects have it; a Transformer where it is not said."""
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "transformer" if kind is None else str(kind)


DecoderConfig = Annotated[
    Annotated[TransformerDecoderConfig, Tag("transformer")] | Annotated[LSTMDecoderConfig, Tag("lstm")],
    Discriminator(_kind),
]
