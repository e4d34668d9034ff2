"""New states of an n-gram model and their scores in compiled loops, for a CPU.

In tensors each takes some twenty calls, whatever little is new. ``lm.ngram`` calls this, and holds the reference in
tensors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lm.machine_code import compiled

Floats = NDArray[np.float32]
Longs = NDArray[np.int64]
Ints = NDArray[np.int32]


class Tables(NamedTuple):
    """The model: as in ``NGramModel``, and ``first`` ``(states + 1,)``, where the arcs of each state begin."""

    key: Longs
    logp: Floats
    target: Longs
    backoff_logp: Floats
    backoff: Longs
    first: Longs


@compiled
def advance(
    tables: Tables,
    width: int,
    contexts: Longs,
    tokens: Longs,
    child: Ints,
    states: Longs,
    row: Longs,
    children: Longs,
    new: Longs,
) -> int:
    """Contexts behind a token each; those that are not there yet get the next rows.

    Args:
        tables: the model.
        width: W.
        contexts: ``(M,)``.
        tokens: ``(M,)``.
        child: ``(rows, V + C)`` context behind each token, -1 where it was not asked for yet; written.
        states: ``(rows,)`` state of each context.
        row: ``(states,)`` context of each state, -1 if there is none yet; written.
        children: ``(M,)`` contexts behind the tokens, written.
        new: ``(M,)`` states without a context so far, in the order of their new rows; written.

    Returns:
        How many are new.
    """
    count = 0
    for m in range(len(contexts)):
        found = int(child[contexts[m], tokens[m]])
        if found < 0:
            state = _next_state(tables, width, int(states[contexts[m]]), int(tokens[m]))
            found = int(row[state])
            if found < 0:
                found = len(states) + count
                row[state] = found
                new[count] = state
                count += 1
            child[contexts[m], tokens[m]] = found
        children[m] = found
    return count


@compiled
def _next_state(tables: Tables, width: int, state: int, word: int) -> int:
    """State behind ``word``; 0 for a word without a unigram."""
    while True:
        low, high = int(tables.first[state]), int(tables.first[state + 1])
        end, wanted = high, state * width + word
        while low < high:
            middle = (low + high) // 2
            if tables.key[middle] < wanted:
                low = middle + 1
            else:
                high = middle
        if low < end and tables.key[low] == wanted:
            return int(tables.target[low])
        if state == 0:
            return 0
        state = int(tables.backoff[state])


@compiled
def rows(
    tables: Tables, width: int, tokens: int, ends: bool, states: Longs, table: Floats, end: Floats
) -> None:
    """Log probabilities behind ``states`` ``(M,)``, normalised over the surface tokens and, with ``ends``, the end.

    Args:
        tables: the model.
        width: W: tokens, class tags and the end.
        tokens: V.
        ends: whether the end has a share.
        states: ``(M,)``.
        table: ``(M, V + C)``, written.
        end: ``(M,)``, written with ``ends``.
    """
    scores = np.empty(width, np.float32)
    for m in range(len(states)):
        scores[:] = np.nan  # not yet found
        state, weight = states[m], np.float32(0.0)
        while True:
            for arc in range(tables.first[state], tables.first[state + 1]):
                word = tables.key[arc] - state * width
                if math.isnan(scores[word]):
                    scores[word] = weight + tables.logp[arc]
            if state == 0:
                break
            weight += tables.backoff_logp[state]
            state = tables.backoff[state]
        peak = np.float32(-np.inf)
        for word in range(width):
            if math.isnan(scores[word]):
                scores[word] = -np.inf
            if (word < tokens or (ends and word == width - 1)) and scores[word] > peak:
                peak = scores[word]
        total = 0.0
        for word in range(tokens):
            total += math.exp(scores[word] - peak)
        if ends:
            total += math.exp(scores[width - 1] - peak)
        norm = np.float32(peak + math.log(total))
        for word in range(width - 1):
            table[m, word] = scores[word] - norm
        if ends:
            end[m] = scores[width - 1] - norm
