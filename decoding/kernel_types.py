"""What the compiled search step works on, as flat arrays, and arithmetic that its parts share."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lm.machine_code import compiled

Floats = NDArray[np.float32]
Longs = NDArray[np.int64]
Bools = NDArray[np.bool_]
Real: TypeAlias = float | np.float32

WAIT, REPEAT = -1, -2
"""Places of extensions without a label: the blank, and in CTC the last label once more."""


class Settings(NamedTuple):
    """What stays the same throughout a search."""

    beam: int
    width: int  # hypotheses kept outside entities
    inside: int  # and inside them,
    same: int  # so many of them at one place in the lists
    pool: int
    threshold: float
    lm_scale: float
    num_tokens: int
    maximum: bool  # equal hypotheses are not added up


class Heard(NamedTuple):
    """What the emitter and the scorers say of the next frames; shapes as in ``frame_sync._View``."""

    inside: Bools  # (B, F) whether the utterance has the frame; the first of them
    frames: Longs  # (B, F)
    tokens: Longs  # (B, F, k)
    blank: Floats  # (B, K, F)
    repeat: Floats  # (B, K, F); (0, 0, 0) for families that do not repeat labels
    label: Floats  # (B, K, F, k)
    lm: Floats  # (B, K, F, k), scaled; (0, 0, 0, 0) without one
    extra: Floats  # (B, K, F, k, S)


class Lists(NamedTuple):
    """The class grammar in flat arrays; all of them empty without one."""

    logits: Floats  # (rows, V + C) of the contexts
    word_mass: Floats  # (rows,) log P(a token that starts a word); NaN where not yet computed
    starts_word: Bools  # (V,)
    offset: Floats  # (B, C)
    root_logp: Floats  # (B, C, V)
    root_target: Longs
    key: Longs  # (arcs,)
    target: Longs
    arc_logp: Floats
    end_logp: Floats  # (nodes,)
    on_logp: Floats
    node_class: Longs


class Found(NamedTuple):
    """The step taken, written into arrays of (B, width); ``live`` places of each row are in use."""

    skipped: Longs  # (B,)
    stopped: Bools  # (B,)
    live: Longs  # (B,)
    score: Floats
    state: Longs  # (B, width, columns)
    parent: Longs
    token: Longs
    node: Longs
    entered: Bools
    ended: Bools
    gain: Floats
    lm_gain: Floats
    extra: Floats  # (B, width, S)
    waited: Floats


class Pool(NamedTuple):
    """The best extensions so far, in descending order of ``total``; ``size`` ``(1,)`` of them."""

    size: Longs
    total: Floats
    parent: Longs
    place: Longs  # or WAIT or REPEAT
    node: Longs
    ended: Bools
    lm_gain: Floats
    gain: Floats


@compiled
def add(one: Real, other: Real) -> Real:
    """log(exp(one) + exp(other)) in float32."""
    if other > one:
        one, other = other, one
    if other == -np.inf:
        return np.float32(one)
    return np.float32(one + np.log1p(np.exp(other - one)))
