"""Configuration of the training of a language model."""

from __future__ import annotations

from pydantic import Field

from lm.config import Config


class TextTrainingConfig(Config):
    """How a neural language model is trained on text."""

    epochs: int = Field(20, ge=1)
    """Passes over the text."""
    evaluations: int = Field(20, ge=1)
    """Times, evenly over the training, that the model is judged on dev; the weights of the lowest loss are kept."""
    batch_tokens: int = Field(2000, ge=1)
    """Tokens in a batch, padding and ends of sentences counted."""
    peak_lr: float = Field(2e-3, gt=0)
    """Learning rate after warm-up (AdamW)."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the updates in which the learning rate rises."""
    final_lr: float = Field(0.01, ge=0, le=1)
    """Learning rate at the end, as a share of the peak; a half cosine leads there."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay on matrices."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    class_rate: float = Field(0.5, ge=0, le=1)
    """Share of entities that become their class tag, drawn anew in each epoch."""
    buffer: int = Field(50_000, ge=1)
    """Sentences in memory from which batches of like length are drawn."""
    checkpoint_s: float = Field(120.0, gt=0)
    """Seconds between checkpoints."""
