"""ARPA files: written and read again, from other programs, and broken in every place."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.arpa import NGrams, read_arpa, write_arpa
from lm.errors import DataError
from lm.kneser_ney import train_arpa

FOREIGN = """
\\data\\
ngram  1 = 5
ngram 2=3

\\1-grams:
-99\t<s>\t-0.5
-1.0 </s>
-0.5\tone\t-0.25
-0.75\tno\N{NO-BREAK SPACE}break\t-0.125
-2e-1\t<unk>

\\2-grams:
-0.25\t<s> one
-inf\tone </s>
-0\tno\N{NO-BREAK SPACE}break one

\\end\\
and what comes behind is not read
"""
NUMBER = {"one": 0, "no\N{NO-BREAK SPACE}break": 1, "</s>": 2, "<s>": 3, "<unk>": 4}


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_files_of_other_programs(tmp_path: Path, ends: str) -> None:
    (tmp_path / "m.arpa").write_bytes(FOREIGN.replace("\n", ends).encode())
    (one, two), dropped = read_arpa(tmp_path / "m.arpa", NUMBER)
    assert dropped == 0
    assert one.words[:, 0].tolist() == [3, 2, 0, 1, 4]
    tens = math.log(10.0)
    assert (one.logp / tens).tolist() == pytest.approx([-99, -1, -0.5, -0.75, -0.2])
    assert (one.backoff / tens).tolist() == pytest.approx([-0.5, 0, -0.25, -0.125, 0])
    assert two.words.tolist() == [[3, 0], [0, 2], [1, 0]]
    assert two.logp.tolist() == pytest.approx([-0.25 * tens, -math.inf, 0.0])
    known = {word: i for word, i in NUMBER.items() if word != "one"}
    (one, two), dropped = read_arpa(tmp_path / "m.arpa", known)
    assert (len(one.words), len(two.words), dropped) == (4, 0, 4)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.integers(1, 4), ending=st.sampled_from(["", ".gz", ".xz"]))
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, seed: int, order: int, ending: str
) -> None:
    rng = np.random.default_rng(seed)
    words = ["a", "▁über", "<contact>", "x=1", "\\", "ngram"]
    levels, logps, weights, expected = [], [], [], []
    rows = np.zeros((1, 0), np.int64)
    for n in range(1, order + 1):
        size = int(rng.integers(1, 9))
        keys = rng.choice(len(rows) * len(words), min(size, len(rows) * len(words)), replace=False)
        prefix, last = keys // len(words), keys % len(words)
        rows = np.concatenate((rows[prefix], last[:, None]), axis=1)
        logp, weight = -rng.exponential(2.0, len(rows)), rng.normal(size=len(rows))
        levels.append((prefix, last))
        logps.append(logp)
        weights.append(weight)
        expected.append(NGrams(rows, logp, weight if n < order else np.zeros(len(rows))))
    path = tmp_path_factory.mktemp("arpa") / f"m.arpa{ending}"
    write_arpa(path, words, levels, logps, weights[:-1])
    found, dropped = read_arpa(path, {word: i for i, word in enumerate(words)})
    assert dropped == 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.words, other.words)
        np.testing.assert_allclose(one.logp, other.logp, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(one.backoff, other.backoff, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
def test_damage_is_told_in_one_line(tmp_path: Path, ending: str) -> None:
    draw = random.Random(0)
    path, damaged = tmp_path / f"m.arpa{ending}", tmp_path / f"damaged.arpa{ending}"
    train_arpa([draw.choices("abcd", k=6) for _ in range(30)], 3, path)
    whole = path.read_bytes()
    number = {word: i for i, word in enumerate(["a", "b", "c", "d", "</s>", "<s>", "<unk>"])}
    refused = list[str]()
    for _ in range(300):
        content = bytearray(whole[: draw.choice([len(whole), draw.randrange(len(whole))])])
        for _ in range(draw.randint(1, 3)):
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
        damaged.write_bytes(content)
        try:
            read_arpa(damaged, number)
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 200
    assert all("damaged.arpa" in line and "\n" not in line for line in refused)
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError):
        read_arpa(damaged, number)
    assert not list(tmp_path.glob(".writing*"))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("-0.5\tone", "minus\tone", "line 9.*numbers"),
        ("-0.5\tone", "nan\tone", "line 9.*at most 0"),
        ("-0.5\tone", "0.5\tone", "line 9.*at most 0"),
        ("one\t-0.25", "one\tinf", "line 9.*at most 0"),
        ("ngram 2=3", "ngram 2=²", "line 4.*ngram 2=COUNT"),
        ("ngram 2=3", "ngram 2=4", "line 18.*2 words"),
        ("ngram 2=3", "ngram 2=2", "line 16.*end"),
    ],
)
def test_the_line_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert FOREIGN.count(old) == 1
    (tmp_path / "m.arpa").write_text(FOREIGN.replace(old, new))
    with pytest.raises(DataError, match=says):
        read_arpa(tmp_path / "m.arpa", NUMBER)
