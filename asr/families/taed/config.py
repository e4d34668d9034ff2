"""Configuration of the hybrid transducer-attention model."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from asr.decoders.config import TransformerDecoderConfig
from asr.encoders.build import EncoderConfig
from asr.encoders.conformer import ConformerConfig
from asr.losses.rnnt import Backend
from lm.config import Config


class TAEDConfig(Config):
    """Shape of a hybrid transducer-attention encoder-decoder (TAED)."""

    encoder: EncoderConfig = ConformerConfig()
    """The acoustic encoder; a Conformer unless ``kind`` says ``blstm``."""
    decoder: TransformerDecoderConfig = TransformerDecoderConfig()
    """The decoder in the predictor's place."""
    decoder_chunk: int | None = Field(None, ge=0)
    """Encoder frames by which what the decoder hears grows; 0 for the whole utterance at once. The encoder's
    ``chunk`` where it is not given."""
    joint_width: int = Field(256, ge=1)
    """Width J in which frames and decoder states are joined."""

    @property
    def chunk(self) -> int:
        """Encoder frames of a chunk of the decoder."""
        return self.encoder.chunk if self.decoder_chunk is None else self.decoder_chunk


class TAEDLossConfig(Config):
    """The training objective."""

    attention_weight: float = Field(0.3, ge=0)
    """Cross-entropy of the decoder that hears the whole utterance."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of that cross-entropy's target that is spread evenly; off while layers are still being added."""
    ctc_weight: float = Field(0.3, ge=0)
    """CTC loss on the encoder, which speeds up convergence (arXiv 2212.01992)."""
    backend: Backend = "torch"
    """What sums the lattice; ``torchaudio`` and ``k2`` must be installed."""
    class_rate: ClassVar[float] = 0.0
    """No entity of the transcripts becomes its class tag: a TAED knows words only."""
