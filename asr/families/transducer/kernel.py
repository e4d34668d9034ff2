"""The transducer's part of a search step that is not a matrix product, compiled for a CPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lm.machine_code import compiled

Floats = NDArray[np.float32]
Longs = NDArray[np.int64]


@compiled
def distinct(
    state: Longs, frames: Longs, history: Longs, first: Longs, pairs: Longs, place: Longs
) -> tuple[int, int]:
    """Number the histories of each utterance and their pairs with frames, each once.

    Args:
        state: ``(B, K)``.
        frames: ``(B, F)``, rising; equal ones stand side by side.
        history: ``(B * K,)`` the states that differ, by number.
        first: ``(B * K,)`` utterance of each.
        pairs: ``(B * K * F, 2)`` number of the history and frame of each pair.
        place: ``(B, K, F)`` the pair of each hypothesis and frame.

    Returns:
        How many histories and how many pairs there are.
    """
    histories, count = 0, 0
    for b in range(len(state)):
        for k in range(state.shape[1]):
            known = -1
            for before in range(k):
                if state[b, before] == state[b, k]:
                    known = before
                    break
            if known >= 0:
                place[b, k] = place[b, known]
                continue
            history[histories], first[histories] = state[b, k], b
            for f in range(frames.shape[1]):
                if f == 0 or frames[b, f] != frames[b, f - 1]:
                    pairs[count, 0], pairs[count, 1] = histories, frames[b, f]
                    count += 1
                place[b, k, f] = count - 1
            histories += 1
    return histories, count


@compiled
def join(rows: Floats, pairs: Longs, first: Longs, frame: Floats, joined: Floats) -> None:
    """What enters the joint network: ``W_e h + W_p g`` ``(pairs, J)``, written to ``joined``.

    Args:
        rows: ``(histories, J)`` W_p g.
        pairs: ``(pairs, 2)`` of ``distinct``.
        first: ``(histories,)`` utterance of each history.
        frame: ``(B, T, J)`` W_e h.
    """
    for p in range(len(joined)):
        row = pairs[p, 0]
        heard, said = frame[first[row], pairs[p, 1]], rows[row]
        for j in range(joined.shape[1]):
            joined[p, j] = heard[j] + said[j]


@compiled
def look_up(state: Longs, table: Floats, rows: Floats) -> None:
    """Sum the rows of the last tokens of each of ``state`` ``(M,)`` into ``rows`` ``(M, W)``.

    The C last tokens of a history are its digits in base V + 1, each a row of its own ``table`` ``(C, V + 1, W)``.
    """
    places, base = table.shape[:2]
    for m in range(len(state)):
        rest = state[m]
        rows[m] = 0.0
        for c in range(places - 1, -1, -1):
            token = rest % base
            rest //= base
            for j in range(rows.shape[1]):
                rows[m, j] += table[c, token, j]


@compiled
def spread(
    logits: Floats, total: Floats, tokens: Longs, frames: Longs, place: Longs, blank: Floats, label: Floats
) -> None:
    """Log probabilities of the blank and of each frame's tokens, for every hypothesis.

    Args:
        logits: ``(pairs, V + 1)``, the blank last.
        total: ``(pairs,)`` their log normaliser.
        tokens: ``(B, T, k)`` candidate tokens of every frame.
        frames: ``(B, F)``.
        place: ``(B, K, F)`` of ``distinct``.
        blank: ``(B, K, F)``, written.
        label: ``(B, K, F, k)``, written.
    """
    last = logits.shape[1] - 1
    for b in range(place.shape[0]):
        for k in range(place.shape[1]):
            for f in range(place.shape[2]):
                row = place[b, k, f]
                here, norm = tokens[b, frames[b, f]], total[row]
                blank[b, k, f] = logits[row, last] - norm
                for i in range(len(here)):
                    label[b, k, f, i] = logits[row, here[i]] - norm
