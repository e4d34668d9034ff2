"""Steps through a boost graph on a CPU, in one compiled call; see ``decoding.phrase_boost`` for what they mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lm.machine_code import compiled

Floats = NDArray[np.float32]
Longs = NDArray[np.int64]

ARCS = 4
"""Arcs for each token asked for, up to which they are laid out."""


@compiled
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


@compiled
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
    arc_entry: Floats,
    root_entry: Floats,
    found: Floats,
) -> None:
    """What ``tokens`` ``(B, k)`` change after ``state`` ``(B, K)``: ``entry`` there less ``phi`` here.

    ``arc_entry`` ``(A + 1,)`` and ``root_entry`` ``(graphs, V)`` are ``entry`` behind the arcs and behind the root.
    Where a state has few arcs they are laid over the root's, which is faster than to look for each token.
    """
    row, of = np.empty(root.shape[1], np.float32), -1
    chain = np.empty(hops + 1, np.int64)
    for b in range(len(state)):
        asked = tokens[b]
        for k in range(state.shape[1]):
            at, out = state[b, k], found[b, k]
            same = _twin(state[b], k)
            if same < k:
                out[:] = found[b, same]
                continue
            here, length, arcs = phi[at], *_hubs(at, begin, hub, chain)
            if arcs > ARCS * len(asked):
                for i in range(len(asked)):
                    after = _next(at, asked[i], keys, targets, begin, root, graph, hub, hops)
                    out[i] = entry[after] - here
                continue
            fresh = root_entry[graph[at]]
            if graph[at] != of:
                row[:], of = fresh, graph[at]
            for place in range(length - 1, -1, -1):
                first = chain[place] * len(row)
                for arc in range(begin[chain[place]], begin[chain[place] + 1]):
                    row[keys[arc] - first] = arc_entry[arc]
            for i in range(len(asked)):
                out[i] = row[asked[i]] - here
            for place in range(length):
                first = chain[place] * len(row)
                for arc in range(begin[chain[place]], begin[chain[place] + 1]):
                    row[keys[arc] - first] = fresh[keys[arc] - first]


@compiled
def _twin(state: Longs, k: int) -> int:
    """The first of a beam's hypotheses that is in the state of the ``k``-th; many are in one."""
    same = 0
    while state[same] != state[k]:
        same += 1
    return same


@compiled
def _hubs(at: int, begin: Longs, hub: Longs, chain: Longs) -> tuple[int, int]:
    """Writes a state and its hubs; how many they are, and how many arcs they have."""
    arcs = 0
    for length in range(len(chain)):
        chain[length] = at
        arcs += begin[at + 1] - begin[at]
        if hub[at] == at:
            break
        at = hub[at]
    return length + 1, arcs


@compiled
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
