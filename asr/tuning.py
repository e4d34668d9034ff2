"""Weights of fusion and classes from one search of a dev set: its n-best lists are ranked anew for every choice.

Every weight multiplies a part that each hypothesis carries, so ranking a list under other weights is a sum (Och
2003, minimum error rate training, on a grid). That is exact for what is added to the model's scores: fusion, what
is taken out, phrases, the bonus of labels, CTC beside a decoder, a second pass. A class bonus and the scale of a
factorized transducer's language model also move the normaliser, which is left as it was: first order. In either
case hypotheses that the search had dropped are missing, so whoever uses this searches once more with what was
chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr.decoding_config import DecodingConfig
from asr.scoring.calibration import calibration_error, right_words
from asr.scoring.errors import align, word_errors
from decoding.confidence import ConfidenceConfig, features, fit, predict
from decoding.result import Hypothesis, Transcript
from lm.errors import ConfigError, DataError
from lm.tagged_text import TaggedText

Floats = NDArray[np.float64]
MOST_CHOICES = 100_000

DEFAULTS: dict[str, tuple[float, ...]] = {
    "fusion.weight": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
    "fusion.internal_weight": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    "rescoring.weight": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
    "rescoring.internal_weight": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    "attention.ctc_weight": (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    "class_bonus": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0),
    "phrase_bonus": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0),
    "label_bonus": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0),
    "lm_scale": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2),
}
"""What is tried where nothing else is asked for."""

ANYWHERE = ("label_bonus", "attention.ctc_weight")
"""What may be tuned though it has no part by default."""

_NEEDS = {
    "fusion.weight": "a language model (--lm) with fusion.how=add",
    "fusion.internal_weight": "fusion.internal=ilme or lm",
    "rescoring.weight": "a language model for the second pass (--rescore-lm)",
    "rescoring.internal_weight": "rescoring.internal_lm",
    "class_bonus": "lists of names (--entities) as classes",
    "phrase_bonus": "lists of names (--entities) as phrases: biasing=phrases",
    "lm_scale": "a factorized model",
}

_PARTS = {
    "fusion.internal_weight": ("ilme", "density_ratio"),
    "rescoring.weight": ("rescoring",),
    "rescoring.internal_weight": ("rescoring_internal",),
    "attention.ctc_weight": ("ctc",),
    "phrase_bonus": ("phrases",),
    "label_bonus": ("length",),
    "lm_scale": ("lm", "classes"),
}


@dataclass(frozen=True)
class Choice:
    """Settings by dotted name, and the word error rate on the cached lists."""

    settings: dict[str, float]
    wer: float


@dataclass(frozen=True)
class Tuned:
    """What came out: every choice that was tried, the best, the one searched with, and the lists' oracle.

    ``oracle`` is the word error rate of the nearest hypothesis of each list: no weights can do better on them.
    """

    best: Choice
    searched: Choice
    tried: tuple[Choice, ...]
    oracle: float


def applicable(
    options: DecodingConfig, has_lists: bool, biasing: str, own_lm: bool
) -> dict[str, tuple[float, ...]]:
    """The settings that matter under ``options``, with the values to try.

    Args:
        options: settings of the search.
        has_lists: whether lists of names go with the recordings.
        biasing: what lists are used for: ``classes``, ``phrases`` or ``none``.
        own_lm: whether the model has a language model of its own.
    """
    fused = bool(options.fusion.lm)
    wanted = {
        "fusion.weight": fused and options.fusion.how == "add",
        "fusion.internal_weight": options.fusion.internal != "none",
        "rescoring.weight": bool(options.rescoring.lm),
        "rescoring.internal_weight": bool(options.rescoring.internal_lm),
        "attention.ctc_weight": bool(options.attention.ctc_weight),
        "class_bonus": has_lists and biasing == "classes",
        "phrase_bonus": has_lists and biasing == "phrases",
        "label_bonus": fused,
        "lm_scale": own_lm,
    }
    return {name: values for name, values in DEFAULTS.items() if wanted[name]}


def check_grid(grid: Mapping[str, Sequence[float]], useful: Collection[str] = tuple(DEFAULTS)) -> None:
    """Refuse what cannot be tuned this way; ``useful`` are the settings that matter, as of ``applicable``.

    Raises:
        ConfigError: an unknown setting, one that does nothing, no values, or too many choices.
    """
    if not grid:
        raise ConfigError(
            "nothing to tune: no language model and no lists in use",
            "a language model (--lm), or lists of names (--entities; not with biasing none)",
            "or name it: --tune",
        )
    for name, values in grid.items():
        if name not in DEFAULTS:
            raise ConfigError(f"--tune {name}", f"one of {', '.join(DEFAULTS)}", "correct the name")
        if name not in useful and name not in ANYWHERE:
            raise ConfigError(
                f"--tune {name}, which has no part in this search", _NEEDS[name], "add that, or leave it out"
            )
        if not values or not any(values):
            raise ConfigError(
                f"--tune {name} with {list(values)}", "a value other than 0", "give more values"
            )
    count = int(np.prod([len(values) for values in grid.values()]))
    if count > MOST_CHOICES:
        raise ConfigError(
            f"{count} choices of weights", f"at most {MOST_CHOICES}", "give fewer values: --tune"
        )


def centre(grid: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The settings to search with: the middle value of each that is not 0, so that every part is there."""
    middles = {}
    for name, values in grid.items():
        other = sorted(v for v in values if v)
        middles[name] = other[(len(other) - 1) // 2]
    return middles


def tune(
    transcripts: Mapping[str, Transcript],
    references: Mapping[str, TaggedText],
    grid: Mapping[str, Sequence[float]],
    searched: DecodingConfig,
    external: bool,
) -> Tuned:
    """Rank the n-best lists of a dev set under every choice of ``grid``; the centre wins among equals.

    Args:
        transcripts: by utterance, with n-best lists, found under ``searched``.
        references: what was said; the same utterances.
        grid: values of each setting.
        searched: settings under which the lists were made; those of ``grid`` must not be 0 there.
        external: whether the grammar's language model is the one in fusion (families without their own).

    Raises:
        DataError: the utterances differ.
    """
    check_same(transcripts, references)
    lists = [transcripts[name].hypotheses for name in references]
    words = sum(len(reference.surface.split()) for reference in references.values())
    at = {name: _value(searched, name) for name in grid}
    terms = [_terms(name, at[name], searched, external) for name in grid]
    score = _padded(lists, lambda h: h.score, -np.inf)
    slopes = np.stack([_padded(lists, term, 0.0) for term in terms], axis=-1)
    errors = _errors(lists, list(references.values()))
    every = np.arange(len(lists))
    tried = []
    for values in itertools.product(*grid.values()):
        steps = np.array([value - at[name] for name, value in zip(grid, values, strict=True)])
        wrong = errors[every, (score + slopes @ steps).argmax(-1)].sum()
        tried.append(Choice(dict(zip(grid, values, strict=True)), float(wrong) / words))

    def far(choice: Choice) -> float:
        spans = {name: max(values) - min(values) or 1.0 for name, values in grid.items()}
        return sum(abs(choice.settings[name] - at[name]) / spans[name] for name in grid)

    here = Choice(at, float(errors[every, score.argmax(-1)].sum()) / words)
    best = min(tried, key=lambda choice: (choice.wer, far(choice)))
    return Tuned(best, here, tuple(tried), float(errors.min(-1).sum()) / words)


def check_same(transcripts: Mapping[str, Transcript], references: Mapping[str, TaggedText]) -> None:
    """Refuse transcripts that are not those of the references.

    Raises:
        DataError: names an utterance that only one side has.
    """
    for one, other, what in ((references, transcripts, "recording"), (transcripts, references, "reference")):
        absent = [name for name in one if name not in other]
        if absent:
            raise DataError(
                f"{len(absent)} utterances without a {what}, such as {absent[0]!r}",
                "the same utterances on both sides",
                "give the references of just these recordings",
            )


def _padded(
    lists: Sequence[Sequence[Hypothesis]], value: Callable[[Hypothesis], float], fill: float
) -> Floats:
    """A value of every hypothesis, ``(utterances, longest list)``."""
    found = np.full((len(lists), max(len(one) for one in lists)), fill)
    for row, one in zip(found, lists, strict=True):
        row[: len(one)] = [value(h) for h in one]
    return found


def _errors(lists: Sequence[Sequence[Hypothesis]], references: Sequence[TaggedText]) -> Floats:
    """Word errors of every hypothesis; infinite where a list has no further one."""
    found = np.full((len(lists), max(len(one) for one in lists)), np.inf)
    for row, one, reference in zip(found, lists, references, strict=True):
        row[: len(one)] = [word_errors(reference.surface, h.text).errors for h in one]
    return found


def _terms(name: str, at: float, searched: DecodingConfig, external: bool) -> Callable[[Hypothesis], float]:
    """What one more of a setting adds to the score of a hypothesis."""
    if name == "class_bonus":
        scale = searched.fusion.weight if external else searched.lm_scale
        return lambda h: scale * len(h.entities)
    parts = _PARTS.get(name) or (("lm", "classes", "end") if external else ("fusion", "end"))
    return lambda h: sum(h.scores.get(part, 0.0) for part in parts) / at


def _value(options: DecodingConfig, name: str) -> float:
    value: Any = options
    for part in name.split("."):
        value = getattr(value, part)
    return float(value)


@dataclass(frozen=True)
class FittedConfidence:
    """Weights fitted on all words; errors under those there were, and of each half under those of the other."""

    config: ConfidenceConfig
    before: float
    after: float


def fit_confidence(
    transcripts: Mapping[str, Transcript],
    references: Mapping[str, TaggedText],
    present: ConfidenceConfig,
) -> FittedConfidence:
    """Fit the confidence of words on transcripts that were made with ``PLAIN`` in place of the ``present`` one.

    Raises:
        DataError: the utterances differ, or there are no right, or no wrong words.
    """
    check_same(transcripts, references)
    rows, right = [], []
    for name, reference in references.items():
        transcript = transcripts[name]
        heard = transcript.text.split()
        said = reference.surface.split()
        rows.append(features(transcript.hypotheses)[0])
        right.append(right_words(align(said, heard), said, heard))
    halves = [slice(0, None, 2), slice(1, None, 2)]
    crossed = np.empty(0), np.empty(0, dtype=np.bool_)
    for ours, others in (halves, halves[::-1]):
        config = fit(np.concatenate(rows[others]), np.concatenate(right[others]))
        sure = predict(np.concatenate(rows[ours]), config)
        crossed = np.concatenate((crossed[0], sure)), np.concatenate((crossed[1], *right[ours]))
    all_rows, all_right = np.concatenate(rows), np.concatenate(right)
    before = calibration_error(predict(all_rows, present), all_right)
    return FittedConfidence(fit(all_rows, all_right), before, calibration_error(*crossed))
