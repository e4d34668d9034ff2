"""Steps through a boost graph on a CPU, in one compiled call; see ``decoding.phrase_boost`` for what they mean."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Longs = NDArray[np.int64]

NEIGHBOURS = 8
"""Rows before one that may ask the same."""


@njit(cache=True)
def step(
    state: Longs,
    tokens: Longs,
    keys: Longs,
    targets: Longs,
    begin: Longs,
    root: Longs,
    graph: Longs,
    hub: Longs,
    hops: int,
    after: Longs,
) -> None:
    """States ``after`` ``(N, k)`` each of ``tokens`` ``(N, k)`` appended to ``state`` ``(N,)``."""
    for n in range(len(state)):
        for i in range(tokens.shape[1]):
            after[n, i] = _next(state[n], tokens[n, i], keys, targets, begin, root, graph, hub, hops)


@njit(cache=True)
def score(
    state: Longs,
    tokens: Longs,
    keys: Longs,
    targets: Longs,
    begin: Longs,
    root: Longs,
    graph: Longs,
    hub: Longs,
    hops: int,
    entry: Floats,
    phi: Floats,
    found: Floats,
) -> None:
    """What each of ``tokens`` ``(N, k)`` changes after ``state`` ``(N,)``: ``entry`` there less ``phi`` here.

    Neighbours are the hypotheses of a beam, many of which are in one state.
    """
    for n in range(len(state)):
        same = _twin(n, state, tokens)
        if same >= 0:
            found[n] = found[same]
            continue
        here = phi[state[n]]
        for i in range(tokens.shape[1]):
            after = _next(state[n], tokens[n, i], keys, targets, begin, root, graph, hub, hops)
            found[n, i] = entry[after] - here


@njit(cache=True)
def _twin(n: int, state: Longs, tokens: Longs) -> int:
    """One of the rows just before ``n`` that asks the same, or -1."""
    for other in range(max(0, n - NEIGHBOURS), n):
        if state[other] == state[n]:
            equal = True
            for i in range(tokens.shape[1]):
                equal &= tokens[other, i] == tokens[n, i]
            if equal:
                return other
    return -1


@njit(cache=True)
def _next(
    at: int,
    token: int,
    keys: Longs,
    targets: Longs,
    begin: Longs,
    root: Longs,
    graph: Longs,
    hub: Longs,
    hops: int,
) -> int:
    """The state behind ``token``: an arc of ``at``, of its hubs, or of the root, the first that there is."""
    size, first = root.shape[1], at
    for _ in range(hops + 1):
        key = at * size + token
        low, high = begin[at], begin[at + 1]
        end = high
        while low < high:
            middle = (low + high) // 2
            if keys[middle] < key:
                low = middle + 1
            else:
                high = middle
        if low < end and keys[low] == key:
            return int(targets[low])
        if hub[at] == at:
            break
        at = hub[at]
    return int(root[graph[first], token])
