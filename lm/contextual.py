"""LSTM language model that attends to what surrounds an utterance (Diehl Martinez et al., arXiv 2106.01451).

With m_1 … m_N the embeddings of the fields of the utterance's context, q the query (the LSTM's last hidden
state, or the word it reads), and k one of the gates input, forget, cell, output:

    α = softmax over the N fields of  v · tanh(W_q q + W_m m_i)   (additive)   or   q W m_i   (general)
    c = tanh(LN(W_p Σ α_i m_i + b_p))
    gate_k = LN_k(W_k x + U_k h + C_k c)                  the paper's ConcatCell: c moves every gate

The released code of the paper takes the softmax over an axis of one, keeps attention and projection out of the
model's parameters, and has one LayerNorm for four gates (METHODS 3); none of that is done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from lm.config import Config
from lm.language_model import ContextStore, LanguageModel, Rows, check_end
from lm.utterance_context import UNKNOWN, CategoricalField, ContextField, UtteranceContext, encode_contexts

GATES = 4
"""Input, forget, cell, output."""


class ContextualLMConfig(Config):
    """Shape of a contextual language model."""

    fields: tuple[ContextField, ...] = Field(min_length=1)
    """What its contexts may tell, N fields."""
    how: Literal["none", "prepend", "mean", "attention"] = "attention"
    """Use of the context: ``none``; its embeddings read before the sentence (``prepend``); injected into the
    gates as their ``mean``, or weighted by ``attention``."""
    score: Literal["additive", "general"] = "general"
    """How attention compares query and field."""
    query: Literal["hidden", "word"] = "hidden"
    """What asks: the last hidden state, or the embedding of the word that is read."""
    null: bool = True
    """Whether attention may also look at a vector of zeros, that is at nothing."""
    width: int = Field(192, ge=1)
    """Width D of word embeddings, LSTM and injected context."""
    context_width: int = Field(64, ge=1)
    """Width of the embeddings of fields, and of their comparison with the query."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout on word embeddings and before the output, in training only."""
    hidden_fields: float = Field(0.1, ge=0, lt=1)
    """Share of the fields that are made unknown in training, so that the model learns to do without them."""

    @model_validator(mode="after")
    def _distinct(self) -> ContextualLMConfig:
        names = [field.name for field in self.fields]
        if len(set(names)) < len(names):
            raise ValueError("fields of different names")
        return self


class Memory(NamedTuple):
    """What attention looks at.

    Attributes:
        values: ``(B, N, context_width)`` embeddings of the fields; one more, of zeros, with a null key.
        keys: ``(B, N, context_width)`` the same as the query is compared with them.
    """

    values: Tensor
    keys: Tensor


class ContextualLM(LanguageModel):
    """An LSTM of one layer over V surface tokens and C class tags, and the context of each utterance.

    Contexts are numbers ``(B, N)`` of ``encode``; None is a context of which nothing is known.
    """

    config: ContextualLMConfig

    def __init__(self, config: ContextualLMConfig, num_tokens: int, num_classes: int) -> None:
        super().__init__(num_tokens, num_classes)
        self.config = config
        width = config.width
        self.embedding = nn.Embedding(self.vocab_size + 1, width)  # the last row opens a sentence
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.input = nn.Linear(width, GATES * width, bias=False)
        self.recurrent = nn.Linear(width, GATES * width, bias=False)
        # LayerNorm of four gates at once, each with a scale and a shift of its own; gates begin to remember.
        self.gate_scale = nn.Parameter(torch.ones(GATES, width))
        self.gate_shift = nn.Parameter(torch.zeros(GATES, width))
        with torch.no_grad():
            self.gate_shift[1] = 1.0
        self.output = nn.Linear(width, self.vocab_size)
        if config.how != "none":
            self.fields = FieldEmbeddings(config)
            self.project = nn.Sequential(
                nn.Linear(config.context_width, width), nn.LayerNorm(width), nn.Tanh()
            )
        if config.how in ("mean", "attention"):
            self.inject = nn.Linear(width, GATES * width, bias=False)
        if config.how == "attention":
            self.attention = FieldAttention(config)

    @property
    def takes_context(self) -> bool:
        """Whether a context makes a difference."""
        return self.config.how != "none"

    def encode(self, contexts: Sequence[UtteranceContext | None]) -> Tensor:
        """Contexts as numbers ``(B, N)``.

        Raises:
            DataError: a field that the model does not have, or a value that it cannot have.
        """
        return encode_contexts(self.config.fields, contexts)

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """See ``LanguageModel.forward``; ``context`` is ``(B, N)``."""
        first = tokens.new_full((len(tokens), 1), self.vocab_size)
        x = self.dropout(self.embedding(torch.cat((first, tokens), dim=1)))
        state, memory = self.begin(context, len(tokens))
        hidden, _ = self.run(x, state, memory)
        logits: Tensor = self.output(self.dropout(hidden))
        return logits

    def score_text(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """See ``LanguageModel.score_text``; ``context`` is ``(B, N)``."""
        logp: Tensor = self(tokens, context)[:, :-1].float().log_softmax(-1)
        return logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def contexts(self, ends: bool = False, context: Tensor | None = None) -> ContextualContexts:
        """See ``LanguageModel.contexts``; with ``context`` ``(B, N)`` for the utterances of one batch."""
        check_end(self.end, ends, "a contextual language model")
        return ContextualContexts(self, context)

    def begin(self, context: Tensor | None, utterances: int) -> tuple[tuple[Tensor, Tensor], Memory | None]:
        """Hidden and cell states ``(B, D)`` before a sentence, and what attention looks at during it."""
        zeros = self.output.weight.new_zeros(utterances, self.config.width)
        state = zeros, zeros
        if self.config.how == "none":
            return state, None
        if context is None:
            context = zeros.new_full((utterances, len(self.config.fields)), UNKNOWN)
        embedded = self.fields(context.to(zeros.device))
        if self.config.how == "prepend":
            return self.run(self.project(embedded), state, None)[1], None
        if self.config.how == "mean":
            return state, Memory(embedded, embedded)
        return state, self.attention.remember(embedded)

    def run(
        self, x: Tensor, state: tuple[Tensor, Tensor], memory: Memory | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Hidden states ``(B, U, D)`` behind each of the inputs ``x`` ``(B, U, D)``, and the last state."""
        gates = self.input(x)
        asks_hidden = self.config.how == "attention" and self.config.query == "hidden"
        if memory is not None and not asks_hidden:
            gates = gates + self._context_gates(x, memory)
        hidden, cell = state
        found = []
        for place in gates.unbind(1):
            drive = place + self.recurrent(hidden)
            if memory is not None and asks_hidden:
                drive = drive + self._context_gates(hidden[:, None], memory)[:, 0]
            normal = F.layer_norm(drive.unflatten(-1, (GATES, -1)), (self.config.width,))
            enter, keep, fresh, leave = (normal * self.gate_scale + self.gate_shift).unbind(1)
            cell = keep.sigmoid() * cell + enter.sigmoid() * fresh.tanh()
            hidden = leave.sigmoid() * cell.tanh()
            found.append(hidden)
        return torch.stack(found, dim=1), (hidden, cell)

    def _context_gates(self, query: Tensor, memory: Memory) -> Tensor:
        """What the context adds to the gates ``(B, U or 1, 4 D)``."""
        if self.config.how == "mean":
            found = memory.values.mean(1, keepdim=True)
        else:
            found = self.attention.weights(query, memory) @ memory.values
        gates: Tensor = self.inject(self.project(found))
        return gates


class FieldEmbeddings(nn.Module):
    """Embeddings m_1 … m_N of a context's fields: a row for each name, a map of the point on the circle."""

    def __init__(self, config: ContextualLMConfig) -> None:
        super().__init__()
        width = config.context_width
        self.hidden_fields = config.hidden_fields
        self.unknown = nn.Parameter(torch.randn(len(config.fields), width) * width**-0.5)
        self.maps = nn.ModuleList()
        self._periods: list[float | None] = []
        for field in config.fields:
            mapped: nn.Embedding | nn.Linear
            if isinstance(field, CategoricalField):
                mapped, period = nn.Embedding(len(field.values), width), None
            else:
                mapped, period = nn.Linear(2, width), field.period
            nn.init.normal_(mapped.weight, std=width**-0.5)
            self.maps.append(mapped)
            self._periods.append(period)

    def forward(self, context: Tensor) -> Tensor:
        """Numbers ``(B, N)`` to embeddings ``(B, N, context_width)``."""
        known = context >= 0
        if self.training:
            known = known & (torch.rand(context.shape, device=context.device) >= self.hidden_fields)
        found = []
        for value, period, mapped in zip(
            context.clamp_min(0).unbind(1), self._periods, self.maps, strict=True
        ):
            if period is None:
                found.append(mapped(value.long()))
            else:
                angle = value * (2 * torch.pi / period)
                found.append(mapped(torch.stack((angle.sin(), angle.cos()), dim=-1)))
        return torch.where(known.unsqueeze(-1), torch.stack(found, dim=1), self.unknown)


class FieldAttention(nn.Module):
    """Which fields matter now."""

    def __init__(self, config: ContextualLMConfig) -> None:
        super().__init__()
        self.null = config.null
        self.query = nn.Linear(config.width, config.context_width, bias=False)
        self.additive = config.score == "additive"
        if self.additive:
            self.key = nn.Linear(config.context_width, config.context_width)
            self.energy = nn.Linear(config.context_width, 1, bias=False)

    def remember(self, embedded: Tensor) -> Memory:
        """Values and keys of the fields ``(B, N, context_width)``."""
        values = F.pad(embedded, (0, 0, 1, 0)) if self.null else embedded
        return Memory(values, self.key(values) if self.additive else values)

    def weights(self, query: Tensor, memory: Memory) -> Tensor:
        """α ``(B, U, N)`` of queries ``(B, U, D)``, summing to one over the fields (and nothing, the null key)."""
        asked = self.query(query)
        if self.additive:
            energy = self.energy((asked.unsqueeze(2) + memory.keys.unsqueeze(1)).tanh()).squeeze(-1)
        else:
            energy = asked @ memory.keys.mT
        weights: Tensor = energy.softmax(-1)
        return weights


class ContextualContexts(ContextStore):
    """Histories of a contextual language model, each within the context of its utterance.

    Utterances of one context share their histories.
    """

    def __init__(self, model: ContextualLM, context: Tensor | None) -> None:
        weight, starts = model.output.weight, None
        if context is not None:
            context, starts = torch.unique(context.to(weight.device), dim=0, return_inverse=True)
        super().__init__(model.num_tokens, model.num_classes, weight.device, starts=starts)
        self._model = model
        self._state = Rows((2, model.config.width), weight.dtype, weight.device)
        self._which = Rows((), torch.long, weight.device)  # the context that a history is in
        count = 1 if context is None else len(context)
        first = torch.full((count,), model.vocab_size, device=weight.device)
        with torch.no_grad():
            state, self._memory = model.begin(context, count)
        self._append(self._run(first, state, torch.arange(count, device=weight.device)))

    def _extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        hidden, cell = self._state.data[parents].unbind(1)
        return self._run(tokens, (hidden, cell), self._which.data[parents])

    @torch.no_grad()
    def _run(self, tokens: Tensor, state: tuple[Tensor, Tensor], which: Tensor) -> Tensor:
        memory = self._memory
        if memory is not None:
            memory = Memory(memory.values[which], memory.keys[which])
        hidden, after = self._model.run(self._model.embedding(tokens)[:, None], state, memory)
        self._state.append(torch.stack(after, dim=1))
        self._which.append(which)
        logits: Tensor = self._model.output(hidden[:, 0])
        return logits
