"""Attention of new contexts over their ancestors in compiled loops, for a CPU.

In tensors the keys and values of all ancestors of all contexts have to be gathered first, which costs more than
the attention. Here each context follows its parents through the tables. `lm.transformer` calls this, and holds
the reference in tensors.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lm.machine_code import compiled, compiled_fast

Floats = NDArray[np.float32]
Longs = NDArray[np.int64]
Real: TypeAlias = float | np.float32


@compiled
def attend(
    query_key_value: Floats,
    cos: Floats,
    sin: Floats,
    keys_values: Floats,
    origin: Longs,
    first: int,
    depth: Longs,
    out: Floats,
) -> None:
    """Store keys and values of M new contexts, and attend from each to itself and its ancestors.

    Args:
        query_key_value: ``(M, 3, heads, d)``, positions not yet applied; they are applied in place.
        cos: ``(positions, d / 2)`` of rotary positions, ``(0, 0)`` without positions.
        sin: likewise.
        keys_values: ``(rows, 2, heads, d)``; rows ``first`` to ``first + M`` are written.
        origin: ``(rows, 2)`` parent and last token of each context; the parent of the empty one is itself.
        first: row of the first new context.
        depth: ``(M,)`` tokens in each new context.
        out: ``(M, heads, d)`` where the result goes.
    """
    heads, size = out.shape[1], out.shape[2]
    scale = np.float32(1.0 / math.sqrt(size))
    longest = depth.max() + 1
    weight = np.empty((heads, longest), np.float32)
    path = np.empty(longest, np.int64)
    for m in range(len(out)):
        row, position = first + m, depth[m]
        query, key, value = query_key_value[m, 0], keys_values[row, 0], keys_values[row, 1]
        key[:] = query_key_value[m, 1]
        value[:] = query_key_value[m, 2]
        if len(cos):
            _rotate(query, cos[position], sin[position])
            _rotate(key, cos[position], sin[position])
        at = row
        for p in range(position + 1):
            path[p] = at
            for h in range(heads):
                weight[h, p] = scale * _dot(query[h], keys_values[at, 0, h])
            at = origin[at, 0]
        out[m] = 0.0
        for h in range(heads):
            _softmax(weight[h, : position + 1])
            for p in range(position + 1):
                _add_scaled(out[m, h], keys_values[path[p], 1, h], weight[h, p])


@compiled_fast
def _dot(one: Floats, other: Floats) -> Real:
    total = np.float32(0.0)
    for i in range(len(one)):
        total += one[i] * other[i]
    return total


@compiled_fast
def _add_scaled(to: Floats, what: Floats, share: Real) -> None:
    for i in range(len(to)):
        to[i] += share * what[i]


@compiled
def _softmax(scores: Floats) -> None:
    top = scores.max()
    total = np.float32(0.0)
    for p in range(len(scores)):
        scores[p] = math.exp(scores[p] - top)
        total += scores[p]
    for p in range(len(scores)):
        scores[p] /= total


@compiled
def _rotate(x: Floats, cos: Floats, sin: Floats) -> None:
    """`lm.rotary.rotate` in place, for each head of ``x`` ``(heads, d)``."""
    half = len(cos)
    for h in range(len(x)):
        for i in range(half):
            first, second = x[h, i], x[h, half + i]
            x[h, i] = first * cos[i] - second * sin[i]
            x[h, half + i] = first * sin[i] + second * cos[i]
