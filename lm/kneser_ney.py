"""Interpolated modified Kneser-Ney n-gram models (Chen & Goodman 1998, TR-10-98, section 3.2), as lmplz makes them.

    p(w | h) = (a(h w) - D(a(h w))) / Σ_v a(h v) + γ(h) p(w | h'),      γ(h) = Σ_v D(a(h v)) / Σ_v a(h v)

a is the count at the highest order and for n-grams that open a sentence, and elsewhere the number of different
words seen in front. D is D1, D2 or D3+ by a. Unigrams are mixed with the uniform distribution over all words,
``</s>`` and ``<unk>``. Of an n-gram that is pruned D is all of a, so its probability goes to the shorter ones; the
discounts are those of the whole text.

Where lmplz differs: it takes the plain count of the very last n-gram of each order into its counts of counts, which
shows on tiny texts only, and it keeps discounts of 0 even where they leave unseen words nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lm.arpa import write_arpa
from lm.errors import ConfigError, DataError

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
        kept: whether it is not pruned.
    """

    prefix: Ints
    word: Ints
    suffix: Ints
    times: Ints
    opens: NDArray[np.bool_]
    kept: NDArray[np.bool_]


def train_arpa(sentences: Iterable[Sequence[str]], order: int, path: Path, prune: Sequence[int] = ()) -> None:
    """Train on sentences of words and write an ARPA file.

    Args:
        sentences: the text; ``<unk>`` may stand in it for words that are not in the vocabulary.
        order: the longest n-grams.
        path: the file; .gz and .xz are compressed.
        prune: n-grams seen no oftener than this are left out, a number for each order from the second on; the
            last holds for all that are longer, as with lmplz's --prune, whose first number here is always 0.

    Raises:
        ConfigError: numbers to prune by that are negative or fall: an n-gram needs the shorter ones inside it.
        DataError: no words, or a word that is a mark of sentences.
    """
    prune = [0, *prune]
    if prune != sorted(prune):
        raise ConfigError(
            f"pruning by {prune[1:]}", "numbers from 0 up that do not fall", "prune longer n-grams more"
        )
    names = ["<unk>", "<s>", "</s>"]
    number = {name: i for i, name in enumerate(names)}
    marks, words = {"<s>", "</s>"}, [np.zeros(0, np.int64)]
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
    prune += prune[-1:] * (order - len(prune))
    levels = _count(text, prune[:order], len(number))
    tables = [
        [values[level.kept] for values, level in zip(table, levels, strict=False)]
        for table in _estimate(levels, len(number))
    ]
    write_arpa(path, list(number), _kept(levels), *tables)


def _kept(levels: Sequence[_Level]) -> list[tuple[Ints, Ints]]:
    """First words, as rows among those kept, and last word of what is not pruned."""
    rows, found = np.zeros(1, np.int64), list[tuple[Ints, Ints]]()
    for n, level in enumerate(levels):
        prefix = level.prefix if n else np.zeros_like(level.prefix)
        found.append((rows[prefix[level.kept]], level.word[level.kept]))
        rows = np.cumsum(level.kept) - 1
    return found


def _count(text: Ints, prune: Sequence[int], size: int) -> list[_Level]:
    """The n-grams of every order; ``text`` holds sentences from ``<s>`` to ``</s>``."""
    ends = np.flatnonzero(text == EOS)
    left = ends[np.searchsorted(ends, np.arange(len(text)))] - np.arange(len(text)) + 1  # words to the end
    rows, levels = text, list[_Level]()
    count = np.bincount(text, minlength=size)
    nothing = np.zeros(size, np.int64)
    every = np.ones(size, np.bool_)
    levels.append(_Level(nothing, np.arange(size), nothing, count, np.arange(size) == BOS, every))
    for n, least in enumerate(prune[1:], start=2):
        at = np.flatnonzero(left >= n)
        keys, first, row, count = np.unique(
            rows[at] * size + text[at + n - 1], return_index=True, return_inverse=True, return_counts=True
        )
        opens = text[at[first]] == BOS
        levels.append(_Level(keys // size, keys % size, rows[at[first] + 1], count, opens, count > least))
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
        contexts = len(levels[n - 2].word) if n > 1 else 1
        total = np.bincount(level.prefix, adjusted, contexts)
        discount = _taken(level, adjusted, _discounts(adjusted))
        mass = np.bincount(level.prefix, discount, contexts)
        if not mass[total > 0].all():  # unseen words would have no probability
            discount = _taken(level, adjusted, FALLBACK)
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


def _taken(level: _Level, adjusted: Ints, discounts: Sequence[float]) -> Floats:
    """What each n-gram gives to the shorter ones: D, or all it has if it is pruned."""
    return np.where(level.kept, np.array([0.0, *discounts])[np.minimum(adjusted, 3)], adjusted)


def _discounts(count: Ints) -> tuple[float, ...]:
    """D1, D2 and D3+ (Chen & Goodman, equation 26)."""
    of = [int((count == k).sum()) for k in range(5)]
    if not all(of[1:4]):  # none seen four times is no hindrance: D3+ is then 3
        return FALLBACK
    share = of[1] / (of[1] + 2 * of[2])
    found = [
        round(k - (k + 1) * share * of[k + 1] / of[k], 9) for k in (1, 2, 3)
    ]  # 0 without rounding errors
    if any(not 0 <= d <= k for k, d in enumerate(found, start=1)):
        return FALLBACK
    return tuple(found)
