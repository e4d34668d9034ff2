"""Steps through a boost graph on a CPU, in one compiled call; see ``decoding.phrase_boost`` for what they mean."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Longs = NDArray[np.int64]


@njit(cache=True)
def step(
    state: Longs,
    tokens: Longs,
    keys: Longs,
    targets: Longs,
    root: Longs,
    graph: Longs,
    hub: Longs,
    hops: int,
    after: Longs,
) -> None:
    """States ``after`` ``(N, k)`` each of ``tokens`` ``(N, k)`` appended to ``state`` ``(N,)``."""
    size = root.shape[1]
    for n in range(len(state)):
        for i in range(tokens.shape[1]):
            token, at = tokens[n, i], state[n]
            after[n, i] = root[graph[at], token]
            for _ in range(hops + 1):
                key = at * size + token
                low, high = 0, len(keys)
                while low < high:
                    middle = (low + high) // 2
                    if keys[middle] < key:
                        low = middle + 1
                    else:
                        high = middle
                if keys[low] == key:  # the table ends with a key above all
                    after[n, i] = targets[low]
                    break
                if hub[at] == at:
                    break
                at = hub[at]
