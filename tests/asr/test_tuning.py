"""Weights from n-best lists: the exact parts, the choice, and speech or text that must not be known."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest

from asr.decoding_config import DecodingConfig
from asr.leaks import overlap, refuse_known_text, refuse_same
from asr.tuning import applicable, centre, check_grid, fit_confidence, tune
from decoding.confidence import PLAIN
from decoding.result import EntitySpan, Hypothesis, Transcript, Word
from lm.errors import ConfigError, DataError
from lm.tagged_text import parse

SEARCHED = DecodingConfig().changed({"fusion": {"lm": "ngram", "weight": 0.4}, "label_bonus": 0.5}, "test")


def hypothesis(text: str, model: float, lm: float, weight: float = 0.4, entity: bool = False) -> Hypothesis:
    words = text.split()
    length = 0.5 * len(words)
    score = model + weight * lm + length
    spans = (EntitySpan("contact", words[0], words[0], None, 0, 1, 0.0, 0.5, 1.0),) if entity else ()
    parts = {"model": model, "fusion": weight * lm, "length": length}
    shown = tuple(Word(w, float(i), i + 0.5, 0.9) for i, w in enumerate(words))
    return Hypothesis(text, score, parts, shown, spans)


def transcript(name: str, *nbest: Hypothesis) -> Transcript:
    ranked = tuple(sorted(nbest, key=lambda h: -h.score))
    return Transcript(name, ranked[0].text, 1.0, ranked[0].words, ranked[0].entities, ranked)


FOUND = {
    # Right for a weight above 0.5: -4 - 1w against -3 - 3w.
    "a": transcript("a", hypothesis("see ann", -4.0, -1.0), hypothesis("sea an", -3.0, -3.0)),
    # Right for a weight below 1: -2 - 2w against -3 - 1w.
    "b": transcript("b", hypothesis("i know", -2.0, -2.0), hypothesis("you know", -3.0, -1.0)),
}
SAID = {"a": parse("see ann"), "b": parse("i know")}


def test_the_weight_between_the_crossings_is_found() -> None:
    tuned = tune(FOUND, SAID, {"fusion.weight": [0.0, 0.4, 0.7, 1.2]}, SEARCHED, external=False)
    assert tuned.best.settings == {"fusion.weight": 0.7}
    assert tuned.best.wer == 0.0
    assert tuned.oracle == 0.0
    assert [choice.wer for choice in tuned.tried] == [0.5, 0.5, 0.0, 0.25]
    assert tuned.searched.wer == 0.5


def test_ranking_is_that_of_the_parts_at_every_choice() -> None:
    grid = {"fusion.weight": [0.0, 0.3, 0.9], "label_bonus": [0.0, 2.0]}
    tuned = tune(FOUND, SAID, grid, SEARCHED, external=False)
    for choice in tuned.tried:
        weight, bonus = choice.settings["fusion.weight"], choice.settings["label_bonus"]
        errors = 0
        for name, found in FOUND.items():
            best = max(
                found.hypotheses,
                key=lambda h: (
                    h.scores["model"] + weight * h.scores["fusion"] / 0.4 + bonus * len(h.text.split())
                ),
            )
            wanted = SAID[name].surface.split()
            errors += sum(x != y for x, y in zip(best.text.split(), wanted, strict=True))
        assert choice.wer == pytest.approx(errors / 4)


def test_equal_choices_go_to_the_centre() -> None:
    tuned = tune(FOUND, SAID, {"fusion.weight": [0.55, 0.6, 0.7, 0.9]}, SEARCHED, external=False)
    assert tuned.best.settings == {"fusion.weight": 0.55}


def test_classes_gain_a_bonus_for_each_entity() -> None:
    searched = DecodingConfig().changed({"lm_scale": 0.5, "class_bonus": 2.0}, "test")
    found = {
        "a": transcript("a", hypothesis("ann", -4.0, 0.0, entity=True), hypothesis("an", -2.0, 0.0)),
    }
    # Two nats behind at half a nat for each of bonus: right from 2 + 4 on.
    grid = {"class_bonus": [2.0, 5.9, 6.1]}
    tuned = tune(found, {"a": parse("ann")}, grid, searched, external=False)
    assert [choice.wer for choice in tuned.tried] == [1.0, 1.0, 0.0]


def test_an_external_language_model_under_the_classes_is_scaled_as_a_whole() -> None:
    one = Hypothesis("ann", -4.0, {"model": -3.0, "lm": -0.4, "classes": -0.6}, (), ())
    other = Hypothesis("an", -3.9, {"model": -3.5, "lm": -0.4}, (), ())
    found = {"a": Transcript("a", "an", 1.0, (), (), (other, one))}
    tuned = tune(found, {"a": parse("ann")}, {"fusion.weight": [0.2, 0.4]}, SEARCHED, external=True)
    assert [choice.wer for choice in tuned.tried] == [0.0, 1.0]  # -3.5 against -3.7; -4 against -3.9


def test_utterances_must_be_the_same() -> None:
    with pytest.raises(DataError, match="without a recording, such as 'c'"):
        tune(FOUND, SAID | {"c": parse("x")}, {"fusion.weight": [0.4]}, SEARCHED, external=False)
    with pytest.raises(DataError, match="without a reference, such as 'b'"):
        tune(FOUND, {"a": parse("x")}, {"fusion.weight": [0.4]}, SEARCHED, external=False)


def test_only_what_matters_is_tuned() -> None:
    plain = DecodingConfig()
    assert list(applicable(plain, True, "classes", True)) == ["class_bonus", "lm_scale"]
    assert list(applicable(plain, True, "phrases", False)) == ["phrase_bonus"]
    assert list(applicable(SEARCHED, False, "none", False)) == ["fusion.weight", "label_bonus"]
    mixed = SEARCHED.changed({"fusion": {"how": "mix"}}, "test")
    assert "fusion.weight" not in applicable(mixed, False, "classes", True)
    joint = plain.changed({"attention": {"ctc_weight": 0.5}}, "test")
    assert list(applicable(joint, False, "none", False)) == ["attention.ctc_weight"]


def test_ctc_beside_a_decoder_is_ranked_by_its_part() -> None:
    joint = DecodingConfig.model_validate({"attention": {"ctc_weight": 0.5}})
    nbest = tuple(
        Hypothesis(text, model + ctc, {"model": model, "ctc": ctc}, (), ())
        for text, model, ctc in (("wrong", -1.0, -1.0), ("right", -2.0, -0.5))
    )
    found = {"a": Transcript("a", "wrong", 1.0, (), (), nbest)}
    grid = {"attention.ctc_weight": [0.5, 0.9, 1.1]}
    tuned = tune(found, {"a": parse("right")}, grid, joint, external=False)
    assert [choice.wer for choice in tuned.tried] == [1.0, 1.0, 0.0]


def test_the_search_has_every_part() -> None:
    assert centre({"fusion.weight": [0.0, 0.2, 0.4, 0.6], "label_bonus": [0.0, 1.0]}) == {
        "fusion.weight": 0.4,
        "label_bonus": 1.0,
    }


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "nothing to tune"),
        ({"fusion.wait": [1.0]}, "fusion.wait"),
        ({"fusion.weight": [0.0]}, "other than 0"),
        ({"fusion.weight": [0.1] * 400, "label_bonus": [1.0] * 400}, "160000 choices"),
    ],
)
def test_grids_that_cannot_be_are_refused(grid: dict[str, list[float]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_grid(grid)


def test_confidence_is_fitted_on_halves_and_told_as_it_was() -> None:
    found, said, random = {}, {}, np.random.default_rng(0)
    for i in range(400):
        rival = -1.0 if random.random() < 0.5 else -9.0
        wrong = random.random() < (0.4 if rival == -1.0 else 0.05)
        one, other = hypothesis(f"yes w{i}", 0.0, 0.0), hypothesis(f"yes v{i}", rival, 0.0)
        found[str(i)] = transcript(str(i), one, other)
        said[str(i)] = parse(f"yes u{i}" if wrong else f"yes w{i}")
    fitted = fit_confidence(found, said, PLAIN)
    right = sum(said[name].surface == found[name].text for name in found)
    assert fitted.before == pytest.approx(abs(0.9 - (400 + right) / 800), abs=0.01)
    assert fitted.after < 0.05
    assert fitted.config.agreement > 0.1


def test_speech_that_is_dev_and_test_is_refused() -> None:
    dev = {"a": parse("call maja novak right now"), "b": parse("yes")}
    with pytest.raises(DataError, match="both dev and test, such as 'a'"):
        refuse_same(dev, {"a": parse("something else")})
    with pytest.raises(DataError, match="stand in the dev set, such as"):
        refuse_same(dev, {"x": parse("CALL <contact>MAJA NOVAK</contact> RIGHT NOW")})
    assert refuse_same(dev, {"x": parse("yes")}).sentences == 0  # too short to tell


def test_text_that_holds_the_test_set_is_refused(tmp_path: Path) -> None:
    test = {str(i): parse(f"this is sentence number {i}") for i in range(10)}
    text = "".join(f"this is sentence number {i}\n" for i in range(6))
    plain, packed, squeezed = tmp_path / "a.txt", tmp_path / "a.txt.gz", tmp_path / "a.txt.xz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    squeezed.write_bytes(lzma.compress(text.encode()))
    for path in (plain, packed, squeezed):
        with pytest.raises(DataError, match="6 of 10 test sentences"):
            refuse_known_text(test, [path])
    plain.write_text("this is <n>sentence</n> number 3\n" * 9)
    assert refuse_known_text(test, [plain]).known == 1
    with pytest.raises(DataError, match="absent"):
        refuse_known_text(test, [tmp_path / "absent.txt"])


def test_a_sentence_said_twice_counts_twice() -> None:
    found = overlap([parse("a b c d"), parse("a b c d"), parse("e f g h")], ["A B C D"])
    assert (found.known, found.sentences, found.example) == (2, 3, "A B C D")
