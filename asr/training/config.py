"""Configuration of a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asr.augment import NoiseConfig, ReverbConfig, SpecAugmentConfig
from asr.encoders.stages import PretrainStage
from lm.config import Config


class TrainingConfig(Config):
    """How a model is trained; what is trained is the family's configuration."""

    epochs: int = Field(40, ge=1)
    """Passes over the training data."""
    accumulate: int = Field(1, ge=1)
    """Batches in an update. With torchrun the processes share them: with as many as this, each has one."""
    batch_s: float = Field(80.0, gt=0)
    """Seconds of speech in a batch."""
    peak_lr: float = Field(2e-3, gt=0)
    """Learning rate after warm-up (AdamW)."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    final_lr: float = Field(0.02, ge=0, le=1)
    """Learning rate at the end, as a share of the peak; a half cosine leads there."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay on matrices."""
    clip_norm: float = Field(5.0, gt=0)
    """Gradients are scaled down to this global norm."""
    text_sentences: int = Field(0, ge=0)
    """Sentences of text without speech in each batch, for the language model inside the model."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the matrix products; losses are always computed in fp32. ``auto`` takes bf16 where the machine
    has instructions for it (without them it is several times slower than fp32)."""
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    """Speed factors, one drawn for each utterance and epoch."""
    noise: NoiseConfig | None = None
    """Noise mixed into the training speech; what gets it is read and its features computed anew each time."""
    reverb: ReverbConfig | None = None
    """Synthetic rooms for the training speech, at the same price."""
    spec_augment: SpecAugmentConfig = SpecAugmentConfig()
    """Masking of features."""
    pretrain: tuple[PretrainStage, ...] = ()
    """Stages in which the encoder grows, before all of it is trained; their epochs count among ``epochs``."""
    average: int = Field(10, ge=1)
    """The final model is the mean of the weights after each of the last so many epochs."""
    checkpoint_s: float = Field(120.0, gt=0)
    """Seconds between checkpoints inside an epoch; one is also written after each epoch."""
    keep_features: bool = True
    """Keep the features of all speeds in the work folder (58 MB for an hour and a speed), so that recordings are
    read once; otherwise they are computed at first use and held in memory."""
    seed: int = 0
    """Seed of initial weights, batches, augmentation and dropout."""
    shard: bool = False
    """With torchrun: each process keeps only its piece of the weights, gradients and optimizer state (FSDP), for
    models too large for one device; the training is the same."""
    threads: int = Field(2, ge=1)
    """CPU threads."""
