"""Confidence of words: what it is made of, and that fitting finds the weights that words were drawn under."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.confidence import (
    DEFAULT,
    PLAIN,
    ConfidenceConfig,
    agreement,
    calibrate,
    features,
    fit,
    predict,
)
from decoding.result import EntitySpan, Hypothesis, Word
from lm.errors import DataError


def hypothesis(text: str, score: float, starts: list[float] | None = None, p: float = 0.9) -> Hypothesis:
    words = text.split()
    places = starts or [float(i) for i in range(len(words))]
    return Hypothesis(
        text, score, {}, tuple(Word(w, s, s + 0.5, p) for w, s in zip(words, places, strict=True)), ()
    )


def test_agreement_is_the_posterior_of_those_that_say_the_word_at_that_time() -> None:
    nbest = [hypothesis("call ann", 0.0), hypothesis("call dan", -1.0), hypothesis("ann", -2.0)]
    weights = [1.0, math.exp(-1), math.exp(-2)]
    total = sum(weights)
    shares = agreement(nbest)
    # The third hypothesis says ann, but when the others say call.
    assert shares[0] == pytest.approx([(weights[0] + weights[1]) / total, weights[0] / total])
    assert shares[1][1] == pytest.approx(weights[1] / total)
    assert shares[2] == pytest.approx([weights[2] / total])


def test_a_word_said_twice_by_one_hypothesis_counts_once() -> None:
    twice = hypothesis("no no", 0.0, [0.0, 0.3])
    assert agreement([twice, hypothesis("yes", 0.0)])[0] == pytest.approx([0.5, 0.5])


def test_plain_confidences_are_left_as_they_are() -> None:
    nbest = [hypothesis("call ann", 0.0, p=0.3), hypothesis("call dan", -1.0)]
    assert calibrate(nbest, PLAIN) == tuple(nbest)
    assert calibrate([], DEFAULT) == ()
    assert agreement([]) == []


def test_by_default_confidence_follows_the_list() -> None:
    nbest = [hypothesis("call ann", 0.0, p=0.01), hypothesis("call dan", -1.0, p=0.01)]
    sure, unsure = (word.confidence for word in calibrate(nbest, DEFAULT)[0].words)
    share = 1 / (1 + math.exp(-1))
    assert unsure == pytest.approx(1 / (1 + math.sqrt((1 - share) / share)))
    assert 0.95 < sure < 1.0


def test_words_of_an_entity_get_a_weight_of_their_own() -> None:
    span = EntitySpan("contact", "ann", "Ann", None, 1, 2, 1.0, 1.5, 1.0)
    one = hypothesis("call ann", 0.0)
    (found,) = calibrate([Hypothesis(one.text, 0.0, {}, one.words, (span,))], ConfidenceConfig(entity=1.0))
    odds = [math.log(w.confidence / (1 - w.confidence)) for w in found.words]
    assert odds[1] - odds[0] == pytest.approx(1.0)


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_fit_finds_the_weights_that_words_were_drawn_under(seed: int) -> None:
    random = np.random.default_rng(seed)
    wanted = ConfidenceConfig(bias=0.5, token=0.7, agreement=-0.4, entity=1.5)
    rows = np.column_stack([np.ones(20_000), random.normal(size=(20_000, 2)), random.random(20_000) < 0.3])
    right = random.random(len(rows)) < predict(rows, wanted)
    found = fit(rows, right)
    for name, value in wanted.model_dump().items():
        assert getattr(found, name) == pytest.approx(value, abs=0.15), name


def test_fit_without_entities_leaves_their_weight() -> None:
    random = np.random.default_rng(0)
    rows = np.column_stack([np.ones(500), random.normal(size=(500, 2)), np.zeros(500)])
    assert fit(rows, random.random(500) < 0.5).entity == 0.0


def test_words_that_a_feature_divides_completely_leave_the_weights_finite() -> None:
    rows = np.column_stack([np.ones(40), np.repeat([-3.0, 3.0], 20), np.zeros(40), np.zeros(40)])
    found = fit(rows, rows[:, 1] > 0)
    assert 0 < found.token < 20


def test_fit_needs_right_and_wrong_words() -> None:
    with pytest.raises(DataError, match="none is wrong"):
        fit(np.ones((3, 4)), np.ones(3, dtype=np.bool_))
    with pytest.raises(DataError, match="none is right"):
        fit(np.ones((3, 4)), np.zeros(3, dtype=np.bool_))


def test_features_keep_their_place() -> None:
    (rows,) = features([hypothesis("a b", 0.0, p=0.5)])
    assert rows[:, 0].tolist() == [1.0, 1.0]
    assert rows[:, 1].tolist() == [0.0, 0.0]  # log odds of 0.5
    assert (rows[:, 2] > 6).all()
    assert features([Hypothesis("", 0.0, {}, (), ())])[0].shape == (0, 4)
