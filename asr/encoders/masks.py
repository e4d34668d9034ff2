"""Masks over encoder frames: which frames exist, and which of them a frame may look at."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_CHUNK = 25
"""Encoder frames of the largest random chunk in training (one second), unless the deployed chunk is larger."""


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


def random_context(chunk: int, left_chunks: int) -> tuple[int, int]:
    """Draw the context of one training batch: everything, or chunks of a random size (half of the time each).

    The dynamic chunk training of U2 (Zhang et al. 2020, arXiv 2012.05481), drawn from torch's global generator.

    Args:
        chunk: encoder frames of a chunk when deployed, 0 for full context; as many as that, or LARGEST_CHUNK if
            it is more, may be drawn.
        left_chunks: earlier chunks seen when deployed, -1 for all.

    Returns:
        ``chunk`` and ``left_chunks`` for `attention_mask`. Where a limit is set, as many earlier frames are seen
        as when deployed, in whole chunks.
    """
    largest = max(chunk, LARGEST_CHUNK)
    drawn = int(torch.randint(1 - largest, largest + 1, ()))
    if drawn <= 0:
        return 0, -1
    return drawn, -(-left_chunks * chunk // drawn) if left_chunks > 0 else left_chunks
