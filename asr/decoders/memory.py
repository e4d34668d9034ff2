"""What a decoder remembers of encoder frames, and where they are."""

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
