"""Masks over encoder frames: which frames exist, and which of them a frame may look at."""

from __future__ import annotations

import torch
from torch import Tensor


def valid_frames(lengths: Tensor, frames: int) -> Tensor:
    """True for frames that are not padding: ``(B, T)`` from ``lengths`` ``(B,)``."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def attention_mask(valid: Tensor, chunk: int = 0, left_chunks: int = -1) -> Tensor:
    """Frames each frame may attend to: ``(B, 1, T, T)``, or ``(B, 1, 1, T)`` with full context.

    Args:
        valid: ``(B, T)`` true for real frames.
        chunk: a frame sees its own chunk of this many frames and what came before; 0 for full context.
        left_chunks: with ``chunk``, how many earlier chunks are seen; -1 for all.
    """
    keys = valid[:, None, None, :]
    if chunk == 0:
        return keys
    index = torch.arange(valid.shape[1], device=valid.device) // chunk
    seen = index[None, :] <= index[:, None]
    if left_chunks >= 0:
        seen = seen & (index[None, :] >= index[:, None] - left_chunks)
    # A padded query would see nothing and give NaN: let it see itself.
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    return (keys & seen) | itself
