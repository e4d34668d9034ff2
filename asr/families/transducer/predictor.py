"""The two predictors of a transducer, for whole transcripts in training and step by step in a search.

Both give ``W_p g_u``, the predictor's part of the joint. A search keeps one integer for each label history and
asks ``Histories`` for what it stands for.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.families.transducer.config import PredictorConfig
from lm.language_model import Rows
from lm.recurrent import run_lstm


class Histories(Protocol):
    """Label histories by number."""

    def start(self, utterances: int) -> Tensor:
        """The empty history of each utterance ``(B,)`` int64."""
        ...

    def rows(self, state: Tensor) -> Tensor:
        """The predictor's part of the joint ``(..., J)`` for histories of any shape."""
        ...

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Histories ``(M,)`` after each of ``tokens`` ``(M,)``."""
        ...


class StatelessPredictor(nn.Module):
    """The last few tokens, one embedding table a place (Ghodsi et al. 2020, "RNN-transducer with stateless
    prediction network").
    """

    def __init__(self, config: PredictorConfig, num_tokens: int, joint_width: int) -> None:
        super().__init__()
        self.context = config.context
        self.num_tokens = num_tokens
        width = config.width or joint_width
        # The last row of each table stands for "before the first token".
        self.embedding = nn.Embedding(self.context * (num_tokens + 1), width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.project: nn.Module = nn.Identity()
        if config.width is not None:
            # Without the ReLU the projection would only be a smaller form of the same tables.
            self.project = nn.Sequential(nn.ReLU(), nn.Linear(width, joint_width))

    def forward(self, labels: Tensor) -> Tensor:
        """``W_p g`` ``(B, U + 1, J)`` after every prefix of ``labels`` ``(B, U)``."""
        padded = F.pad(labels, (self.context, 0), value=self.num_tokens)
        return self.look_up(padded.unfold(1, self.context, 1))

    def look_up(self, last: Tensor) -> Tensor:
        """``W_p g`` ``(..., J)`` after the last tokens ``(..., context)``, oldest first; V where there is none."""
        offsets = torch.arange(self.context, device=last.device) * (self.num_tokens + 1)
        return self.read(self.embedding(last + offsets).sum(-2))

    def read(self, embedded: Tensor) -> Tensor:
        """``W_p g`` ``(..., J)`` of the sum of the last tokens' embeddings."""
        result: Tensor = self.project(self.dropout(embedded))
        return result

    def histories(self) -> LastTokens:
        """Histories for one search."""
        return LastTokens(self)


class LastTokens:
    """Histories of a stateless predictor: the number is the last tokens themselves, in base V + 1.

    So nothing has to be remembered, and all histories with the same last tokens are one.
    """

    def __init__(self, predictor: StatelessPredictor) -> None:
        self._predictor = predictor
        self._base = predictor.num_tokens + 1
        self._device = predictor.embedding.weight.device
        powers = [self._base**place for place in reversed(range(predictor.context))]
        self._powers = torch.tensor(powers, device=self._device)

    def start(self, utterances: int) -> Tensor:
        """See ``Histories.start``."""
        nothing = self._base**self._predictor.context - 1  # the digit V in every place
        return torch.full((utterances,), nothing, device=self._device)

    def rows(self, state: Tensor) -> Tensor:
        """See ``Histories.rows``."""
        weight = self._predictor.embedding.weight
        if state.dim() == 1 and state.device.type == "cpu" and weight.dtype == torch.float32:
            from asr.families.transducer import kernel

            table = weight.detach().view(self._predictor.context, self._base, -1)
            embedded = torch.empty((len(state), table.shape[-1]))
            kernel.look_up(state.numpy(), table.numpy(), embedded.numpy())
            return self._predictor.read(embedded)
        return self._predictor.look_up(state.unsqueeze(-1) // self._powers % self._base).float()

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``Histories.advance``."""
        return state % self._powers[0] * self._base + tokens


class LSTMPredictor(nn.Module):
    """An LSTM over all labels (Graves 2012, arXiv 1211.3711)."""

    def __init__(self, config: PredictorConfig, num_tokens: int, joint_width: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        width = config.width or joint_width
        self.embedding = nn.Embedding(num_tokens + 1, width)  # the last row opens a sentence
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(width, width, config.layers, batch_first=True, dropout=between)
        self.project = nn.Linear(width, joint_width)

    def forward(self, labels: Tensor) -> Tensor:
        """``W_p g`` ``(B, U + 1, J)`` after every prefix of ``labels`` ``(B, U)``."""
        return self.step(F.pad(labels, (1, 0), value=self.num_tokens))[0]

    def step(
        self, tokens: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``W_p g`` ``(B, U, J)`` after each of ``tokens`` ``(B, U)``, and the LSTM's state behind the last."""
        hidden, after = run_lstm(self.lstm, self.dropout(self.embedding(tokens)), state)
        result: Tensor = self.project(hidden)
        return result, after

    def histories(self) -> LSTMHistories:
        """Histories for one search."""
        return LSTMHistories(self)


class LSTMHistories:
    """Histories of an LSTM: the number is a row of tables; each history is computed once in a search."""

    def __init__(self, predictor: LSTMPredictor) -> None:
        weight, lstm = predictor.project.weight, predictor.lstm
        self._predictor = predictor
        self._child = Rows((predictor.num_tokens,), torch.int32, weight.device, fill=-1)
        self._joint = Rows((weight.shape[0],), torch.float32, weight.device)
        self._state = Rows((2, lstm.num_layers, lstm.hidden_size), weight.dtype, weight.device)
        self._add(torch.tensor([predictor.num_tokens], device=weight.device), None)

    def start(self, utterances: int) -> Tensor:
        """See ``Histories.start``."""
        return torch.zeros(utterances, dtype=torch.long, device=self._joint.data.device)

    def rows(self, state: Tensor) -> Tensor:
        """See ``Histories.rows``."""
        return self._joint.data[state]

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``Histories.advance``."""
        children = self._child.data[state, tokens]
        missing = (children < 0).nonzero().squeeze(1)
        if missing.numel():
            width = self._predictor.num_tokens
            keys, inverse = torch.unique(state[missing] * width + tokens[missing], return_inverse=True)
            parents, labels = keys // width, keys % width
            first = self._add(labels, parents)
            rows = torch.arange(first, first + len(keys), device=state.device, dtype=torch.int32)
            self._child.data[parents, labels] = rows
            children[missing] = rows[inverse]
        return children.long()

    @torch.no_grad()
    def _add(self, tokens: Tensor, parents: Tensor | None) -> int:
        """Compute the histories ``parents ⊕ tokens`` ``(M,)``; returns the row of the first."""
        before = None
        if parents is not None:
            hidden, cell = self._state.data[parents].permute(1, 2, 0, 3).contiguous().unbind(0)
            before = hidden, cell
        joint, after = self._predictor.step(tokens[:, None], before)
        self._child.grow(len(tokens))
        self._state.append(torch.stack(after).permute(2, 0, 1, 3))
        return self._joint.append(joint.squeeze(1))
