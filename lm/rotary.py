"""Positions: rotary (Su et al. 2021, arXiv 2104.09864), shared by language models and encoders, and sinusoidal."""

from __future__ import annotations

import torch
from torch import Tensor


def check_heads(width: int, heads: int, even: bool = True) -> None:
    """Whether ``heads`` divide ``width`` into parts, into even ones where pairs are rotated.

    Raises:
        ValueError: they do not.
    """
    if width % heads or (even and width // heads % 2):
        step = heads * (2 if even else 1)
        near = max(step, round(width / step) * step)
        raise ValueError(
            f"a width that {heads} heads divide into {'even ' if even else ''}parts, like {near}"
        )


def rotary_table(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for ``positions`` of any shape ``(*)``: two tensors ``(*, width / 2)``."""
    half = torch.arange(width // 2, device=positions.device, dtype=torch.float32)
    frequencies = torch.pow(10000.0, -2.0 * half / width)
    angles = positions.to(torch.float32).unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs of ``x`` ``(..., width)`` by a table broadcastable to ``(..., width / 2)``."""
    cos, sin = (part.to(x.dtype) for part in table)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sinusoidal embeddings (Vaswani et al. 2017, section 3.5) ``(*, width)`` of ``positions`` ``(*)``."""
    sin_cos = torch.stack(rotary_table(positions, width)[::-1], dim=-1)
    return sin_cos.flatten(-2)
