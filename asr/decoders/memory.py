"""What a decoder remembers of encoder frames, and how its attention to them is relaxed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """Encoder frames as a decoder attends to them, one tensor a layer, utterances first."""

    layers: tuple[Tensor, ...]

    def select(self, rows: Tensor) -> Memory:
        """The memories of utterances ``rows`` ``(M,)``, which may repeat."""
        return Memory(tuple(layer[rows] for layer in self.layers))


def positions(first: int, frames: int, width: int, device: torch.device) -> Tensor:
    """Sinusoidal positions ``(frames, width)`` from ``first`` on (arXiv 1706.03762, section 3.5)."""
    place = torch.arange(first, first + frames, device=device, dtype=torch.float32)
    half = torch.arange((width + 1) // 2, device=device, dtype=torch.float32)
    angles = place[:, None] * torch.pow(10000.0, -2 * half / width)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :width]


def relaxed(weights: Tensor, mask: Tensor, share: float) -> Tensor:
    """Attention with a uniform part: Ã = (1 - γ) A + γ / T (Lohrenz et al. 2021, arXiv 2107.01275, equation 2).

    T counts the frames that may be attended to, so padding changes nothing.

    Args:
        weights: ``(..., T)`` after the softmax, zero where ``mask`` is false.
        mask: what may be attended to; broadcasts.
        share: γ.
    """
    return (1 - share) * weights + share * mask / mask.sum(-1, keepdim=True)
