"""Calibration error and cross entropy against what they are by definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from asr.scoring.bootstrap import Bootstrap
from asr.scoring.calibration import calibration, calibration_error, right_words
from asr.scoring.errors import align
from asr.scoring.score import figures, score
from decoding.result import Hypothesis, Transcript, Word
from lm.tagged_text import parse


def test_words_that_are_as_right_as_they_claim_have_no_error() -> None:
    sure = np.repeat([0.25, 0.75], 400)
    right = np.concatenate([np.arange(400) < 100, np.arange(400) < 300])
    assert calibration_error(sure, right) == pytest.approx(0.0)


def test_error_is_the_mean_distance_between_claim_and_truth() -> None:
    sure = np.array([0.95, 0.95, 0.55, 0.55])
    right = np.array([True, False, True, True])
    # Half of the words claim 0.95 and are right half of the time, half claim 0.55 and are always right.
    assert calibration_error(sure, right) == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)


def test_certain_words_and_impossible_ones_stay_in_their_bins() -> None:
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0.0


def test_cross_entropy_is_one_for_a_seer_zero_for_the_mean_and_negative_for_a_liar() -> None:
    right = np.array([True] * 9 + [False])
    bootstrap = Bootstrap(1)
    seer = calibration([(right.astype(np.float64), right)], bootstrap)
    mean = calibration([(np.full(10, 0.9), right)], bootstrap)
    liar = calibration([(1.0 - right, right)], bootstrap)
    assert seer is not None
    assert mean is not None
    assert liar is not None
    assert seer.nce.value == pytest.approx(1.0, abs=0.01)
    assert mean.nce.value == pytest.approx(0.0, abs=1e-9)
    assert liar.nce.value < -1
    assert mean.bins[0].words == 10
    assert mean.right == 9


def test_there_is_nothing_to_say_of_no_words() -> None:
    assert calibration([(np.empty(0), np.empty(0, dtype=np.bool_))], Bootstrap(1)) is None
    all_right = calibration([(np.array([0.9]), np.array([True]))], Bootstrap(1))
    assert all_right is not None
    assert math.isnan(all_right.nce.value)


def test_right_words_are_those_aligned_with_themselves() -> None:
    said, heard = ["call", "ann", "now"], ["please", "call", "dan", "now"]
    assert right_words(align(said, heard), said, heard).tolist() == [False, True, False, True]


def transcript(texts: list[str], sure: float = 0.8) -> Transcript:
    def one(text: str) -> Hypothesis:
        return Hypothesis(text, 0.0, {}, tuple(Word(w, 0.0, 0.1, sure) for w in text.split()), ())

    nbest = tuple(one(text) for text in texts)
    return Transcript("u", texts[0], 1.0, nbest[0].words, (), nbest)


def test_a_report_tells_calibration_and_oracle() -> None:
    references = {"u": parse("call ann now")}
    report = score(references, {"u": transcript(["call dan now", "call ann", "call ann now"])})
    shown = {name: interval.value * scale for name, interval, scale in figures(report)}
    assert shown["n-best oracle WER %"] == 0.0
    assert shown["WER %"] == pytest.approx(100 / 3)
    assert shown["confidence: calibration error %"] == pytest.approx(100 * (0.8 - 2 / 3))
    assert '"nbest_oracle_wer"' in report.to_json()


def test_without_lists_or_confidences_there_are_no_such_figures() -> None:
    references = {"u": parse("call ann now")}
    report = score(references, {"u": transcript(["call dan now"], sure=float("nan"))})
    assert report.oracle is None
    assert report.confidence is None
    assert "calibration" not in report.to_text()
