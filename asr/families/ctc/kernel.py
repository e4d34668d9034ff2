"""The CTC model's part of a search step, compiled for a CPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lm.machine_code import compiled

Floats = NDArray[np.float32]
Longs = NDArray[np.int64]


@compiled
def score(
    logp: Floats,
    evidence: Floats,
    tokens: Longs,
    frames: Longs,
    state: Longs,
    blank: Floats,
    label: Floats,
    repeat: Floats,
) -> None:
    """What ``CTCEmitter.score`` does in tensors.

    Args:
        logp: ``(B, T, V + 1)``, the blank last.
        evidence: ``(B, T, k)`` of the candidate tokens.
        tokens: ``(B, T, k)`` candidate tokens of every frame.
        frames: ``(B, F)``.
        state: ``(B, K)``.
        blank: ``(B, K, F)``, written.
        label: ``(B, K, F, k)``, written.
        repeat: ``(B, K, F)``, written.
    """
    last_column = logp.shape[2] - 1
    for b in range(state.shape[0]):
        for k in range(state.shape[1]):
            last, is_open = state[b, k] // 2 - 1, state[b, k] % 2 > 0
            for f in range(frames.shape[1]):
                frame = frames[b, f]
                blank[b, k, f] = logp[b, frame, last_column]
                again = is_open and f == 0
                repeat[b, k, f] = logp[b, frame, max(last, 0)] if again else -np.inf
                for i in range(tokens.shape[2]):
                    same = again and tokens[b, frame, i] == last
                    label[b, k, f, i] = -np.inf if same else evidence[b, frame, i]
