"""The end of a compiled search step: equal extensions become one, and the best go on."""

from __future__ import annotations

import numpy as np

from decoding.beam import HISTORY_HASH, MIX_HASH, MODEL, NODE, PATH, SURFACE, SURFACE_HASH
from decoding.class_status import EXITED
from decoding.kernel_types import WAIT, Floats, Found, Heard, Lists, Longs, Pool, Real, Settings, add
from decoding.trace import BLANK
from lm.machine_code import compiled


@compiled
def settle(
    settings: Settings,
    lists: Lists,
    heard: Heard,
    b: int,
    at: int,
    floor: Real,
    live: int,
    width: int,
    score: Floats,
    before: Floats,
    state: Longs,
    pool: Pool,
    found: Found,
) -> int:
    """Recombine a pool, and write what goes on of it behind the ``live`` first, best first; the new ``live``."""
    size, stopped = pool.size[0], found.stopped[b]
    if size:
        floor = max(floor, pool.total[0] - settings.threshold)
    while size and pool.total[size - 1] < floor:
        size -= 1
    total = pool.total[:size].copy()
    key, surface, path = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.int64)
    node = np.empty(size, np.int64)
    for m in range(size):
        old, place = state[b, pool.parent[m]], pool.place[m]
        surface[m], path[m], node[m] = _extended(settings, lists, heard.tokens[b, at], old, pool, m)
        key[m] = surface[m] ^ ((path[m] + node[m] * 2) * MIX_HASH)
        if heard.repeat.shape[0] > 0:  # one that may repeat its label is not one that may not
            key[m] += _model(old[MODEL], place, at > 0, stopped) % 2
        for first in range(m):
            if key[first] == key[m] and total[first] > -np.inf:
                if not settings.maximum:
                    total[first] = add(total[first], total[m])
                total[m] = -np.inf
                break
    order = _order(total)
    distinct, last = 0, live + width
    seen = np.empty(size, np.int64)
    for m in order:
        if live == last or total[m] == -np.inf:
            break
        if node[m] >= 0 and _count(found.state[b, :live, NODE], node[m]) == settings.same:
            continue
        if node[m] < 0 and not _count(seen[:distinct], surface[m]):
            if distinct == settings.beam:
                continue
            seen[distinct] = surface[m]
            distinct += 1
        _write(heard, b, at, live, m, score, before, state, pool, total, found)
        new = found.state[b, live]
        if heard.repeat.shape[0] > 0:
            new[MODEL] = _model(new[MODEL], pool.place[m], at > 0, stopped)
        new[SURFACE], new[PATH], new[NODE] = surface[m], path[m], node[m]
        live += 1
    return live


@compiled
def _extended(
    settings: Settings, lists: Lists, tokens: Longs, old: Longs, pool: Pool, m: int
) -> tuple[int, int, int]:
    """Hashes of the surface and of the class path, and the list node, of the ``m``-th of a pool."""
    surface, path, node = old[SURFACE], old[PATH], old[NODE]
    if pool.place[m] < 0:
        return surface, path, node
    token = tokens[pool.place[m]]
    surface = (surface + token + 1) * SURFACE_HASH
    if lists.offset.shape[0] > 0:
        if pool.ended[m]:
            path = (path + settings.num_tokens + lists.node_class[pool.node[m]] + 1) * HISTORY_HASH
        elif pool.node[m] < 0:
            path = (path + token + 1) * HISTORY_HASH
        node = EXITED if pool.ended[m] else pool.node[m]
    return surface, path, node


@compiled
def _model(state: int, place: int, passed: bool, stopped: bool) -> int:
    """State of a model that repeats labels: odd behind a label, even behind a blank; which label comes later."""
    if place >= 0:
        return state | 1
    if passed or (stopped and place == WAIT):
        return state - state % 2
    return state


@compiled
def _order(total: Floats) -> Longs:
    """Places in descending order; what is in order but for a few is sorted in one go."""
    order = np.arange(len(total))
    for m in range(1, len(total)):
        place, i = order[m], m
        while i > 0 and total[order[i - 1]] < total[place]:
            order[i] = order[i - 1]
            i -= 1
        order[i] = place
    return order


@compiled
def _count(values: Longs, value: int) -> int:
    number = 0
    for one in values:
        number += one == value
    return number


@compiled
def _write(
    heard: Heard,
    b: int,
    at: int,
    to: int,
    m: int,
    score: Floats,
    before: Floats,
    state: Longs,
    pool: Pool,
    total: Floats,
    found: Found,
) -> None:
    """What extension ``m`` of the pool did, into place ``to``."""
    parent, place = pool.parent[m], pool.place[m]
    found.score[b, to] = total[m]
    found.state[b, to] = state[b, parent]
    found.parent[b, to] = parent
    found.node[b, to], found.ended[b, to] = pool.node[m], pool.ended[m]
    found.entered[b, to] = pool.node[m] >= 0 and state[b, parent, NODE] < 0
    found.gain[b, to], found.lm_gain[b, to] = pool.gain[m], pool.lm_gain[m]
    found.waited[b, to] = before[parent] - score[b, parent]
    if place < 0:
        found.token[b, to] = BLANK
        found.extra[b, to] = 0.0
    else:
        found.token[b, to] = heard.tokens[b, at, place]
        found.extra[b, to] = heard.extra[b, parent, at, place]
