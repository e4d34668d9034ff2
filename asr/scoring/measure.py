"""What a score is made of: the record of one utterance, and figures with intervals over all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asr.scoring.bootstrap import Bootstrap, Floats, Interval, Statistic, f1, precision, ratio, recall
from asr.scoring.calibration import Calibration, calibration, right_words
from asr.scoring.entities import EntityCounts, EntityScore, Matches
from asr.scoring.errors import Alignment, Counts
from decoding.result import Transcript
from lm.tagged_text import TaggedText


@dataclass(frozen=True)
class UtteranceScore:
    """One utterance with all that its figures and its place in a report are made from.

    ``hypothesis`` is None where the system gave none, which is scored as an empty text. ``nearest`` are the word
    errors of the best entry of its n-best list.
    """

    id: str
    reference: TaggedText
    hypothesis: Transcript | None
    alignment: Alignment
    words: Counts
    chars: Counts
    entities: EntityScore
    nearest: Counts

    @property
    def heard(self) -> list[str]:
        """The recognised words."""
        return self.hypothesis.text.split() if self.hypothesis else []


@dataclass(frozen=True)
class ErrorRate:
    """Summed errors and their rate (a fraction) with its interval."""

    counts: Counts
    rate: Interval

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.rate.to_dict(), **self.counts.to_dict()}


@dataclass(frozen=True)
class Detection:
    """Summed matches with the intervals of their rates; see :mod:`asr.scoring.entities`.

    ``measured`` is False where no list was given: then false positives were not counted, and precision and
    F1 are NaN.
    """

    matches: Matches
    precision: Interval
    recall: Interval
    f1: Interval
    measured: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tp": self.matches.tp,
            "fp": self.matches.fp if self.measured else None,
            "fn": self.matches.fn,
            "precision": self.precision.to_dict(),
            "recall": self.recall.to_dict(),
            "f1": self.f1.to_dict(),
        }


@dataclass(frozen=True)
class FalseAlarms:
    """List entries heard that were not spoken, and their number per 1,000 reference words."""

    number: int
    words: int
    per_thousand: Interval

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"number": self.number, "words": self.words, "per_1000": self.per_thousand.to_dict()}


@dataclass(frozen=True)
class EntityReport:
    """What is said of one class of entities, or of all; ``span`` is None for systems that emit no spans."""

    ne_wer: ErrorRate
    text: Detection
    span: Detection | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ne_wer": self.ne_wer.to_dict(),
            "text": self.text.to_dict(),
            "span": self.span and self.span.to_dict(),
        }


class Measure:
    """Turns per-utterance counts into figures with intervals."""

    def __init__(self, utterances: Sequence[UtteranceScore], bootstrap: Bootstrap) -> None:
        self._utterances = utterances
        self._bootstrap = bootstrap

    def rate(self, counts: Callable[[UtteranceScore], Counts]) -> ErrorRate:
        """Summed errors and the interval of their rate."""
        each = [counts(u) for u in self._utterances]
        return ErrorRate(sum(each, Counts()), self._bootstrap.interval(error_columns(each), ratio))

    def entities(
        self, counts: Callable[[UtteranceScore], EntityCounts], has_list: bool, emits_spans: bool
    ) -> EntityReport:
        """What is said of the entities that ``counts`` picks from each utterance."""
        each = [counts(u) for u in self._utterances]
        errors = [c.errors for c in each]
        ne_wer = ErrorRate(sum(errors, Counts()), self._bootstrap.interval(error_columns(errors), ratio))
        text = self._detection([c.text for c in each], has_list)
        return EntityReport(
            ne_wer, text, self._detection([c.span for c in each], True) if emits_spans else None
        )

    def false_alarms(self, wanted: Callable[[UtteranceScore], bool]) -> FalseAlarms:
        """False alarms over the utterances that are ``wanted``."""
        kept = [
            (len(u.entities.false_alarms), u.words.ref) if wanted(u) else (0, 0) for u in self._utterances
        ]
        columns = np.array(kept, dtype=np.float64)
        number, words = (int(total) for total in columns.sum(axis=0))
        return FalseAlarms(number, words, self._bootstrap.interval(columns * [1000.0, 1.0], ratio))

    def calibration(self) -> Calibration | None:
        """How well the confidences of words fit; None where some word has none."""
        each = []
        for utterance in self._utterances:
            words = utterance.hypothesis.words if utterance.hypothesis else ()
            sure = np.array([word.confidence for word in words], dtype=np.float64)
            if len(words) != len(utterance.heard) or not np.isfinite(sure).all():
                return None
            right = right_words(utterance.alignment, utterance.reference.surface.split(), utterance.heard)
            each.append((sure, right))
        return calibration(each, self._bootstrap)

    def _detection(self, each: Sequence[Matches], measured: bool) -> Detection:
        columns = match_columns(each)
        undefined = Interval(float("nan"), float("nan"), float("nan"))

        def figure(statistic: Statistic) -> Interval:
            return self._bootstrap.interval(columns, statistic)

        return Detection(
            sum(each, Matches()),
            figure(precision) if measured else undefined,
            figure(recall),
            figure(f1) if measured else undefined,
            measured,
        )


def error_columns(each: Sequence[Counts]) -> Floats:
    """(utterances, 2): errors and reference words, for ``ratio``."""
    return np.array([(c.errors, c.ref) for c in each], dtype=np.float64).reshape(-1, 2)


def match_columns(each: Sequence[Matches]) -> Floats:
    """(utterances, 3): tp, fp and fn, for ``precision``, ``recall`` and ``f1``."""
    return np.array([(m.tp, m.fp, m.fn) for m in each], dtype=np.float64).reshape(-1, 3)
