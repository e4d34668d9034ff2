"""Language model with a state of constant size: linear attention and a short window (BASED, arXiv 2402.18668).

Blocks take turns. Even ones attend to all of the past through the second-order Taylor feature map of exp:

    exp(q k) ≈ 1 + s + s²/2 = φ(q) φ(k),   s = q k / sqrt(d'),   φ(x) = [1, x, x_i x_j (i < j), x_i² / sqrt(2)]

so that the past is two sums, Σ φ(k) v and Σ φ(k). Odd ones attend to the last ``window`` tokens. What a hypothesis
remembers does not grow with its length.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from lm.config import Config
from lm.language_model import ContextStore, LanguageModel, Rows, check_end


class BasedLMConfig(Config):
    """Shape of a BASED language model."""

    layers: int = Field(2, ge=1)
    """Number of blocks; linear attention and window in turn."""
    width: int = Field(144, ge=1)
    """Model width D."""
    heads: int = Field(4, ge=1)
    """Attention heads; must divide the width."""
    features: int = Field(8, ge=1)
    """Width d' of queries and keys of linear attention; a head remembers (1 + d' + d'(d' + 1)/2)(D/heads + 1)."""
    window: int = Field(16, ge=1)
    """Tokens that a block with a window sees, its own included."""
    feed_forward: int = Field(576, ge=1)
    """Inner width of the feed-forward layers."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout on embeddings and residual branches, in training only."""
    end: bool = False
    """Whether it learns ends of sentences, for perplexity with them and ``fusion.end``."""

    @model_validator(mode="after")
    def _even_heads(self) -> BasedLMConfig:
        if self.width % self.heads:
            raise ValueError(f"a width that {self.heads} heads divide")
        return self


class BasedLM(LanguageModel):
    """A BASED model over V surface tokens and C class tags; order is known from the causal masks alone."""

    config: BasedLMConfig

    def __init__(self, config: BasedLMConfig, num_tokens: int, num_classes: int) -> None:
        super().__init__(num_tokens, num_classes, config.end)
        self.config = config
        self.embedding = nn.Embedding(self.vocab_size + 1, config.width)  # the last row opens a sentence
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        kinds = (LinearAttention, WindowAttention)
        self.blocks = nn.ModuleList(Block(config, kinds[i % 2](config)) for i in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, self.vocab_size + self.end)

    def forward(self, tokens: Tensor) -> Tensor:
        """See ``LanguageModel.forward``."""
        first = tokens.new_full((len(tokens), 1), self.vocab_size)
        x = self.dropout(self.embedding(torch.cat((first, tokens), dim=1)))
        for block in self.blocks:
            assert isinstance(block, Block)
            x = block.behind(x, block.attention(block.attention_norm(x)))
        logits: Tensor = self.output(self.norm(x))
        return logits

    def contexts(self, ends: bool = False) -> BasedContexts:
        """See ``LanguageModel.contexts``."""
        return BasedContexts(self, ends)


class Block(nn.Module):
    """x ← x + attention(LN x); x ← x + FF(LN x)."""

    def __init__(self, config: BasedLMConfig, attention: LinearAttention | WindowAttention) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = attention
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(config.width),
            nn.Linear(config.width, config.feed_forward),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.feed_forward, config.width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def behind(self, x: Tensor, attended: Tensor) -> Tensor:
        """What the block makes of its input and of what it attended to."""
        x = x + self.dropout(attended)
        result: Tensor = x + self.dropout(self.feed_forward(x))
        return result


class LinearAttention(nn.Module):
    """Attention to all of the past through the Taylor feature map."""

    def __init__(self, config: BasedLMConfig) -> None:
        super().__init__()
        self.heads, self.features = config.heads, config.features
        self.query_key = nn.Linear(config.width, 2 * config.heads * config.features)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)
        pairs = torch.triu_indices(config.features, config.features)
        self.register_buffer("pairs", pairs, persistent=False)
        self.register_buffer("share", torch.where(pairs[0] == pairs[1], 0.5**0.5, 1.0), persistent=False)

    def state_shape(self) -> tuple[int, ...]:
        """Shape of what is remembered: sums of φ(k) v and, in the last column, of φ(k)."""
        size = 1 + self.features + self.features * (self.features + 1) // 2
        return self.heads, size, self.value.out_features // self.heads + 1

    def forward(self, x: Tensor) -> Tensor:
        """Whole sentences ``(B, U, D)``; quadratic in U, which is short."""
        query, key, value = self._project(x)  # (B, H, U, d)
        score = query @ key.mT
        weight = (1 + score + score.square() / 2).tril()
        attended = (weight @ value) / weight.sum(-1, keepdim=True)
        result: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return result

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token ``(M, D)`` behind each state ``(M, *state_shape)``: what it attends to, and the new state."""
        query, key, value = (part[:, :, 0] for part in self._project(x[:, None]))  # (M, H, d)
        value = F.pad(value, (0, 1), value=1.0)
        state = state + self._map(key).unsqueeze(-1) * value.unsqueeze(-2)
        found = (self._map(query).unsqueeze(-2) @ state).squeeze(-2)
        attended = (found[..., :-1] / found[..., -1:]).flatten(1)
        return self.output(attended), state

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key = self.query_key(x).view(*x.shape[:2], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        scale = self.features**-0.25
        value = self.value(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return query * scale, key * scale, value

    def _map(self, x: Tensor) -> Tensor:
        """φ(x) ``(..., 1 + d' + d'(d' + 1)/2)``."""
        first, second = self.get_buffer("pairs")
        products = x[..., first] * x[..., second] * self.get_buffer("share")
        return torch.cat((torch.ones_like(x[..., :1]), x, products), dim=-1)


class WindowAttention(nn.Module):
    """Softmax attention to the last tokens."""

    def __init__(self, config: BasedLMConfig) -> None:
        super().__init__()
        self.heads, self.window, self.width = config.heads, config.window, config.width
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)

    def state_shape(self) -> tuple[int, ...]:
        """Shape of what is remembered: keys and values of the tokens before, NaN where there was none."""
        return 2, self.window - 1, self.width

    def forward(self, x: Tensor) -> Tensor:
        """Whole sentences ``(B, U, D)``."""
        query, key, value = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        place = torch.arange(x.shape[1], device=x.device)
        ago = place[:, None] - place
        seen = (ago >= 0) & (ago < self.window)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        result: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return result

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token ``(M, D)`` behind each state ``(M, *state_shape)``: what it attends to, and the new state."""
        query, *here = torch.chunk(self.query_key_value(x), 3, dim=-1)
        past = torch.cat((state, torch.stack(here, dim=1).unsqueeze(2)), dim=2)  # (M, 2, window, D)
        seen = ~past[:, 0, :, 0].isnan()
        known = past.nan_to_num(0.0)
        keys, values = known.view(*known.shape[:3], self.heads, -1).permute(1, 0, 3, 2, 4)
        each = query.view(len(query), self.heads, 1, -1)
        attended = F.scaled_dot_product_attention(each, keys, values, attn_mask=seen[:, None, None])
        return self.output(attended.flatten(1)), past[:, :, 1:]


class BasedContexts(ContextStore):
    """Contexts of a BASED model: a state of constant size each."""

    def __init__(self, model: BasedLM, ends: bool = False) -> None:
        check_end(model.end, ends, "a BASED language model")
        weight = model.output.weight
        super().__init__(model.num_tokens, model.num_classes, weight.device, ends)
        self._model = model
        self._states: list[Rows] = []
        firsts = []
        for block in model.blocks:
            assert isinstance(block, Block)
            shape = block.attention.state_shape()
            self._states.append(Rows(shape, weight.dtype, weight.device))
            empty = 0.0 if isinstance(block.attention, LinearAttention) else math.nan
            firsts.append(torch.full((1, *shape), empty, dtype=weight.dtype, device=weight.device))
        self._append(self._run(torch.tensor([model.vocab_size], device=weight.device), firsts))

    def _extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        return self._run(tokens, [state.data[parents] for state in self._states])

    @torch.no_grad()
    def _run(self, tokens: Tensor, before: list[Tensor]) -> Tensor:
        x = self._model.embedding(tokens)
        for block, state, kept in zip(self._model.blocks, before, self._states, strict=True):
            assert isinstance(block, Block)
            attended, after = block.attention.step(block.attention_norm(x), state)
            kept.append(after)
            x = block.behind(x, attended)
        logits: Tensor = self._model.output(self._model.norm(x))
        return logits
