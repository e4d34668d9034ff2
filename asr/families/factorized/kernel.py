"""What the vocabulary predictor expects of what is heard, in compiled loops, for a CPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lm.machine_code import compiled_fast

Floats = NDArray[np.float32]
Longs = NDArray[np.int64]


@compiled_fast
def expectations(expected: Floats, contexts: Longs, heard: Floats, frames: Longs, out: Floats) -> None:
    """``out[b, k, f] = expected[contexts[b, k]] · heard[b, frames[b, f]]``, without gathering either.

    Args:
        expected: ``(rows, V)`` by context.
        contexts: ``(B, K)``.
        heard: ``(B, T, V)``.
        frames: ``(B, F)``.
        out: ``(B, K, F)``.
    """
    for b in range(out.shape[0]):
        for k in range(out.shape[1]):
            row = expected[contexts[b, k]]
            for f in range(out.shape[2]):
                frame, total = heard[b, frames[b, f]], np.float32(0.0)
                for v in range(len(row)):
                    total += row[v] * frame[v]
                out[b, k, f] = total
