"""The same score for every label: makes up for what language models take from each."""

from __future__ import annotations

import torch
from torch import Tensor

LENGTH = "length"
"""Name of its part."""


class LengthBonus:
    """A bonus for every label. See ``decoding.scorer.Scorer``.

    Args:
        weight: nats a label.
        device: where the search runs.
    """

    name = LENGTH

    def __init__(self, weight: float, device: torch.device) -> None:
        self.weight = weight
        self._device = device

    def start(self, utterances: int) -> Tensor:
        """See ``Scorer.start``."""
        return torch.zeros(utterances, dtype=torch.long, device=self._device)

    def score(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``Scorer.score``."""
        return torch.ones(tokens.shape, device=tokens.device)

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``Scorer.advance``."""
        return state

    def finish(self, state: Tensor) -> Tensor:
        """See ``Scorer.finish``."""
        return torch.zeros(state.shape, device=state.device)
