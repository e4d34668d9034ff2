"""Conformer encoder (Gulati et al. 2020, arXiv 2005.08100) with rotary positions and frame stacking.

Differences, each for a reason: rotary in place of relative positions (fused attention can be used), LayerNorm
in place of BatchNorm in the convolution module (a batch then gives what its utterances give alone, padding and
all), and four stacked frames in place of strided convolutions (a third of the time of a small model).

Made for streaming, its convolutions look back only, and attention sees whole chunks: an output depends on no
input behind its chunk. `Conformer.step` computes such an encoder chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from asr.encoders.masks import attention_mask, random_context, valid_frames
from asr.relaxed_attention import relaxed_values
from lm.config import Config
from lm.errors import ConfigError
from lm.rotary import check_heads, rotary_table, rotate


class ConformerConfig(Config):
    """Shape of a Conformer encoder."""

    kind: Literal["conformer"] = "conformer"
    """What it is."""
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
    """Encoder frames per chunk when the model is used, for streaming; 0 sees the whole utterance."""
    left_chunks: int = Field(-1, ge=-1)
    """Earlier chunks that stay visible when chunked; -1 for all, which takes ever more memory in a stream."""
    dynamic_chunk: bool = False
    """Train on full context and on chunks of random size in turn, so that ``chunk`` may be changed afterwards;
    otherwise training sees chunks of ``chunk`` frames."""
    attention: bool = True
    """Whether blocks have self-attention; without it an output sees only what the convolutions reach."""
    relaxed_attention: float = Field(0.0, ge=0, lt=1)
    """Share γ of self-attention that is spread evenly over the frames that are seen, in training only (arXiv
    2209.09735)."""

    @model_validator(mode="after")
    def _context(self) -> ConformerConfig:
        if self.left_chunks >= 0 and not self.chunk:
            raise ValueError("left_chunks only together with a chunk of 1 or more frames")
        if not self.attention and (self.dynamic_chunk or self.left_chunks >= 0):
            raise ValueError("dynamic_chunk and left_chunks only with attention: they limit what it sees")
        if not self.attention and self.relaxed_attention:
            raise ValueError("relaxed_attention only with attention")
        if self.attention:
            check_heads(self.width, self.heads)
        return self

    @property
    def causal(self) -> bool:
        """Whether convolutions look back only: the model is meant for streaming."""
        return self.chunk > 0 or self.dynamic_chunk


class BlockCache(NamedTuple):
    """What a block remembers of the chunks before: of its attention, and of its convolution.

    Attributes:
        attention: ``(B, heads, C, 2 D / heads)`` keys and values of the C frames that stay visible. The keys are
            not rotated yet: positions are counted from the oldest of them, so that no stream is too long.
        convolution: ``(B, kernel - 1, D)`` the last inputs of the depthwise convolution.
    """

    attention: Tensor
    convolution: Tensor


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
        self.set_stage(None, None)

    @property
    def width(self) -> int:
        """Width D of the output."""
        return self.config.width

    def set_stage(self, layers: int | None, reductions: tuple[int, ...] | None) -> None:
        """Use only the first ``layers`` - 1 blocks and the top one; None for all. See ``BLSTM.set_stage``.

        Raises:
            ConfigError: more layers than there are, or reductions, which a Conformer has none of.
        """
        count = self.config.layers if layers is None else layers
        if count > self.config.layers or reductions is not None:
            raise ConfigError(
                f"a stage of {count} layers" + (" with reductions" if reductions is not None else ""),
                f"at most the encoder's {self.config.layers} layers, and reductions only with a blstm",
                "correct training.pretrain",
            )
        self._used = [*range(count - 1), self.config.layers - 1]

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
        context = (config.chunk, config.left_chunks)
        if self.training and config.dynamic_chunk:
            context = random_context(*context)
        mask = attention_mask(valid, *context)
        table = rotary_table(torch.arange(x.shape[1], device=x.device), config.width // config.heads)
        padding = ~valid[..., None]
        for layer in self._used:
            x = self.blocks[layer](x, mask, table, padding)
        return x, lengths

    def start(self) -> list[BlockCache]:
        """Caches of one utterance (B = 1) before its first chunk, one for each block."""
        config, weight = self.config, next(self.parameters())
        depth = 2 * config.width // config.heads
        attention = weight.new_zeros(1, config.heads, 0, depth)
        return [BlockCache(attention, weight.new_zeros(1, config.kernel - 1, config.width))] * config.layers

    def step(self, features: Tensor, caches: Sequence[BlockCache]) -> tuple[Tensor, list[BlockCache]]:
        """Encode the next chunk of utterances that have seen equally many chunks, or more than stay visible.

        Args:
            features: ``(B, n * stacking, F)`` normalised features of a chunk of n frames; only the last chunk of
                an utterance may have less than ``config.chunk``.
            caches: from `start`, or from the chunk before.

        Returns:
            What `forward` gives for these frames in evaluation mode, ``(B, n, D)``, and the caches for the next
            chunk.
        """
        config = self.config
        x = self.input(features.reshape(len(features), -1, config.stacking * features.shape[-1]))
        seen = caches[0].attention.shape[2] + x.shape[1]
        table = rotary_table(torch.arange(seen, device=x.device), config.width // config.heads)
        visible = seen if config.left_chunks < 0 else config.left_chunks * config.chunk
        following = []
        for block, cache in zip(self.blocks, caches, strict=True):
            assert isinstance(block, ConformerBlock)
            x, (attention, convolution) = block.step(x, cache, table)
            following.append(BlockCache(attention[:, :, max(0, seen - visible) :], convolution))
        return x, following


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
        self.heads, self.relax = config.heads, config.relaxed_attention
        self.norm = nn.LayerNorm(config.width)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """Attend within ``x`` ``(B, T, D)`` where ``mask`` is true."""
        q, k, v = self._split(x)
        # On a CPU the fused kernel's backward costs three times these few lines at the lengths of utterances.
        scores = (rotate(q, table) * q.shape[-1] ** -0.5) @ rotate(k, table).transpose(-1, -2)
        attended = scores.masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype) @ v
        if self.training and self.relax:
            attended = relaxed_values(attended, v, mask, self.relax)
        result: Tensor = self.dropout(self.output(attended.transpose(1, 2).flatten(2)))
        return result

    def step(self, x: Tensor, past: Tensor, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Attend from ``x`` ``(B, n, D)`` to all of ``past`` (`BlockCache`) and ``x``; gives both as ``past``."""
        q, k, v = self._split(x)
        past = torch.cat((past, torch.cat((k, v), dim=-1)), dim=2)
        k, v = past.chunk(2, dim=-1)
        latest = (table[0][-x.shape[1] :], table[1][-x.shape[1] :])
        attended = F.scaled_dot_product_attention(rotate(q, latest), rotate(k, table), v)
        result: Tensor = self.dropout(self.output(attended.transpose(1, 2).flatten(2)))
        return result, past

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ``(B, heads, T, D / heads)`` each."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.query_key_value(self.norm(x)).chunk(3, dim=-1)
        )
        return q, k, v


class Convolution(nn.Module):
    """Gated pointwise, depthwise and pointwise convolution; causal when the encoder is for streaming."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.widen = nn.Linear(config.width, 2 * config.width)
        self.depthwise = nn.Conv1d(config.width, config.width, config.kernel, groups=config.width)
        self.inner_norm = nn.LayerNorm(config.width)
        self.narrow = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        right = 0 if config.causal else config.kernel // 2
        self.context = (config.kernel - 1 - right, right)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """Convolve ``x`` ``(B, T, D)``; frames where ``padding`` ``(B, T, 1)`` count as silence."""
        x = F.glu(self.widen(self.norm(x)), dim=-1).masked_fill(padding, 0.0)
        return self._convolve(F.pad(x.transpose(1, 2), self.context))

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve ``x`` ``(B, n, D)`` behind ``past`` (`BlockCache`); gives the ``past`` of what follows."""
        x = torch.cat((past, F.glu(self.widen(self.norm(x)), dim=-1)), dim=1)
        return self._convolve(x.transpose(1, 2)), x[:, x.shape[1] - past.shape[1] :]

    def _convolve(self, x: Tensor) -> Tensor:
        """The rest of the module, for ``x`` ``(B, D, T + kernel - 1)``."""
        x = self.depthwise(x).transpose(1, 2)
        result: Tensor = self.dropout(self.narrow(F.silu(self.inner_norm(x))))
        return result


class ConformerBlock(nn.Module):
    """Half feed-forward, attention (if there is any), convolution, half feed-forward, LayerNorm."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.first = FeedForward(config)
        self.attention = SelfAttention(config) if config.attention else None
        self.convolution = Convolution(config)
        self.second = FeedForward(config)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, mask: Tensor, table: tuple[Tensor, Tensor], padding: Tensor) -> Tensor:
        """One block over ``x`` ``(B, T, D)``."""
        x = x + 0.5 * self.first(x)
        if self.attention is not None:
            x = x + self.attention(x, mask, table)
        x = x + self.convolution(x, padding)
        result: Tensor = self.norm(x + 0.5 * self.second(x))
        return result

    def step(self, x: Tensor, cache: BlockCache, table: tuple[Tensor, Tensor]) -> tuple[Tensor, BlockCache]:
        """One block over the next chunk ``x`` ``(B, n, D)``; see `Conformer.step`."""
        attention, convolution = cache
        x = x + 0.5 * self.first(x)
        if self.attention is not None:
            attended, attention = self.attention.step(x, attention, table)
            x = x + attended
        convolved, convolution = self.convolution.step(x, convolution)
        x = x + convolved
        result: Tensor = self.norm(x + 0.5 * self.second(x))
        return result, BlockCache(attention, convolution)
