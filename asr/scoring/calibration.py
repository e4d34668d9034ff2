"""Whether confidences are what they say: of the words with confidence 0.8 four in five should be right.

The expected calibration error (Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599): words are put into bins of
equal width by their confidence, and the distance between mean confidence and share of right words is averaged over
all words. Normalised cross entropy (NIST) says how much the confidences tell beyond the share of right words: 1 is
all, 0 nothing, below 0 they mislead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr.scoring.bootstrap import Bootstrap, Floats, Interval
from asr.scoring.errors import Alignment

BINS = 10
_CLIP = 1e-3


@dataclass(frozen=True)
class Bin:
    """Words of similar confidence: how many, what they claim, and the share of them that is right."""

    words: int
    confidence: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """How well the confidences of ``words`` words fit, with intervals over utterances."""

    words: int
    right: int
    ece: Interval
    nce: Interval
    bins: tuple[Bin, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "words": self.words,
            "right": self.right,
            "ece": self.ece.to_dict(),
            "nce": self.nce.to_dict(),
            "bins": [[b.words, b.confidence, b.right] for b in self.bins],
        }


def right_words(alignment: Alignment, said: Sequence[str], heard: Sequence[str]) -> NDArray[np.bool_]:
    """Which of the words heard were said, ``(heard,)``."""
    right = np.zeros(len(heard), dtype=np.bool_)
    for i, j in alignment:
        if i is not None and j is not None:
            right[j] = said[i] == heard[j]
    return right


def calibration(
    utterances: Sequence[tuple[Floats, NDArray[np.bool_]]], bootstrap: Bootstrap
) -> Calibration | None:
    """The figures, given the confidences and the rightness of each utterance's words; None without words."""
    columns = np.array([_columns(sure, right) for sure, right in utterances])
    total = columns.sum(0)
    words, said, right = (total[k * BINS : (k + 1) * BINS] for k in range(3))
    if not words.sum():
        return None
    bins = tuple(
        Bin(int(n), float(s / n), float(r / n)) for n, s, r in zip(words, said, right, strict=True) if n
    )
    return Calibration(
        int(words.sum()),
        int(right.sum()),
        bootstrap.interval(columns, _ece),
        bootstrap.interval(columns, _nce),
        bins,
    )


def calibration_error(sure: Floats, right: NDArray[np.bool_]) -> float:
    """The expected calibration error of words with confidences ``sure``."""
    return float(_ece(_columns(sure, right)[None])[0])


def _columns(sure: Floats, right: NDArray[np.bool_]) -> Floats:
    """Words, confidence and right words by bin, and the log likelihood of the confidences; ``(3 BINS + 1,)``."""
    place = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    sums = [np.bincount(place, weights=w, minlength=BINS) for w in (np.ones(len(sure)), sure, right)]
    p = np.clip(sure, _CLIP, 1 - _CLIP)
    return np.concatenate([*sums, [np.where(right, np.log(p), np.log1p(-p)).sum()]])


def _ece(sums: Floats) -> Floats:
    words, said, right = (sums[:, k * BINS : (k + 1) * BINS] for k in range(3))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(said - right).sum(-1) / words.sum(-1), dtype=np.float64)


def _nce(sums: Floats) -> Floats:
    words, right = sums[:, :BINS].sum(-1), sums[:, 2 * BINS : 3 * BINS].sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = right / words
        # Where all words are right, or none, there is nothing that a confidence could tell.
        entropy = -(right * np.log(share) + (words - right) * np.log1p(-share))
        found = (entropy + sums[:, -1]) / entropy
    return np.asarray(np.where(np.isfinite(found), found, math.nan), dtype=np.float64)
