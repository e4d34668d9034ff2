"""The best tokens of every frame, several times faster on a CPU than a sort."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def top_tokens(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The ``size`` highest of ``scores`` ``(..., V)`` and their places, ``(..., size)`` each, best first."""
    if size >= scores.shape[-1] or scores.is_cuda or scores.dtype != torch.float32:
        values, places = scores.topk(min(size, scores.shape[-1]), dim=-1)
        return values, places
    from decoding import top_kernel

    flat = scores.detach().contiguous().view(-1, scores.shape[-1])
    values = torch.empty((len(flat), size))
    places = torch.empty((len(flat), size), dtype=torch.long)
    select: Any = top_kernel.select
    select(flat.numpy(), values.numpy(), places.numpy())
    shape = (*scores.shape[:-1], size)
    return values.view(shape), places.view(shape)
