"""Deep Transformer language model (Irie et al. 2019, arXiv 1905.04226): pre-norm, causal, positions optional."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm.config import Config
from lm.language_model import ContextStore, LanguageModel, Rows
from lm.rotary import rotary_table, rotate


class TransformerLMConfig(Config):
    """Shape of a Transformer language model."""

    layers: int = 2
    """Number of blocks."""
    width: int = 144
    """Model width D."""
    heads: int = 4
    """Attention heads; must divide the width into even parts."""
    feed_forward: int = 576
    """Inner width of the feed-forward layers."""
    dropout: float = 0.2
    """Dropout on embeddings and residual branches, in training only."""
    positions: Literal["rotary", "none"] = "rotary"
    """Rotary positions, or none at all: the causal mask is then the only cue (Irie et al., section 4.4)."""


class TransformerLM(LanguageModel):
    """A causal Transformer over V surface tokens and C class tags."""

    def __init__(self, config: TransformerLMConfig, num_tokens: int, num_classes: int) -> None:
        super().__init__(num_tokens, num_classes)
        self.config = config
        self.embedding = nn.Embedding(self.vocab_size + 1, config.width)  # the last row opens a sentence
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, self.vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """See ``LanguageModel.forward``."""
        first = tokens.new_full((len(tokens), 1), self.vocab_size)
        x = self.dropout(self.embedding(torch.cat((first, tokens), dim=1)))
        table = None
        if self.config.positions == "rotary":
            table = rotary_table(
                torch.arange(x.shape[1], device=x.device), self.config.width // self.config.heads
            )
        for block in self.blocks:
            x = block(x, table)
        logits: Tensor = self.output(self.norm(x))
        return logits

    def contexts(self) -> TransformerContexts:
        """A fresh store of contexts for one search."""
        return TransformerContexts(self)


class Block(nn.Module):
    """x ← x + MHA(LN x); x ← x + FF(LN x)."""

    def __init__(self, config: TransformerLMConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.attention_output = nn.Linear(config.width, config.width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(config.width),
            nn.Linear(config.width, config.feed_forward),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.feed_forward, config.width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def project(self, x: Tensor, table: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``(B, H, U, d)`` of ``x`` ``(B, U, D)``, positions applied."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.query_key_value(self.attention_norm(x)).chunk(3, dim=-1)
        )
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Output projection, residuals and feed-forward; ``attended`` ``(B, H, U, d)``."""
        x = x + self.dropout(self.attention_output(attended.transpose(1, 2).flatten(2)))
        result: Tensor = x + self.dropout(self.feed_forward(x))
        return result

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor] | None) -> Tensor:
        """One block over whole sentences ``(B, U, D)``."""
        q, k, v = self.project(x, table)
        return self.finish(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))


class TransformerContexts(ContextStore):
    """Contexts of a Transformer: keys and values once per context, and each context's path of ancestors."""

    def __init__(self, model: TransformerLM) -> None:
        device = model.output.weight.device
        super().__init__(model.num_tokens, model.num_classes, device)
        self._model = model
        width = model.config.width
        self._keys_values = [Rows((2, width), model.output.weight.dtype, device) for _ in model.blocks]
        self._depth = Rows((), torch.long, device)
        self._path = torch.zeros((1024, 64), dtype=torch.long, device=device)
        with torch.no_grad():
            self._append(self._run(torch.tensor([model.vocab_size], device=device), None))

    def _extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return self._run(tokens, parents)

    def _run(self, tokens: Tensor, parents: Tensor | None) -> Tensor:
        model, config = self._model, self._model.config
        depth = torch.zeros_like(tokens) if parents is None else self._depth.data[parents] + 1
        first = self._depth.append(depth)
        path = self._paths(parents, depth, first)
        seen = torch.arange(path.shape[1], device=self.device) <= depth[:, None]
        x = model.embedding(tokens).unsqueeze(1)
        table = None
        if config.positions == "rotary":
            cos, sin = rotary_table(depth, config.width // config.heads)
            table = cos[:, None, None], sin[:, None, None]
        for block, cache in zip(model.blocks, self._keys_values, strict=True):
            assert isinstance(block, Block)
            q, k, v = block.project(x, table)
            cache.append(torch.stack((k.flatten(1), v.flatten(1)), dim=1))
            past = cache.data[path].view(*path.shape, 2, config.heads, -1)  # (M, P, 2, H, d)
            keys, values = past.permute(2, 0, 3, 1, 4)
            x = block.finish(
                x, F.scaled_dot_product_attention(q, keys, values, attn_mask=seen[:, None, None])
            )
        logits: Tensor = model.output(model.norm(x)).squeeze(1)
        return logits

    def _paths(self, parents: Tensor | None, depth: Tensor, first: int) -> Tensor:
        """Rows of each new context's ancestors and itself, ``(M, longest path)``; unused places hold 0."""
        rows = torch.arange(first, first + len(depth), device=self.device)
        longest = int(depth.max()) + 1
        height, width = self._path.shape
        if first + len(depth) > height or longest > width:
            grown = self._path.new_zeros(
                (
                    height * 2 if first + len(depth) > height else height,
                    width * 2 if longest > width else width,
                )
            )
            grown[:height, :width] = self._path
            self._path = grown
            return self._paths(parents, depth, first)
        if parents is not None:
            self._path[rows] = self._path[parents]
        self._path[rows, depth] = rows
        return self._path[rows, :longest]
