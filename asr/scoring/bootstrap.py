"""How sure a score is: percentile bootstrap over utterances (Bisani and Ney, ICASSP 2004)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Floats], Floats]
"""From summed columns (samples, columns) to one figure per sample (samples,); NaN where undefined."""

_CHUNK = 64


@dataclass(frozen=True)
class Interval:
    """A figure on all utterances and the bounds that hold ``level`` of the resampled figures.

    All three are NaN where the figure is undefined (nothing to divide by).
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """For JSON, which has no NaN: undefined is None."""
        return {"value": _finite(self.value), "low": _finite(self.low), "high": _finite(self.high)}


@dataclass(frozen=True)
class Difference:
    """Second system less first, on the same resampled utterances.

    ``share`` is the share of resamples in which the sign of the difference is not that of ``value`` (ties
    count half): near 0 the difference is sure, near 0.5 it is noise. It reads like a one-sided p-value.
    """

    value: float
    low: float
    high: float
    share: float


class Bootstrap:
    """Draws of whole utterances, made once and shared by every figure so that they can be compared.

    Two instances with the same ``utterances``, ``samples`` and ``seed`` draw the same utterances, which is
    what makes differences between systems paired.
    """

    def __init__(self, utterances: int, *, samples: int = 1000, seed: int = 0, level: float = 0.95) -> None:
        if utterances < 1 or samples < 1 or not 0 < level < 1:
            raise ValueError(
                f"utterances {utterances}, samples {samples}, level {level}: need >= 1, >= 1, (0, 1)"
            )
        self.level = level
        generator = np.random.default_rng(seed)
        # How often each utterance is drawn says all that sums need, in a small integer each.
        self._drawn = np.empty((samples, utterances), dtype=np.uint32)
        for sample in self._drawn:
            sample[:] = np.bincount(generator.integers(utterances, size=utterances), minlength=utterances)

    def sums(self, columns: Floats) -> Floats:
        """Column sums of every resample: (utterances, columns) -> (samples, columns)."""
        chunks = range(0, len(self._drawn), _CHUNK)
        return np.concatenate([self._drawn[c : c + _CHUNK].astype(np.float64) @ columns for c in chunks])

    def interval(self, columns: Floats, statistic: Statistic) -> Interval:
        """The figure ``statistic`` makes of per-utterance ``columns`` (utterances, columns), with its bounds.

        Resamples in which the figure is undefined (no entity drawn, say) are left out of the bounds.
        """
        value = statistic(columns.sum(axis=0, keepdims=True))[0]
        low, high = self._bounds(statistic(self.sums(columns)))
        return Interval(float(value), low, high)

    def difference(self, first: Floats, second: Floats, statistic: Statistic) -> Difference:
        """``second`` less ``first`` for two systems on the same utterances in the same order."""
        value = float(
            statistic(second.sum(axis=0, keepdims=True))[0] - statistic(first.sum(axis=0, keepdims=True))[0]
        )
        gaps = statistic(self.sums(second)) - statistic(self.sums(first))
        low, high = self._bounds(gaps)
        gaps = gaps[~np.isnan(gaps)]
        if math.isnan(value) or not len(gaps):
            return Difference(value, low, high, float("nan"))
        sign = 1.0 if value >= 0 else -1.0
        share = float(np.mean(sign * gaps < 0) + 0.5 * np.mean(gaps == 0))
        return Difference(value, low, high, share)

    def _bounds(self, figures: Floats) -> tuple[float, float]:
        figures = figures[~np.isnan(figures)]
        if not len(figures):
            return float("nan"), float("nan")
        tail = (1 - self.level) / 2
        low, high = np.quantile(figures, [tail, 1 - tail])
        return float(low), float(high)


def ratio(sums: Floats) -> Floats:
    """First column over second: error rates, precision, recall."""
    return _divide(sums[:, 0], sums[:, 1])


def f1(sums: Floats) -> Floats:
    """F1 of the columns (tp, fp, fn): 2 tp / (2 tp + fp + fn), the harmonic mean of precision and recall."""
    return _divide(2 * sums[:, 0], 2 * sums[:, 0] + sums[:, 1] + sums[:, 2])


def precision(sums: Floats) -> Floats:
    """Precision of the columns (tp, fp, fn)."""
    return _divide(sums[:, 0], sums[:, 0] + sums[:, 1])


def recall(sums: Floats) -> Floats:
    """Recall of the columns (tp, fp, fn)."""
    return _divide(sums[:, 0], sums[:, 0] + sums[:, 2])


def _divide(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
