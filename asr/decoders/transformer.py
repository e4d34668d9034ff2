"""Transformer decoder (Vaswani et al. 2017, arXiv 1706.03762): pre-norm, causal, attends to encoder frames.

Labels have rotary positions. Encoder frames get sinusoidal ones before they are attended to: a Conformer with
rotary positions knows how far apart its frames are, but not where they stand.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.decoders.config import TransformerDecoderConfig
from asr.decoders.memory import Memory, positions
from asr.relaxed_attention import relaxed
from lm.rotary import rotary_table, rotate

Table = tuple[Tensor, Tensor]


class TransformerDecoder(nn.Module):
    """Label histories in, states out: ``s_u = Dec(y_<u; h)``, W wide.

    Args:
        config: its shape.
        num_tokens: V; one more embedding opens a sentence.
        memory_width: width D of the encoder frames.
    """

    def __init__(self, config: TransformerDecoderConfig, num_tokens: int, memory_width: int) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = num_tokens
        self.width = config.width
        self.embedding = nn.Embedding(num_tokens + 1, config.width)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(config, memory_width) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def remember(self, encoded: Tensor, first: int = 0) -> Memory:
        """Keys and values of encoder frames ``(B, T, D)``, the first of which is frame ``first``."""
        x = encoded + positions(first, encoded.shape[1], encoded.shape[2], encoded.device).to(encoded.dtype)
        return Memory(
            tuple(block.attention.remember(x) for block in self.blocks if isinstance(block, DecoderBlock))
        )

    def forward(self, labels: Tensor, memory: Memory, visible: Tensor) -> Tensor:
        """States ``(B, U + 1, W)`` after every prefix of ``labels`` ``(B, U)``.

        Args:
            labels: padded with any valid id.
            memory: of B utterances.
            visible: ``(B, T)`` frames that may be attended to, at least one of each utterance.
        """
        return self.run(labels, memory, visible)[0]

    def run(
        self, labels: Tensor, memory: Memory | None, visible: Tensor | None
    ) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """States, keys and values of each block ``(B, U + 1, 2, W)``, and the last block's attention.

        Without a memory nothing is heard: what attention would bring is zero (the internal language model).
        """
        x = self.dropout(self.embedding(F.pad(labels, (1, 0), value=self.num_tokens)))
        table = rotary_table(
            torch.arange(x.shape[1], device=x.device), self.config.width // self.config.heads
        )
        caches, weights = [], None
        for index, block in enumerate(self.blocks):
            assert isinstance(block, DecoderBlock)
            q, k, v = block.project(x, table)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x, weights = block.rest(x, attended, memory.layers[index] if memory else None, visible)
            if not self.training:
                caches.append(torch.stack([part.transpose(1, 2).flatten(2) for part in (k, v)], dim=2))
        return self.norm(x), caches, weights


class DecoderBlock(nn.Module):
    """x ← x + SA(LN x); x ← x + CA(LN x, h); x ← x + FF(LN x)."""

    def __init__(self, config: TransformerDecoderConfig, memory_width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.self_norm = nn.LayerNorm(config.width)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.self_output = nn.Linear(config.width, config.width)
        self.attention = CrossAttention(config, memory_width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(config.width),
            nn.Linear(config.width, config.feed_forward),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.feed_forward, config.width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def project(self, x: Tensor, table: Table) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``(B, H, U, d)`` of ``x`` ``(B, U, W)``, positions applied."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.query_key_value(self.self_norm(x)).chunk(3, dim=-1)
        )
        return rotate(q, table), rotate(k, table), v

    def rest(
        self, x: Tensor, attended: Tensor, memory: Tensor | None, visible: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The block after self-attention gave ``attended`` ``(B, H, U, d)``; and its attention to the frames."""
        x = x + self.dropout(self.self_output(attended.transpose(1, 2).flatten(2)))
        weights = None
        if memory is not None and visible is not None:
            heard, weights = self.attention(x, memory, visible)
            x = x + self.dropout(heard)
        result: Tensor = x + self.dropout(self.feed_forward(x))
        return result, weights


class CrossAttention(nn.Module):
    """Multi-head attention from labels to encoder frames."""

    def __init__(self, config: TransformerDecoderConfig, memory_width: int) -> None:
        super().__init__()
        self.heads, self.relax = config.heads, config.relaxed_attention
        self.norm = nn.LayerNorm(config.width)
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(memory_width, 2 * config.width)
        self.output = nn.Linear(config.width, config.width)

    def remember(self, encoded: Tensor) -> Tensor:
        """Keys and values ``(B, H, T, 2 d)`` of encoder frames ``(B, T, D)``."""
        key, value = self.key_value(encoded).chunk(2, dim=-1)
        split = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (key, value)]
        return torch.cat(split, dim=-1)

    def forward(self, x: Tensor, memory: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """What ``x`` ``(B, U, W)`` hears, and where: weights ``(B, U, T)``, the mean over heads.

        ``visible`` is ``(B, T)``, or ``(B, U, T)`` where labels of an utterance may hear different frames.
        """
        q = self.query(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = memory.chunk(2, dim=-1)
        mask = visible[:, None, None] if visible.dim() == 2 else visible[:, None]
        scores = (q * q.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        weights = scores.float().masked_fill(~mask, -torch.inf).softmax(-1)
        if self.training and self.relax:
            weights = relaxed(weights, mask, self.relax)
        heard = weights.to(value.dtype) @ value
        return self.output(heard.transpose(1, 2).flatten(2)), weights.detach().mean(1)
