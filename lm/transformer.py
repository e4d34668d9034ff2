"""Deep Transformer language model (Irie et al. 2019, arXiv 1905.04226): pre-norm, causal, positions optional."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from lm.config import Config
from lm.language_model import ContextStore, LanguageModel, Rows, check_end
from lm.rotary import check_heads, rotary_table, rotate, sinusoids


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
    positions: Literal["rotary", "sinusoidal", "none"] = "rotary"
    """Rotary positions, sinusoidal ones added to the embeddings, or none at all: the causal mask is then the only
    cue (Irie et al., section 4.4)."""
    end: bool = False
    """Whether it learns ends of sentences, for perplexity with them and ``fusion.end``."""

    @model_validator(mode="after")
    def _heads(self) -> TransformerLMConfig:
        check_heads(self.width, self.heads, even=self.positions != "none")
        return self


class TransformerLM(LanguageModel):
    """A causal Transformer over V surface tokens and C class tags."""

    config: TransformerLMConfig

    def __init__(self, config: TransformerLMConfig, num_tokens: int, num_classes: int) -> None:
        super().__init__(num_tokens, num_classes, config.end)
        self.config = config
        self.embedding = nn.Embedding(self.vocab_size + 1, config.width)  # the last row opens a sentence
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, self.vocab_size + self.end)

    def forward(self, tokens: Tensor) -> Tensor:
        """See ``LanguageModel.forward``."""
        first = tokens.new_full((len(tokens), 1), self.vocab_size)
        places = torch.arange(tokens.shape[1] + 1, device=tokens.device)
        x = self.dropout(self.embed(torch.cat((first, tokens), dim=1), places))
        table = None
        if self.config.positions == "rotary":
            table = rotary_table(places, self.config.width // self.config.heads)
        for block in self.blocks:
            x = block(x, table)
        logits: Tensor = self.output(self.norm(x))
        return logits

    def embed(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Embeddings ``(..., D)`` of ``tokens`` at ``places``, of shapes that broadcast."""
        x: Tensor = self.embedding(tokens)
        if self.config.positions != "sinusoidal":
            return x
        # The elements of an embedding have a variance of 1 / D, those of sines and cosines of 1 / 2.
        x = x + sinusoids(places, self.config.width).to(x.dtype) * (2 / self.config.width) ** 0.5
        return x

    def contexts(self, ends: bool = False) -> TransformerContexts:
        """See ``LanguageModel.contexts``."""
        return TransformerContexts(self, ends)


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

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor] | None) -> Tensor:
        """One block over whole sentences ``(B, U, D)``."""
        q, k, v = self.project(x, table)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.attention_output(attended.transpose(1, 2).flatten(2)))
        result: Tensor = x + self.dropout(self.feed_forward(x))
        return result


class TransformerContexts(ContextStore):
    """Contexts of a Transformer: keys and values once per context, and the way back to each context's ancestors."""

    def __init__(self, model: TransformerLM, ends: bool = False) -> None:
        check_end(model.end, ends, "a Transformer language model")
        weight = model.output.weight
        super().__init__(model.num_tokens, model.num_classes, weight.device, ends)
        self._model = model
        self._keys_values = [Rows((2, model.config.width), weight.dtype, weight.device) for _ in model.blocks]
        self._depth = Rows((), torch.long, weight.device)
        self._attend = _compiled() if weight.device.type == "cpu" and weight.dtype == torch.float32 else None
        self._path = torch.zeros((1024, 64), dtype=torch.long, device=weight.device)
        self._grow_positions(64)
        with torch.no_grad():
            start = torch.tensor([model.vocab_size], device=weight.device)
            self._append(self._run(start, torch.zeros_like(start), None))

    def _extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return self._run(tokens, self._depth.data[parents] + 1, parents)

    def _run(self, tokens: Tensor, depth: Tensor, parents: Tensor | None) -> Tensor:
        model = self._model
        first = self._depth.append(depth)
        longest = int(depth.max()) + 1
        if longest > len(self._positions[0]):
            self._grow_positions(2 * longest)
        path = None if self._attend else self._paths(parents, depth, first, longest)
        x = model.embed(tokens, depth)
        for block, cache in zip(model.blocks, self._keys_values, strict=True):
            assert isinstance(block, Block)
            cache.grow(len(tokens))
            if path is None:
                projected = block.query_key_value(block.attention_norm(x))
                attended = self._attend_compiled(projected, cache.data, first, depth)
            else:
                attended = self._attend_reference(block, x, cache.data, first, depth, path)
            x = x + block.attention_output(attended)
            x = x + block.feed_forward(x)
        logits: Tensor = model.output(model.norm(x))
        return logits

    def _attend_compiled(self, projected: Tensor, cache: Tensor, first: int, depth: Tensor) -> Tensor:
        assert self._attend is not None
        heads = self._model.config.heads
        attended = torch.empty((len(projected), heads, projected.shape[1] // (3 * heads)))
        cos, sin = (part.numpy() for part in self._positions)
        if self._model.config.positions != "rotary":
            cos, sin = cos[:0], sin[:0]
        here = projected.view(len(projected), 3, heads, -1).numpy()
        past = cache.view(len(cache), 2, heads, -1).numpy()
        self._attend(here, cos, sin, past, self._origin.data.numpy(), first, depth.numpy(), attended.numpy())
        return attended.flatten(1)

    def _attend_reference(
        self, block: Block, x: Tensor, cache: Tensor, first: int, depth: Tensor, path: Tensor
    ) -> Tensor:
        """The same in tensors: all ancestors' keys and values gathered."""
        config, table = self._model.config, None
        if config.positions == "rotary":
            table = (self._positions[0][depth][:, None, None], self._positions[1][depth][:, None, None])
        q, k, v = block.project(x.unsqueeze(1), table)
        cache[first:] = torch.stack((k.flatten(1), v.flatten(1)), dim=1)
        seen = torch.arange(path.shape[1], device=x.device) <= depth[:, None]
        past = cache[path].view(*path.shape, 2, config.heads, -1)  # (M, P, 2, H, d)
        keys, values = past.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen[:, None, None])
        return attended.flatten(1)

    def _grow_positions(self, size: int) -> None:
        config = self._model.config
        positions = torch.arange(size, device=self.device)
        self._positions = rotary_table(positions, config.width // config.heads)

    def _paths(self, parents: Tensor | None, depth: Tensor, first: int, longest: int) -> Tensor:
        """Rows of each new context's ancestors and itself, ``(M, longest)``; unused places hold 0."""
        rows = torch.arange(first, first + len(depth), device=self.device)
        height, width = self._path.shape
        if rows[-1] >= height or longest > width:
            shape = (max(2 * height, first + len(depth)), max(width, 2 * longest))
            grown = self._path.new_zeros(shape)
            grown[:height, :width] = self._path
            self._path = grown
        if parents is not None:
            self._path[rows] = self._path[parents]
        self._path[rows, depth] = rows
        return self._path[rows, :longest]


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., None] | None:
    """The compiled attention, or None where numba does not work."""
    try:
        from lm.attention_kernel import attend
    except ImportError:
        return None
    function: Callable[..., None] = attend
    return function
