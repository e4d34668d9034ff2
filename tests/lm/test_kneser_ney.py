"""Kneser-Ney as lmplz computes it: numbers that lmplz printed, discounts, pruning."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.errors import ConfigError
from lm.kneser_ney import train_arpa

TEXT = (
    "the cat sat on the mat|the dog sat on the cat|a cat and a dog sat|the mat and the dog|"
    "a dog on the mat sat on a cat"
)
SMALL = "a a d|b b b e b|c b a a|b a d b b|c b f|c a"  # no 2-gram is seen four times
TEXTS = st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=8), min_size=1, max_size=40)


def sentences(text: str) -> list[list[str]]:
    return [line.split() for line in text.split("|")]


def table(path: Path) -> dict[str, tuple[float, float]]:
    """Log probability and back-off weight (base 10) of each n-gram of a file."""
    rows = [line.split("\t") for line in path.read_text().splitlines() if "\t" in line]
    return {row[1]: (float(row[0]), float(row[2]) if len(row) > 2 else 0.0) for row in rows}


@pytest.mark.parametrize(
    ("text", "order", "prune", "sizes", "printed"),
    [
        (
            TEXT,
            3,
            [],
            [11, 22, 30],
            {
                "<unk>": (-1.0748165, 0.0),
                "the": (-1.0413927, -0.058705658),
                "</s>": (-0.86530143, 0.0),
                "sat": (-1.0413927, -0.07323191),
                "sat </s>": (-0.56803155, 0.0),
                "mat </s>": (-0.5873368, 0.0),
                "dog sat": (-0.9202141, -0.30103),
                "on the": (-0.8276053, -0.30103),
                "mat and the": (-0.17236337, 0.0),
                "dog sat on": (-0.5370679, 0.0),
                "mat sat on": (-0.26731932, 0.0),
            },
        ),
        (
            SMALL,
            2,
            [],
            [9, 17],
            {
                "<unk>": (-1.3206255, 0.0),
                "a": (-0.710293, -0.07357737),
                "b": (-0.5957198, -0.10274591),
                "d </s>": (-0.4100086, 0.0),
                "b </s>": (-0.7248414, 0.0),
                "b f": (-0.8805879, 0.0),
                "a a": (-0.66467386, 0.0),
            },
        ),
        (
            TEXT,
            3,
            [1, 1],
            [11, 11, 2],
            {
                "<unk>": (-1.0748165, 0.0),
                "the": (-1.0413927, -0.058705658),
                "</s>": (-0.86530143, 0.0),
                "sat": (-1.0413927, 0.0),
                "cat </s>": (-0.7190545, 0.0),
                "<s> the": (-1.0639318, 0.0),
                "a dog": (-0.8336365, 0.0),
                "dog sat": (-0.8286236, 0.0),
                "sat on the": (-0.3516156, 0.0),
                "on the mat": (-0.36252803, 0.0),
            },
        ),
    ],
)
def test_numbers_are_those_of_lmplz(
    tmp_path: Path,
    text: str,
    order: int,
    prune: list[int],
    sizes: list[int],
    printed: dict[str, tuple[float, float]],
) -> None:
    train_arpa(sentences(text), order, tmp_path / "m.arpa", prune)
    found = table(tmp_path / "m.arpa")
    assert list(Counter(len(name.split()) for name in found).values()) == sizes
    for name, values in printed.items():
        assert found[name] == pytest.approx(values, abs=2e-6), name


@settings(max_examples=60, deadline=None)
@given(text=TEXTS, order=st.integers(2, 4), prune=st.lists(st.integers(0, 3), max_size=3).map(sorted))
def test_pruning(
    tmp_path_factory: pytest.TempPathFactory, text: list[list[str]], order: int, prune: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("prune")
    train_arpa(text, order, folder / "whole.arpa")
    train_arpa(text, order, folder / "pruned.arpa", prune)
    whole, pruned = table(folder / "whole.arpa"), table(folder / "pruned.arpa")
    counts: Counter[str] = Counter()
    for sentence in text:
        row = ["<s>", *sentence, "</s>"]
        counts.update(" ".join(row[i : i + n]) for n in range(1, order + 1) for i in range(len(row) - n + 1))
    least = [0, 0, *(prune or [0]), *(prune or [0])[-1:] * order]
    kept = {name for name in whole if counts[name] > least[len(name.split())] or " " not in name}
    assert set(pruned) == kept
    words = [name for name in pruned if " " not in name and name != "<s>"]
    for history in ["", *(name for name in pruned if not name.endswith("</s>") and name != "<unk>")]:
        if len(history.split()) < order:
            total = sum(10 ** score(pruned, [*history.split(), word]) for word in words)
            assert total == pytest.approx(1.0, abs=1e-5), history


def score(model: dict[str, tuple[float, float]], words: list[str]) -> float:
    """log10 P(last word | those before), by the definition of back-off."""
    if " ".join(words) in model:
        return model[" ".join(words)][0]
    return model.get(" ".join(words[:-1]), (0.0, 0.0))[1] + score(model, words[1:])


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, order=st.integers(1, 4))
def test_unseen_words_keep_a_probability(
    tmp_path_factory: pytest.TempPathFactory, text: list[list[str]], order: int
) -> None:
    path = tmp_path_factory.mktemp("kn") / "m.arpa"
    train_arpa(text, order, path)
    for name, (logp, weight) in table(path).items():
        assert math.isfinite(logp), name
        assert math.isfinite(weight), name
        assert logp < 0, name


@pytest.mark.parametrize("prune", [[1, 0], [-1]])
def test_pruning_that_cannot_be(tmp_path: Path, prune: list[int]) -> None:
    with pytest.raises(ConfigError, match="do not fall"):
        train_arpa([["a"]], 3, tmp_path / "m.arpa", prune)
    assert not (tmp_path / "m.arpa").exists()
