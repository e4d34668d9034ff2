"""Word-level n-grams: against the model that wrote them, by hand, and against KenLM where it is installed."""

from __future__ import annotations

import gzip
import importlib.util
import math
from pathlib import Path

import pytest

from lm.errors import ConfigError, DataError
from lm.kneser_ney import train_arpa
from lm.word_ngram import END, WordNGram, load_word_lm

BY_HAND = """\\data\\
ngram 1=5
ngram 2=2

\\1-grams:
-99\t<s>\t-0.5
-1.0\t</s>
-2.0\t<unk>
-0.3\tcall\t-0.4
-0.7\tann

\\2-grams:
-0.1\t<s> call
-0.2\tcall ann

\\end\\
"""


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    path = tmp_path / "hand.arpa"
    path.write_text(BY_HAND)
    return path


def test_probabilities_back_off_as_the_file_says(by_hand: Path) -> None:
    model = load_word_lm(by_hand)
    assert model.order == 2
    asked = [((), "call"), (("call",), "ann"), (("call",), END), (("ann",), "call"), ((), "ann"), ((), "zoe")]
    wanted = [-0.1, -0.2, -0.4 - 1.0, -0.3, -0.5 - 0.7, -0.5 - 2.0]
    assert model.logp(asked) == pytest.approx([math.log(10) * x for x in wanted])


def test_only_the_last_words_count(by_hand: Path) -> None:
    model = load_word_lm(by_hand)
    assert model.logp([(("zoe", "ann", "call"), "ann")]) == model.logp([(("call",), "ann")])


@pytest.mark.parametrize("word", ["call", "CALL", "Call"])
def test_text_is_put_into_the_case_of_the_file(by_hand: Path, word: str) -> None:
    assert load_word_lm(by_hand).logp([((), word)]) == pytest.approx([-0.1 * math.log(10)])


def test_a_file_of_both_cases_is_asked_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "both.arpa"
    path.write_text(BY_HAND.replace("ann", "Ann"))
    model = load_word_lm(path)
    assert model.logp([(("call",), "Ann")])[0] > model.logp([(("call",), "ann")])[0]


def test_a_file_without_an_unknown_word_makes_it_rare(tmp_path: Path) -> None:
    path = tmp_path / "known.arpa"
    path.write_text(BY_HAND.replace("ngram 1=5", "ngram 1=4").replace("-2.0\t<unk>\n", ""))
    (found,) = load_word_lm(path).logp([((), "zoe")])
    assert -math.inf < found < -200


def test_packed_files_are_read(by_hand: Path) -> None:
    packed = by_hand.with_name("hand.arpa.gz")
    packed.write_bytes(gzip.compress(BY_HAND.encode()))
    assert load_word_lm(packed).logp([((), "call")]) == load_word_lm(by_hand).logp([((), "call")])


def test_files_that_are_none_are_refused(tmp_path: Path, by_hand: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.txt"):
        load_word_lm(tmp_path / "model.txt")
    broken = tmp_path / "broken.arpa"
    broken.write_text("hello")
    with pytest.raises(DataError, match="no"):
        load_word_lm(broken)
    endless = tmp_path / "endless.arpa"
    endless.write_text(BY_HAND.replace("</s>", "stop"))
    with pytest.raises(DataError, match="without </s>"):
        WordNGram(endless)


def test_trained_probabilities_sum_to_one(tmp_path: Path) -> None:
    text = [line.split() for line in ("call ann now", "call ben", "no call", "ann and ben")]
    train_arpa(text, 3, tmp_path / "kn.arpa")
    model = load_word_lm(tmp_path / "kn.arpa")
    words = [*{w for line in text for w in line}, END, "<unk>"]
    for history in ((), ("call",), ("call", "ann"), ("zoe",)):
        total = sum(math.exp(x) for x in model.logp([(history, word) for word in words]))
        assert total == pytest.approx(1.0, abs=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("kenlm") is None, reason="kenlm is not installed")
def test_answers_are_kenlms(by_hand: Path) -> None:
    from lm.word_ngram import KenWords

    asked = [((), "call"), (("call",), "ann"), (("call", "ann"), END), (("zoe",), "ann"), ((), "zoe")]
    assert load_word_lm(by_hand).logp(asked) == pytest.approx(KenWords(by_hand).logp(asked), rel=1e-5)
