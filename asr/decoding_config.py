"""Settings of recognition, kept in a model's ``config.yaml`` and changeable for each call."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from decoding.frame_sync import BeamConfig
from lm.config import Config


class DecodingConfig(Config):
    """How a model is searched."""

    search: BeamConfig = BeamConfig()
    """The beam search."""
    candidates: int = Field(32, ge=1)
    """Tokens considered in each frame, best by acoustics."""
    lm_scale: float = Field(1.0, ge=0)
    """Weight μ of the vocabulary predictor."""
    biasing: Literal["classes", "phrases", "none"] = "classes"
    """What an entity list is used for: classes of the language model (C-FNT), phrases that get a bonus
    (Aho-Corasick), or nothing."""
    class_bonus: float = 0.0
    """Nats added to the log odds of every class against surface words; the only weight of C-FNT."""
    phrase_bonus: float = Field(1.0, ge=0)
    """Nats added for each token of a phrase found, with biasing 'phrases'."""
    segment_s: float = Field(30.0, ge=1)
    """Longer recordings are cut into pieces of at most this length, at quiet places."""
