"""Interpolated modified Kneser-Ney n-gram models (Chen & Goodman 1998, TR-10-98, section 3.2), as lmplz makes them.

    p(w | h) = (a(h w) - D(a(h w))) / Σ_v a(h v) + γ(h) p(w | h'),      γ(h) = Σ_v D(a(h v)) / Σ_v a(h v)

a is the count at the highest order and for n-grams that open a sentence, and elsewhere the number of different
words seen in front. D is D1, D2 or D3+ by a. Unigrams are mixed with the uniform distribution over all words,
``</s>`` and ``<unk>``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lm.arpa import write_arpa
from lm.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
UNK, BOS, EOS = 0, 1, 2
FALLBACK = (0.5, 1.0, 1.5)
"""Discounts where the counts of counts give none, as on tiny texts; lmplz's --discount_fallback."""


class _Level(NamedTuple):
    """The n-grams of one order.

    Attributes:
        prefix: the first n - 1 words, as a row of the order below; and ``word``, the last.
        suffix: the last n - 1 words, as a row of the order below.
        times: how often it occurs.
        opens: whether it stands at the start of a sentence.
    """

    prefix: Ints
    word: Ints
    suffix: Ints
    times: Ints
    opens: NDArray[np.bool_]


def train_arpa(sentences: Iterable[Sequence[str]], order: int, path: Path) -> None:
    """Train on sentences of words and write an ARPA file.

    Raises:
        DataError: no words, or a word that is a mark of sentences.
    """
    names = ["<unk>", "<s>", "</s>"]
    number = {name: i for i, name in enumerate(names)}
    marks, words = set(names), [np.zeros(0, np.int64)]
    for sentence in sentences:
        if marks & set(sentence):
            raise DataError(
                f"a sentence with {sorted(marks & set(sentence))[0]!r}", "words without marks", "take it out"
            )
        row = [number.setdefault(word, len(number)) for word in sentence]
        words.append(np.array([BOS, *row, EOS]))
    text = np.concatenate(words)
    if len(number) == len(names):
        raise DataError("a text without words", "sentences to count n-grams in", "check the text")
    levels = _count(text, order, len(number))
    tables = _estimate(levels, len(number))
    write_arpa(path, list(number), [(level.prefix, level.word) for level in levels], *tables)


def _count(text: Ints, order: int, size: int) -> list[_Level]:
    """The n-grams of every order; ``text`` holds sentences from ``<s>`` to ``</s>``."""
    ends = np.flatnonzero(text == EOS)
    left = ends[np.searchsorted(ends, np.arange(len(text)))] - np.arange(len(text)) + 1  # words to the end
    rows, levels = text, list[_Level]()
    count = np.bincount(text, minlength=size)
    nothing = np.zeros(size, np.int64)
    levels.append(_Level(nothing, np.arange(size), nothing, count, np.arange(size) == BOS))
    for n in range(2, order + 1):
        at = np.flatnonzero(left >= n)
        keys, first, row, count = np.unique(
            rows[at] * size + text[at + n - 1], return_index=True, return_inverse=True, return_counts=True
        )
        levels.append(_Level(keys // size, keys % size, rows[at[first] + 1], count, text[at[first]] == BOS))
        rows = np.zeros_like(text)
        rows[at] = row
    return levels


def _estimate(levels: Sequence[_Level], size: int) -> tuple[list[Floats], list[Floats]]:
    """Log probabilities and log back-off weights of every order, natural logs."""
    logps, backoffs, below = list[Floats](), list[Floats](), np.zeros(0)
    for n, level in enumerate(levels, start=1):
        adjusted = level.times
        if n < len(levels):
            before = np.bincount(levels[n].suffix, minlength=len(level.word))
            adjusted = np.where(level.opens, level.times, before)
        if n == 1:
            adjusted[BOS] = 0
        discount = _discounts(adjusted)[np.minimum(adjusted, 3)]
        contexts = len(levels[n - 2].word) if n > 1 else 1
        total = np.bincount(level.prefix, adjusted, contexts)
        mass = np.bincount(level.prefix, discount, contexts)
        gamma = np.divide(mass, total, out=np.ones(contexts), where=total > 0)
        share = (adjusted - discount) / np.maximum(total, 1)[level.prefix]
        lower = np.full(size, 1.0 / (size - 1)) if n == 1 else below[level.suffix]
        below = share + gamma[level.prefix] * lower
        if n == 1:
            below[BOS] = 0.0
        else:
            backoffs.append(np.log(gamma))
        with np.errstate(divide="ignore"):
            logps.append(np.log(below))
    logps[0][BOS] = -99 * math.log(10)
    return logps, backoffs


def _discounts(count: Ints) -> Floats:
    """0, D1, D2 and D3+ (Chen & Goodman, equation 26)."""
    of = [int((count == k).sum()) for k in range(5)]
    if not all(of[1:]):
        return np.array([0.0, *FALLBACK])
    share = of[1] / (of[1] + 2 * of[2])
    found = [k - (k + 1) * share * of[k + 1] / of[k] for k in (1, 2, 3)]
    if any(not 0 <= d <= k for k, d in enumerate(found, start=1)):
        return np.array([0.0, *FALLBACK])
    return np.array([0.0, *found])
