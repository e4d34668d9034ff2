"""KenLM through its package, against the flat tensors; skipped where the package is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lm.errors import ConfigError
from lm.kenlm_model import KenLM
from lm.kneser_ney import train_arpa
from lm.ngram import NGramModel

WORDS = ("a", "b", "c", "d", "<city>")
TOKENIZER: Any = SimpleNamespace(pieces=WORDS[:4], classes=("city",), vocab_size=4, num_classes=1)
MISSING = importlib.util.find_spec("kenlm") is None


def arpa(folder: Path, words: tuple[str, ...] = WORDS) -> Path:
    random = np.random.default_rng(0)
    text = [[words[i] for i in random.integers(0, len(words), 8)] for _ in range(80)]
    train_arpa(text, 3, folder / "m.arpa")
    return folder / "m.arpa"


@pytest.mark.skipif(MISSING, reason="the kenlm package is not installed")
def test_kenlm_and_the_flat_tensors_agree(tmp_path: Path) -> None:
    path = arpa(tmp_path)
    flat, ken = NGramModel.from_arpa(path, TOKENIZER), KenLM(path, TOKENIZER)
    one, other = flat.contexts(), ken.contexts()
    rows, states = one.start(1), other.start(1)
    for word in (0, 3, 4, 1, 1, 2, 0, 4, 4):
        torch.testing.assert_close(one.score(rows), other.score(states), atol=2e-4, rtol=1e-4)
        rows, states = one.advance(rows, torch.tensor([word])), other.advance(states, torch.tensor([word]))
    assert len(other) == len(one)
    sentence = [0, 3, 4, 1]
    expected = ken.model.score(" ".join(WORDS[i] for i in sentence)) * np.log(10)
    assert flat.score_text(sentence) == pytest.approx(expected, abs=1e-3)


@pytest.mark.skipif(MISSING, reason="the kenlm package is not installed")
def test_files_that_are_not_for_these_tokens(tmp_path: Path) -> None:
    path = arpa(tmp_path, ("x", "y", "z"))
    with pytest.raises(ConfigError, match="none of the 4 tokens"):
        KenLM(path, TOKENIZER)
    (tmp_path / "bad.bin").write_bytes(b"nothing of the sort")
    with pytest.raises(ConfigError, match=r"bad\.bin"):
        KenLM(tmp_path / "bad.bin", TOKENIZER)


@pytest.mark.skipif(not MISSING, reason="the kenlm package is installed")
def test_without_the_package(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without the kenlm package"):
        KenLM(tmp_path / "m.bin", TOKENIZER)
