"""How sure a word is: a logistic model on what the search knows of it, fitted on transcribed speech.

    P(word is right) = σ(bias + a · logit p + b · logit q + c · [in an entity])

p is the probability of the word's least likely token, q the share of the n-best list that has the same word at
the same time (Wessel et al. 2001, word posteriors, here from n-best lists). The weights are fitted by maximum
likelihood (Platt 1999); ``asr tune`` does so on a dev set and tells the calibration error before and after.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from decoding.result import Hypothesis, Word
from lm.config import Config
from lm.errors import DataError

Floats = NDArray[np.float64]

SUREST = 0.999
"""Shares and probabilities nearer to 0 or 1 than this are taken for it: a short n-best list is no more exact."""
RIDGE = 0.1
"""Penalty that keeps the weights finite where a feature divides right from wrong words completely."""
MOST_STEPS = 100


class ConfidenceConfig(Config):
    """Weights of the confidence of words; the defaults were right within 7 % for every model and search tried."""

    bias: float = 0.0
    """Added to the log odds of every word."""
    token: float = 0.0
    """Weight of the log odds of p."""
    agreement: float = 0.5
    """Weight of the log odds of q, the share of the n-best list that agrees."""
    entity: float = 0.0
    """Added to the log odds of a word of an entity, whose tokens are as unlikely as its list is long."""


DEFAULT = ConfidenceConfig()
PLAIN = ConfidenceConfig(token=1.0, agreement=0.0)
"""The probability p itself."""


def agreement(nbest: Sequence[Hypothesis]) -> list[list[float]]:
    """For each word of each hypothesis the posterior share of the list that has the same word at the same time."""
    if not nbest:
        return []
    best = max(h.score for h in nbest)
    weights = [math.exp(h.score - best) for h in nbest]
    total = sum(weights)
    said: defaultdict[str, list[tuple[int, Word]]] = defaultdict(list)
    for number, hypothesis in enumerate(nbest):
        for word in hypothesis.words:
            said[word.text].append((number, word))
    shares = []
    for hypothesis in nbest:
        shares.append(
            [
                sum(weights[n] for n in {n for n, other in said[w.text] if _meet(w, other)}) / total
                for w in hypothesis.words
            ]
        )
    return shares


def features(nbest: Sequence[Hypothesis]) -> list[Floats]:
    """What a confidence is made of, for each hypothesis whose words carry p: ``(words, 4)``."""
    found = []
    for hypothesis, shares in zip(nbest, agreement(nbest), strict=True):
        inside = {place for span in hypothesis.entities for place in range(span.start, span.end)}
        rows = [
            (1.0, _logit(word.confidence), _logit(share), float(place in inside))
            for place, (word, share) in enumerate(zip(hypothesis.words, shares, strict=True))
        ]
        found.append(np.array(rows, dtype=np.float64).reshape(-1, 4))
    return found


def calibrate(nbest: Sequence[Hypothesis], config: ConfidenceConfig) -> tuple[Hypothesis, ...]:
    """Hypotheses whose words carry p, with confidences in its place.

    An entity, whose confidence was its share of the n-best list, is no surer than its least sure word.
    """
    if config == PLAIN or not nbest:
        return tuple(nbest)
    weights = _weights(config)
    result = []
    for hypothesis, rows in zip(nbest, features(nbest), strict=True):
        sure = _sigmoid(rows @ weights).tolist()
        words = (replace(w, confidence=c) for w, c in zip(hypothesis.words, sure, strict=True))
        spans = (
            replace(e, confidence=min(e.confidence, *sure[e.start : e.end])) for e in hypothesis.entities
        )
        result.append(replace(hypothesis, words=tuple(words), entities=tuple(spans)))
    return tuple(result)


def fit(rows: Floats, right: NDArray[np.bool_]) -> ConfidenceConfig:
    """The weights under which words were as right as they were, by Newton's method.

    Args:
        rows: ``(words, 4)`` of ``features``.
        right: ``(words,)``.

    Raises:
        DataError: there are no right, or no wrong words.
    """
    if not right.any() or right.all():
        kind = "wrong" if right.all() else "right"
        raise DataError(f"{len(right)} words of which none is {kind}", "some of each", "use more speech")
    # Where there are no lists a weight for entities is not determined, and stays 0.
    used = np.array([True, True, True, bool(rows[:, 3].any())])
    x, weights = rows[:, used], np.zeros(int(used.sum()))
    penalty = np.full(len(weights), RIDGE)
    penalty[0] = 0.0
    for _ in range(MOST_STEPS):
        sure = _sigmoid(x @ weights)
        slope = x.T @ (right - sure) - penalty * weights
        curve = (x * (sure * (1 - sure))[:, None]).T @ x + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curve, slope)
        weights = weights + step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    whole = np.zeros(4)
    whole[used] = weights
    bias, token, agreed, entity = (round(float(w), 4) for w in whole)
    return ConfidenceConfig(bias=bias, token=token, agreement=agreed, entity=entity)


def predict(rows: Floats, config: ConfidenceConfig) -> Floats:
    """Confidences of words given their ``features`` ``(words, 4)``."""
    return _sigmoid(rows @ _weights(config))


def _weights(config: ConfidenceConfig) -> Floats:
    return np.array([config.bias, config.token, config.agreement, config.entity])


def _meet(one: Word, other: Word) -> bool:
    # A word may have no length.
    return min(one.end_s, other.end_s) > max(one.start_s, other.start_s) or one.start_s == other.start_s


def _logit(p: float) -> float:
    p = min(max(p, 1 - SUREST), SUREST)
    return math.log(p / (1 - p))


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)), dtype=np.float64)
