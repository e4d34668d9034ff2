"""Selection of the highest numbers of each row, compiled; see ``decoding.top_tokens``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lm.machine_code import compiled


@compiled
def select(scores: NDArray[np.float32], values: NDArray[np.float32], places: NDArray[np.int64]) -> None:
    """The first ``values.shape[1]`` numbers of each row in descending order, and where they stand."""
    size = values.shape[1]
    for row in range(len(scores)):
        best, place, filled = values[row], places[row], 0
        for i in range(scores.shape[1]):
            score = scores[row, i]
            if filled == size and not score > best[size - 1]:
                continue
            at = filled if filled < size else size - 1
            while at > 0 and score > best[at - 1]:
                best[at], place[at] = best[at - 1], place[at - 1]
                at -= 1
            best[at], place[at] = score, i
            if filled < size:
                filled += 1
