"""Ends of sentences in the contexts of every kind of language model."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lm.errors import ConfigError
from lm.kenlm_model import KenLM
from lm.kneser_ney import train_arpa
from lm.language_model import ContextStore
from lm.model_files import make_language_model
from lm.ngram import NGramModel

WORDS = ("a", "b", "c", "<city>")
TOKENIZER: Any = SimpleNamespace(pieces=WORDS[:3], classes=("city",), vocab_size=3, num_classes=1)
SHAPES: dict[str, dict[str, Any]] = {
    "lstm": {"width": 8},
    "transformer": {"layers": 1, "width": 8, "heads": 2, "feed_forward": 8},
    "based": {"layers": 2, "width": 8, "heads": 2, "features": 2, "window": 3, "feed_forward": 8},
}


def neural(kind: str, end: bool) -> Any:
    torch.manual_seed(3)
    return make_language_model(kind, SHAPES[kind] | {"end": end}, TOKENIZER, "here").eval()


def arpa(folder: Path) -> Path:
    random = np.random.default_rng(0)
    train_arpa([[WORDS[i] for i in random.integers(0, 4, 6)] for _ in range(60)], 3, folder / "m.arpa")
    return folder / "m.arpa"


def sentence_logp(store: ContextStore, tokens: tuple[int, ...], end: bool) -> float:
    row, total = store.start(1), 0.0
    for token in tokens:
        asked = torch.tensor([token])
        total += float(store.score(row, asked[:, None]))
        row = store.advance(row, asked)
    return total + (float(store.end_logp(row)) if end else 0.0)


def check_mass(store: ContextStore) -> None:
    """What has ended by some length and what has not is all there is."""
    length = 3
    ended = [
        sentence_logp(store, tokens, True)
        for size in range(length)
        for tokens in itertools.product(range(3), repeat=size)
    ]
    going = [sentence_logp(store, tokens, False) for tokens in itertools.product(range(3), repeat=length)]
    assert math.fsum(map(math.exp, ended + going)) == pytest.approx(1.0, abs=1e-5)
    assert math.fsum(map(math.exp, ended)) > 0.05


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_neural_models(kind: str) -> None:
    model = neural(kind, True)
    store, tokens = model.contexts(ends=True), (0, 2, 1, 1)
    with torch.no_grad():
        logits = model(torch.tensor([tokens]))[0]
    assert logits.shape == (5, 5)
    logits[:, 3] = -math.inf  # no class
    logp = logits.log_softmax(-1)
    expected = sum(float(logp[i, t]) for i, t in enumerate(tokens)) + float(logp[-1, 4])
    assert sentence_logp(store, tokens, True) == pytest.approx(expected, abs=1e-5)
    check_mass(store)
    # Without ends nothing is heard of them.
    plain, few = model.contexts(), logits[:, :3].log_softmax(-1)
    expected = sum(float(few[i, t]) for i, t in enumerate(tokens))
    assert sentence_logp(plain, tokens, False) == pytest.approx(expected, abs=1e-5)
    text = model.score_text(torch.tensor([tokens]))
    assert text.shape == (1, 4)
    with pytest.raises(ConfigError, match="trained with end: true"):
        neural(kind, False).contexts(ends=True)


def test_n_grams(tmp_path: Path) -> None:
    model = NGramModel.from_arpa(arpa(tmp_path), TOKENIZER)
    store, tokens = model.contexts(ends=True), (0, 2, 1, 1)
    state, expected = torch.tensor([model.start]), 0.0
    for word in (*tokens, 4):
        row = model.rows(state)[0]
        expected += float(row[word] - row[[0, 1, 2, 4]].logsumexp(0))
        state = model.advance(state, torch.tensor([word]))
    assert sentence_logp(store, tokens, True) == pytest.approx(expected, abs=1e-5)
    check_mass(store)
    assert model.contexts(ends=True) is store
    assert model.contexts() is not store
    assert float(model.contexts().score(torch.tensor(0))[:3].exp().sum()) == pytest.approx(1.0)
    lines = [line for line in (tmp_path / "m.arpa").read_text().splitlines() if "</s>" not in line]
    for n in (1, 2, 3):
        count = sum(len(line.split("\t")[1].split()) == n for line in lines if line.count("\t"))
        lines = [f"ngram {n}={count}" if line.startswith(f"ngram {n}=") else line for line in lines]
    (tmp_path / "endless.arpa").write_text("\n".join(lines) + "\n")
    endless = NGramModel.from_arpa(tmp_path / "endless.arpa", TOKENIZER)
    endless.contexts()
    with pytest.raises(ConfigError, match="n-gram model with </s>"):
        endless.contexts(ends=True)


@pytest.mark.skipif(importlib.util.find_spec("kenlm") is None, reason="the kenlm package is not installed")
def test_kenlm(tmp_path: Path) -> None:
    path = arpa(tmp_path)
    flat, ken = NGramModel.from_arpa(path, TOKENIZER), KenLM(path, TOKENIZER)
    one, other = flat.contexts(ends=True), ken.contexts(ends=True)
    for tokens in ((), (0,), (2, 1, 1), (1, 0, 2, 2)):
        found = sentence_logp(other, tokens, True)
        assert found == pytest.approx(sentence_logp(one, tokens, True), abs=1e-3)
    check_mass(other)
