"""The encoders a model may have, by the ``kind`` in their configuration."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from asr.encoders.blstm import BLSTM, BLSTMConfig
from asr.encoders.conformer import Conformer, ConformerConfig


def _kind(value: Any) -> str:
    """``kind`` as YAML or objects have it; a Conformer where it is not said."""
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "conformer" if kind is None else str(kind)


EncoderConfig = Annotated[
    Annotated[ConformerConfig, Tag("conformer")] | Annotated[BLSTMConfig, Tag("blstm")], Discriminator(_kind)
]


def build_encoder(config: ConformerConfig | BLSTMConfig) -> Conformer | BLSTM:
    """An encoder with fresh weights."""
    return BLSTM(config) if isinstance(config, BLSTMConfig) else Conformer(config)
