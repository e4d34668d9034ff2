"""Conformer encoder (Gulati et al. 2020, arXiv 2005.08100) with rotary positions and frame stacking.

Differences, each for a reason: rotary in place of relative positions (fused attention can be used), LayerNorm
in place of BatchNorm in the convolution module (a batch then gives what its utterances give alone, padding and
all), and four stacked frames in place of strided convolutions (a third of the time of a small model).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from asr.encoders.masks import attention_mask, valid_frames
from lm.config import Config
from lm.rotary import rotary_table, rotate


class ConformerConfig(Config):
    """Shape of a Conformer encoder."""

    features: int = 80
    """Filter-bank bins per input frame."""
    stacking: int = Field(4, ge=1)
    """Input frames joined into one encoder frame (4 gives 40 ms)."""
    layers: int = Field(8, ge=1)
    """Number of blocks."""
    width: int = 192
    """Model width D."""
    heads: int = 4
    """Attention heads; must divide the width into even parts."""
    feed_forward: int = 768
    """Inner width of each of the two feed-forward modules."""
    kernel: int = 15
    """Frames seen by the depthwise convolution; odd."""
    dropout: float = 0.1
    """Dropout on every residual branch, in training only."""
    chunk: int = Field(0, ge=0)
    """Encoder frames per chunk for streaming; 0 sees the whole utterance."""
    left_chunks: int = Field(-1, ge=-1)
    """Earlier chunks that stay visible when chunked; -1 for all."""


class Conformer(nn.Module):
    """Features ``(B, S, F)`` in, encoder frames ``(B, T, D)`` out, T = ceil(S / stacking)."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.input = nn.Sequential(
            nn.Linear(config.features * config.stacking, config.width),
            nn.LayerNorm(config.width),
            nn.Dropout(config.dropout),
        )
        self.blocks = nn.ModuleList(ConformerBlock(config) for _ in range(config.layers))

    @property
    def width(self) -> int:
        """Width D of the output."""
        return self.config.width

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode.

        Args:
            features: ``(B, S, F)`` normalised features, padded with anything.
            lengths: ``(B,)`` input frames of each utterance.

        Returns:
            Encoder frames ``(B, T, D)`` and their number ``(B,)``.
        """
        config = self.config
        features = features.masked_fill(~valid_frames(lengths, features.shape[1])[..., None], 0.0)
        features = F.pad(features, (0, 0, 0, -features.shape[1] % config.stacking))
        x = self.input(features.reshape(len(features), -1, config.stacking * features.shape[-1]))
        lengths = (lengths + config.stacking - 1) // config.stacking
        valid = valid_frames(lengths, x.shape[1])
        mask = attention_mask(valid, config.chunk, config.left_chunks)
        table = rotary_table(torch.arange(x.shape[1], device=x.device), config.width // config.heads)
        padding = ~valid[..., None]
        for block in self.blocks:
            x = block(x, mask, table, padding)
        return x, lengths


class FeedForward(nn.Sequential):
    """LayerNorm, widen, SiLU, narrow."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__(
            nn.LayerNorm(config.width),
            nn.Linear(config.width, config.feed_forward),
            nn.SiLU(),
            nn.Linear(config.feed_forward, config.width),
            nn.Dropout(config.dropout),
        )


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """Attend within ``x`` ``(B, T, D)`` where ``mask`` is true."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.query_key_value(self.norm(x)).chunk(3, dim=-1)
        )
        # On a CPU the fused kernel's backward costs three times these few lines at the lengths of utterances.
        scores = (rotate(q, table) * q.shape[-1] ** -0.5) @ rotate(k, table).transpose(-1, -2)
        attended = scores.masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype) @ v
        result: Tensor = self.dropout(self.output(attended.transpose(1, 2).flatten(2)))
        return result


class Convolution(nn.Module):
    """Gated pointwise, depthwise and pointwise convolution; causal when the encoder is chunked."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.widen = nn.Linear(config.width, 2 * config.width)
        self.depthwise = nn.Conv1d(config.width, config.width, config.kernel, groups=config.width)
        self.inner_norm = nn.LayerNorm(config.width)
        self.narrow = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        right = 0 if config.chunk else config.kernel // 2
        self.context = (config.kernel - 1 - right, right)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """Convolve ``x`` ``(B, T, D)``; frames where ``padding`` ``(B, T, 1)`` count as silence."""
        x = F.glu(self.widen(self.norm(x)), dim=-1).masked_fill(padding, 0.0)
        x = self.depthwise(F.pad(x.transpose(1, 2), self.context)).transpose(1, 2)
        result: Tensor = self.dropout(self.narrow(F.silu(self.inner_norm(x))))
        return result


class ConformerBlock(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, LayerNorm."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.first = FeedForward(config)
        self.attention = SelfAttention(config)
        self.convolution = Convolution(config)
        self.second = FeedForward(config)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, mask: Tensor, table: tuple[Tensor, Tensor], padding: Tensor) -> Tensor:
        """One block over ``x`` ``(B, T, D)``."""
        x = x + 0.5 * self.first(x)
        x = x + self.attention(x, mask, table)
        x = x + self.convolution(x, padding)
        result: Tensor = self.norm(x + 0.5 * self.second(x))
        return result
