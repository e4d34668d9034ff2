"""LSTM decoder with additive attention and weight feedback (Zeyer et al. 2018, arXiv 1805.03294).

s_i   = LSTM([E y_{i-1}; c_{i-1}], s_{i-1})
e_it  = v · tanh(W_s s_i + W_h h_t + w_β β_it),   β_it = ½ σ(w · h_t) Σ_{k<i} α_kt
c_i   = Σ_t α_it h_t,                             α_i = softmax(e_i) over the utterance's frames
out_i = maxout(W [s_i; E y_{i-1}; c_i])
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.decoders.config import LSTMDecoderConfig
from asr.decoders.histories import LabelTree
from asr.decoders.memory import Memory
from asr.relaxed_attention import relaxed
from lm.language_model import Rows


class LSTMState(NamedTuple):
    """Behind some labels of each row: hidden and cell ``(M, W)``, context ``(M, D)``, Σ α ``(M, T)``."""

    hidden: Tensor
    cell: Tensor
    context: Tensor
    attended: Tensor


class LSTMDecoder(nn.Module):
    """Label histories in, readouts ``(…, W)`` out; see ``asr.decoders.transformer.TransformerDecoder``."""

    def __init__(self, config: LSTMDecoderConfig, num_tokens: int, memory_width: int) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = num_tokens
        self.width = config.width
        self.memory_width = memory_width
        self.embedding = nn.Embedding(num_tokens + 1, config.embedding)
        nn.init.normal_(self.embedding.weight, std=config.embedding**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.cell = nn.LSTMCell(config.embedding + memory_width, config.width)
        self.query = nn.Linear(config.width, config.key)
        self.key = nn.Linear(memory_width, config.key, bias=False)
        self.feedback = nn.Linear(1, config.key, bias=False)
        self.fertility = nn.Linear(memory_width, 1)
        self.score = nn.Linear(config.key, 1, bias=False)
        self.readout = nn.Linear(config.width + config.embedding + memory_width, 2 * config.width)

    def remember(self, encoded: Tensor) -> Memory:
        """Keys, frames and inverse fertilities of encoder frames ``(B, T, D)``."""
        return Memory((self.key(encoded), encoded, 0.5 * self.fertility(encoded).squeeze(-1).sigmoid()))

    def forward(self, labels: Tensor, memory: Memory, visible: Tensor) -> Tensor:
        """Readouts ``(B, U + 1, W)`` after every prefix of ``labels`` ``(B, U)``; ``visible`` is ``(B, T)``."""
        opened = F.pad(labels, (1, 0), value=self.num_tokens)
        state = self.start(len(labels), visible.shape[1])
        found = []
        for tokens in opened.unbind(1):
            output, state, _ = self.step(tokens, state, memory, visible)
            found.append(output)
        return torch.stack(found, dim=1)

    def start(self, rows: int, frames: int) -> LSTMState:
        """Before the first label."""
        weight = self.readout.weight
        widths = (self.width, self.width, self.memory_width, frames)
        return LSTMState(*(weight.new_zeros(rows, width) for width in widths))

    def step(
        self, tokens: Tensor, state: LSTMState, memory: Memory | None, visible: Tensor | None
    ) -> tuple[Tensor, LSTMState, Tensor | None]:
        """Readout ``(M, W)`` after ``tokens`` ``(M,)``, the state behind them, and the attention ``(M, T)``.

        Without a memory the context is zero (the internal language model).
        """
        embedded = self.dropout(self.embedding(tokens))
        hidden, cell = self.cell(
            torch.cat((embedded, state.context.to(embedded.dtype)), dim=-1),
            (state.hidden.to(embedded.dtype), state.cell.to(embedded.dtype)),
        )
        context, attended, weights = state.context, state.attended, None
        if memory is not None and visible is not None:
            context, weights = self._attend(hidden, state.attended, memory, visible)
            attended = attended + weights
        joined = torch.cat((hidden, embedded, context.to(hidden.dtype)), dim=-1)
        output = self.readout(self.dropout(joined)).unflatten(-1, (self.width, 2)).amax(-1)
        return output, LSTMState(hidden, cell, context, attended), weights

    def _attend(
        self, hidden: Tensor, attended: Tensor, memory: Memory, visible: Tensor
    ) -> tuple[Tensor, Tensor]:
        key, frames, fertility = memory.layers
        feedback = self.feedback((fertility * attended).unsqueeze(-1))
        energy = self.score(torch.tanh(self.query(hidden)[:, None] + key + feedback)).squeeze(-1)
        weights = energy.float().masked_fill(~visible, -torch.inf).softmax(-1)
        if self.training and self.config.relaxed_attention:
            weights = relaxed(weights, visible, self.config.relaxed_attention)
        return (weights.to(frames.dtype)[:, None] @ frames).squeeze(1), weights


class LSTMDecoderHistories:
    """What an LSTM decoder makes of histories, each computed once in a search.

    Args:
        decoder: in evaluation mode.
        memory: encoder frames as it attends to them; None where nothing is heard.
        visible: ``(B, T)`` the frames of each utterance.
    """

    def __init__(self, decoder: LSTMDecoder, memory: Memory | None, visible: Tensor) -> None:
        device, (utterances, frames) = visible.device, visible.shape
        self.tree = LabelTree(utterances, decoder.num_tokens, device)
        self._decoder, self._memory, self._visible = decoder, memory, visible
        widths = (decoder.width, decoder.width, decoder.memory_width, frames)
        self._state = [Rows((width,), torch.float32, device) for width in widths]
        self._outputs = Rows((decoder.width,), torch.float32, device)
        self._where = Rows((), torch.long, device)
        opened = torch.full((utterances,), decoder.num_tokens, device=device)
        self._add(opened, torch.arange(utterances, device=device), decoder.start(utterances, frames))

    def states(self, nodes: Tensor) -> Tensor:
        """Readouts ``(M, W)`` of ``nodes`` ``(M,)``."""
        self._catch_up()
        return self._outputs.data[nodes]

    def where(self, nodes: Tensor) -> Tensor:
        """Frame ``(M,)`` attended to most in what follows ``nodes``."""
        self._catch_up()
        return self._where.data[nodes]

    def _catch_up(self) -> None:
        """Compute the nodes that came since; parents first, as the tree has them."""
        while (done := len(self._outputs.data)) < len(self.tree):
            origin = self.tree.origin[done:]
            later = (origin[:, 1] >= done).nonzero()
            origin = origin[: int(later[0]) if len(later) else len(origin)]
            state = LSTMState(*(rows.data[origin[:, 1]] for rows in self._state))
            self._add(origin[:, 2], origin[:, 0], state)

    @torch.no_grad()
    def _add(self, tokens: Tensor, utterance: Tensor, state: LSTMState) -> None:
        memory = self._memory.select(utterance) if self._memory else None
        output, after, weights = self._decoder.step(tokens, state, memory, self._visible[utterance])
        for rows, value in zip(self._state, after, strict=True):
            rows.append(value.float())
        self._outputs.append(output.float())
        self._where.append(torch.zeros_like(tokens) if weights is None else weights.argmax(-1))
