"""LSTM language model (Sundermeyer et al. 2012; as external model in Zeyer et al. 2018, arXiv 1805.03294)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from lm.config import Config
from lm.language_model import ContextStore, LanguageModel, Rows, check_end
from lm.recurrent import run_lstm


class LSTMLMConfig(Config):
    """Shape of an LSTM language model."""

    layers: int = Field(1, ge=1)
    """LSTM layers."""
    width: int = Field(256, ge=1)
    """Width of embeddings and LSTM."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout on embeddings, between layers and before the output, in training only."""
    end: bool = False
    """Whether it learns ends of sentences, for perplexity with them and ``fusion.end``."""


class LSTMLM(LanguageModel):
    """An LSTM over V surface tokens and C class tags."""

    config: LSTMLMConfig

    def __init__(self, config: LSTMLMConfig, num_tokens: int, num_classes: int) -> None:
        super().__init__(num_tokens, num_classes, config.end)
        self.config = config
        self.embedding = nn.Embedding(self.vocab_size + 1, config.width)  # the last row opens a sentence
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.width, config.width, config.layers, batch_first=True, dropout=between)
        self.output = nn.Linear(config.width, self.vocab_size + self.end)

    def forward(self, tokens: Tensor) -> Tensor:
        """See ``LanguageModel.forward``."""
        first = tokens.new_full((len(tokens), 1), self.vocab_size)
        return self.step(torch.cat((first, tokens), dim=1), None)[0]

    def step(
        self, tokens: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits ``(B, U, V + C)``, one more with ``end``, behind ``tokens`` ``(B, U)``, and the state then."""
        hidden, after = run_lstm(self.lstm, self.dropout(self.embedding(tokens)), state)
        logits: Tensor = self.output(self.dropout(hidden))
        return logits, after

    def contexts(self, ends: bool = False) -> LSTMContexts:
        """See ``LanguageModel.contexts``."""
        return LSTMContexts(self, ends)


class LSTMContexts(ContextStore):
    """Contexts of an LSTM: hidden and cell states, once per context."""

    def __init__(self, model: LSTMLM, ends: bool = False) -> None:
        check_end(model.end, ends, "an LSTM language model")
        weight = model.output.weight
        super().__init__(model.num_tokens, model.num_classes, weight.device, ends)
        self._model = model
        self._state = Rows((2, model.config.layers, model.config.width), weight.dtype, weight.device)
        start = torch.tensor([model.vocab_size], device=weight.device)
        self._append(self._run(start, None))

    def _extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        hidden, cell = self._state.data[parents].permute(1, 2, 0, 3).contiguous().unbind(0)
        return self._run(tokens, (hidden, cell))

    @torch.no_grad()
    def _run(self, tokens: Tensor, state: tuple[Tensor, Tensor] | None) -> Tensor:
        logits, after = self._model.step(tokens[:, None], state)
        self._state.append(torch.stack(after).permute(2, 0, 1, 3))
        return logits[:, 0]
