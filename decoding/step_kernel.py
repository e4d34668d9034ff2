"""One search step in compiled loops, for a CPU: what `decoding.frame_sync` does in tensors, one by one.

On a CPU a step in tensors is some two hundred operations on a few thousand numbers each, and what they cost is
being called. Here the same arithmetic is one call, compiled by numba. The tensors remain the reference (and the
only way on a GPU); tests hold the two to the same answers.

Nothing here is called but through `decoding.fast_step`, which also says what the arguments are.
"""

from __future__ import annotations

import numpy as np

from decoding.beam import HISTORY, NODE
from decoding.class_status import EXITED, NORMAL
from decoding.kernel_types import (
    REPEAT,
    WAIT,
    Floats,
    Found,
    Heard,
    Lists,
    Longs,
    Pool,
    Real,
    Settings,
    add,
)
from decoding.settle_kernel import settle
from lm.machine_code import compiled


@compiled
def step(settings: Settings, lists: Lists, heard: Heard, score: Floats, state: Longs, found: Found) -> None:
    """Pass quiet frames, and extend the hypotheses of every utterance at its first frame that is not quiet."""
    classed = lists.offset.shape[0] > 0
    beams, frames = heard.blank.shape[1], heard.blank.shape[2]
    choices = heard.tokens.shape[2]
    tags = np.empty((beams, lists.offset.shape[1] if classed else 0), np.float32)
    total = np.zeros(beams, np.float32)
    before = np.empty(beams, np.float32)
    fell = np.empty(beams, np.bool_)
    lm = np.empty((beams, choices), np.float32)
    pools = (_new_pool(settings.pool), _new_pool(settings.pool))
    for b in range(len(score)):
        if classed:
            _look(lists, b, state[b], tags, total, settings.num_tokens)
        before[:] = score[b]
        fell[:] = False
        floor: Real = np.float32(-np.inf)
        stopped, at = False, 0
        while at < frames and heard.inside[b, at]:
            after = before + heard.blank[b, :, at]
            floor = _measure(after, state[b]) - settings.threshold
            if _repeats(heard, b, at, floor, before) or _stops(
                settings, lists, heard, b, at, floor, state[b], before, tags, total
            ):
                stopped = True
                _normal(settings, lists, heard, b, at, state[b], total, lm)
                break
            for k in range(beams):
                fell[k] |= after[k] < floor
                before[k] = after[k]
            at += 1
        found.skipped[b], found.stopped[b] = at, stopped
        for pool in pools:
            pool.size[0] = 0
        # A blank is an extension as well: what falls behind the best of them need not be looked at.
        least = floor if stopped else np.float32(-np.inf)
        for k in range(beams):
            if not fell[k] and before[k] > -np.inf:
                _extensions(settings, lists, heard, b, at, stopped, state, before, k, tags, lm, least, pools)
        floor = pools[0 if pools[0].size[0] else 1].total[0] - settings.threshold
        live = settle(
            settings, lists, heard, b, at, floor, 0, settings.width, score, before, state, pools[0], found
        )
        found.live[b] = settle(
            settings, lists, heard, b, at, floor, live, settings.inside, score, before, state, pools[1], found
        )


@compiled
def _measure(score: Floats, state: Longs) -> Real:
    """Score of the best hypothesis outside entities; of the best of all where there is none."""
    best, outside = score.max(), np.float32(-np.inf)
    for k in range(len(score)):
        if state[k, NODE] < 0:
            outside = max(outside, score[k])
    return outside if outside > -np.inf else best


@compiled
def _look(lists: Lists, b: int, state: Longs, tags: Floats, total: Floats, num_tokens: int) -> None:
    """log P(@c | w) of every hypothesis, and what normalises its surface tokens."""
    for k in range(len(state)):
        row = state[k, HISTORY]
        sum_ = _word_mass(lists, row, num_tokens) if state[k, NODE] == EXITED else np.float32(0.0)
        for c in range(tags.shape[1]):
            tags[k, c] = lists.logits[row, num_tokens + c] + lists.offset[b, c]
            sum_ = add(sum_, tags[k, c])
        total[k] = sum_
        for c in range(tags.shape[1]):
            tags[k, c] -= sum_


@compiled
def _word_mass(lists: Lists, row: int, num_tokens: int) -> Real:
    """log P(a token that starts a word) after a context, computed when it is first asked for."""
    if np.isnan(lists.word_mass[row]):
        logits, top = lists.logits[row], np.float32(-np.inf)
        for v in range(num_tokens):
            if lists.starts_word[v]:
                top = max(top, logits[v])
        total = np.float32(0.0)
        for v in range(num_tokens):
            if lists.starts_word[v]:
                total += np.exp(logits[v] - top)
        lists.word_mass[row] = top + np.log(total) if total > 0 else -np.inf
    mass: Real = lists.word_mass[row]
    return mass


@compiled
def _normal(
    settings: Settings, lists: Lists, heard: Heard, b: int, at: int, state: Longs, total: Floats, lm: Floats
) -> None:
    """Scaled log P(v | w) of a frame's candidate tokens for every hypothesis."""
    choices = lm.shape[1]
    if lists.offset.shape[0] == 0:
        if heard.lm.shape[0] == 0:
            lm[:] = 0.0
        else:
            lm[:] = heard.lm[b, :, at]
        return
    for k in range(len(state)):
        row, exited = state[k, HISTORY], state[k, NODE] == EXITED
        for i in range(choices):
            token = heard.tokens[b, at, i]
            if exited and not lists.starts_word[token]:
                lm[k, i] = -np.inf
            else:
                lm[k, i] = settings.lm_scale * (lists.logits[row, token] - total[k])


@compiled
def _stops(
    settings: Settings,
    lists: Lists,
    heard: Heard,
    b: int,
    at: int,
    floor: Real,
    state: Longs,
    before: Floats,
    tags: Floats,
    total: Floats,
) -> bool:
    """Whether any label of any hypothesis might come to ``floor`` at a frame."""
    classed = lists.offset.shape[0] > 0
    for k in range(len(state)):
        label, row = heard.label[b, k, at], state[k, HISTORY]
        inside = classed and state[k, NODE] >= 0
        for i in range(len(label)):
            score = before[k] + label[i]
            if score < floor:  # a language model adds nothing above 0
                continue
            if inside:
                arc = _arc(lists.key, state[k, NODE] * settings.num_tokens + heard.tokens[b, at, i])
                if arc >= 0 and score + settings.lm_scale * lists.arc_logp[arc] >= floor:
                    return True
                continue
            if not classed:
                if heard.lm.shape[0] == 0 or score + heard.lm[b, k, at, i] >= floor:
                    return True
                continue
            token = heard.tokens[b, at, i]
            for c in range(tags.shape[1]):
                if score + settings.lm_scale * (tags[k, c] + lists.root_logp[b, c, token]) >= floor:
                    return True
            if state[k, NODE] == EXITED and not lists.starts_word[token]:
                continue
            if score + settings.lm_scale * (lists.logits[row, token] - total[k]) >= floor:
                return True
    return False


@compiled
def _repeats(heard: Heard, b: int, at: int, floor: Real, before: Floats) -> bool:
    """Whether saying the last label once more might come to ``floor`` at a frame."""
    if heard.repeat.shape[0] == 0:
        return False
    best = np.float32(-np.inf)
    for k in range(len(before)):
        best = max(best, before[k] + heard.repeat[b, k, at])
    return bool(best >= floor)


@compiled
def _new_pool(size: int) -> Pool:
    return Pool(
        np.zeros(1, np.int64),
        np.empty(size, np.float32),
        np.empty(size, np.int64),
        np.empty(size, np.int64),
        np.empty(size, np.int64),
        np.empty(size, np.bool_),
        np.empty(size, np.float32),
        np.empty(size, np.float32),
    )


@compiled
def _insert(
    pool: Pool, start: Real, parent: int, place: int, node: int, ended: bool, lm: Real, gain: Real
) -> None:
    """Put an extension in its place, if it is good enough for one."""
    total, size = np.float32(start + gain), pool.size[0]
    if not total > -np.inf or (size == len(pool.total) and total <= pool.total[size - 1]):
        return
    size = min(size + 1, len(pool.total))
    i = size - 1
    while i > 0 and pool.total[i - 1] < total:
        pool.total[i], pool.parent[i], pool.place[i] = (
            pool.total[i - 1],
            pool.parent[i - 1],
            pool.place[i - 1],
        )
        pool.node[i], pool.ended[i] = pool.node[i - 1], pool.ended[i - 1]
        pool.lm_gain[i], pool.gain[i] = pool.lm_gain[i - 1], pool.gain[i - 1]
        i -= 1
    pool.total[i], pool.parent[i], pool.place[i] = total, parent, place
    pool.node[i], pool.ended[i], pool.lm_gain[i], pool.gain[i] = node, ended, lm, gain
    pool.size[0] = size


@compiled
def _extensions(
    settings: Settings,
    lists: Lists,
    heard: Heard,
    b: int,
    at: int,
    stopped: bool,
    state: Longs,
    before: Floats,
    k: int,
    tags: Floats,
    lm: Floats,
    least: Real,
    pools: tuple[Pool, Pool],
) -> None:
    """All extensions of hypothesis ``k``, into the pools: that of those outside entities, and that inside."""
    start, node = before[k], state[b, k, NODE]
    outside, inside = pools
    stays = inside if node >= 0 else outside
    _insert(stays, start, k, WAIT, NORMAL, False, 0.0, heard.blank[b, k, at] if stopped else 0.0)
    if not stopped:
        return
    if heard.repeat.shape[0] > 0:
        _insert(stays, start, k, REPEAT, NORMAL, False, 0.0, heard.repeat[b, k, at])
    label, tokens, scale = heard.label[b, k, at], heard.tokens[b, at], settings.lm_scale
    classed = lists.offset.shape[0] > 0
    if not classed or node < 0:
        for i in range(len(label)):
            if start + label[i] < least:
                continue
            if start + label[i] + lm[k, i] >= least:
                _insert(outside, start, k, i, NORMAL, False, lm[k, i], label[i] + lm[k, i])
            for c in range(tags.shape[1]):
                target = lists.root_target[b, c, tokens[i]]
                if target < 0:
                    continue
                logp = tags[k, c] + lists.root_logp[b, c, tokens[i]]
                part = scale * (logp + lists.on_logp[target])
                _insert(inside, start, k, i, target, False, part, label[i] + part)
                part = scale * (logp + lists.end_logp[target])
                _insert(outside, start, k, i, target, True, part, label[i] + part)
        return
    for i in range(len(label)):
        if start + label[i] < least:
            continue
        arc = _arc(lists.key, node * settings.num_tokens + tokens[i])
        if arc >= 0:
            child, logp = lists.target[arc], lists.arc_logp[arc]
            part = scale * (logp + lists.on_logp[child])
            _insert(inside, start, k, i, child, False, part, label[i] + part)
            part = scale * (logp + lists.end_logp[child])
            _insert(outside, start, k, i, child, True, part, label[i] + part)


@compiled
def _arc(keys: Longs, key: int) -> int:
    """Place of ``key`` among the rising ``keys``, -1 where it is not one of them."""
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low if low < len(keys) and keys[low] == key else -1
