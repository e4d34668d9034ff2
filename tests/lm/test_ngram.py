"""N-gram models: Kneser-Ney, ARPA files and the flat tensors, each against a literal implementation."""

from __future__ import annotations

import gzip
import itertools
import math
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.arpa import read_arpa
from lm.errors import BundleError, DataError
from lm.kneser_ney import FALLBACK, train_arpa
from lm.ngram import NGramContexts, NGramModel

WORDS = ("a", "b", "c", "d", "<city>")
TOKENIZER: Any = SimpleNamespace(pieces=WORDS[:4], classes=("city",), vocab_size=4, num_classes=1, digest="x")
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=7), min_size=1, max_size=30).filter(any)


class Literal:
    """Modified Kneser-Ney as the paper's equations say, with dictionaries and recursion."""

    def __init__(self, text: list[list[str]], order: int) -> None:
        self.order = order
        raw: Any = [defaultdict(int) for _ in range(order + 1)]
        for sentence in text:
            whole = ["<s>", *sentence, "</s>"]
            for n in range(1, order + 1):
                for i in range(len(whole) - n + 1):
                    raw[n][tuple(whole[i : i + n])] += 1
        self.count: Any = [defaultdict(int) for _ in range(order + 1)]
        for n in range(1, order + 1):
            for gram, number in raw[n].items():
                if n == order or gram[0] == "<s>":
                    self.count[n][gram] = number
                else:
                    self.count[n][gram] = len({longer[0] for longer in raw[n + 1] if longer[1:] == gram})
        self.count[1].pop(("<s>",), None)
        self.size = len({w for s in text for w in s}) + 2  # </s> and <unk>
        self.discount = [self._discounts(n) for n in range(order + 1)]

    def _discounts(self, n: int) -> tuple[float, ...]:
        of = [sum(1 for c in self.count[n].values() if c == k) for k in range(5)]
        if all(of[1:4]):
            y = Fraction(of[1], of[1] + 2 * of[2])
            found = [k - (k + 1) * y * of[k + 1] / of[k] for k in (1, 2, 3)]
            mass: Any = defaultdict(float)
            for gram, c in self.count[n].items():
                mass[gram[:-1]] += found[min(c, 3) - 1]
            if all(0 <= d <= k for k, d in enumerate(found, 1)) and all(mass.values()):
                return (0.0, *map(float, found))
        return (0.0, *FALLBACK)

    def p(self, word: str, history: tuple[str, ...]) -> float:
        n = len(history) + 1
        below = self.p(word, history[1:]) if history else 1 / self.size
        followers = {g: c for g, c in self.count[n].items() if g[:-1] == history}
        total = sum(followers.values())
        if not total:
            return below
        count = followers.get((*history, word), 0)
        gamma = sum(self.discount[n][min(c, 3)] for c in followers.values()) / total
        return (count - self.discount[n][min(count, 3)]) / total + gamma * below


def train(text: list[list[str]], order: int, folder: Path, name: str = "m.arpa") -> Path:
    train_arpa(text, order, folder / name)
    return folder / name


@settings(max_examples=40, deadline=None)
@given(text=TEXTS, order=st.integers(1, 4), sentence=st.lists(st.sampled_from(WORDS), max_size=6))
def test_scores_are_those_of_the_equations(
    tmp_path_factory: pytest.TempPathFactory, text: list[list[str]], order: int, sentence: list[str]
) -> None:
    model = NGramModel.from_arpa(train(text, order, tmp_path_factory.mktemp("kn")), TOKENIZER)
    literal = Literal(text, order)
    known = {w for s in text for w in s}
    state, history = torch.tensor([model.start]), ("<s>",)
    for word in [*sentence, "</s>"]:
        context = history[max(0, len(history) - order + 1) :] if order > 1 else ()
        row = model.rows(state)[0].double().exp()
        for i, other in enumerate([*WORDS, "</s>"]):
            if other == "<city>" and other not in known:
                assert row[i] == 0, "a tag without unigram cannot follow"
            else:
                assert float(row[i]) == pytest.approx(literal.p(other, context), rel=2e-4)
        if word == "</s>" or (word == "<city>" and word not in known):
            break
        state = model.advance(state, torch.tensor([WORDS.index(word)]))
        history = (*history, word)


@settings(max_examples=20, deadline=None)
@given(text=TEXTS, order=st.integers(1, 4))
def test_probabilities_sum_to_one(
    tmp_path_factory: pytest.TempPathFactory, text: list[list[str]], order: int
) -> None:
    whole = [*text, list(WORDS)]  # every word has a unigram
    model = NGramModel.from_arpa(train(whole, order, tmp_path_factory.mktemp("kn")), TOKENIZER)
    states = torch.arange(len(model.backoff))
    unk = 1 - float(model.rows(torch.tensor([0])).exp().sum())
    assert 0 < unk < 0.5
    total = model.rows(states).double().exp().sum(-1)
    assert bool(((total <= 1.0001) & (total >= 1 - unk - 1e-4)).all())
    store = model.contexts()
    state = store.start(1)
    for word in (0, 4, 2, 2):
        assert float(store.score(state)[0, :4].exp().sum()) == pytest.approx(1.0, abs=1e-5)
        state = store.advance(state, torch.tensor([word]))


@pytest.mark.parametrize("ends", [False, True])
def test_compiled_loops_give_what_tensors_give(tmp_path: Path, ends: bool) -> None:
    random = np.random.default_rng(1)
    text = [[WORDS[i] for i in random.integers(0, 5, 8)] for _ in range(50)]
    model = NGramModel.from_arpa(train(text, 3, tmp_path), TOKENIZER)
    stores = [NGramContexts(model, ends, reference) for reference in (False, True)]
    assert stores[0]._tables is not None
    rows = [store.start(40) for store in stores]
    for _ in range(6):
        words = torch.from_numpy(random.integers(0, 5, 40))
        rows = [store.advance(row, words) for store, row in zip(stores, rows, strict=True)]
        one, other = (store.score(row) for store, row in zip(stores, rows, strict=True))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        if ends:
            one, other = (store.end_logp(row) for store, row in zip(stores, rows, strict=True))
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert len(stores[0]) == len(stores[1])


def test_contexts_share_states_and_agree_with_the_model(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    text = [[WORDS[i] for i in random.integers(0, 5, 8)] for _ in range(50)]
    model = NGramModel.from_arpa(train(text, 3, tmp_path), TOKENIZER)
    store = model.contexts()
    histories = list(itertools.product(range(5), repeat=4))
    rows = store.start(len(histories))
    states = torch.full((len(histories),), model.start)
    for place in range(4):
        word = torch.tensor([h[place] for h in histories])
        rows, states = store.advance(rows, word), model.advance(states, word)
        expected = model.rows(states)[:, :-1]
        expected = expected - expected[:, :4].logsumexp(-1, keepdim=True)
        torch.testing.assert_close(store.score(rows), expected, atol=1e-5, rtol=1e-5)
    assert len(store) <= len(model.backoff) < len(histories)
    assert store.knows_classes
    assert model.contexts() is store


def test_files(tmp_path: Path) -> None:
    path = train([["a", "b", "a", "c"], ["d", "a"], ["b", "b", "<city>"]], 3, tmp_path, "m.arpa.gz")
    with gzip.open(path, "rt") as file:
        assert file.readline() == "\\data\\\n"
    model = NGramModel.from_arpa(path, TOKENIZER)
    model.save(tmp_path / "m.safetensors", TOKENIZER)
    again = NGramModel.load(tmp_path / "m.safetensors", TOKENIZER)
    assert model.score_text([0, 1, 4]) == again.score_text([0, 1, 4])
    assert model.score_text([0, 1], end=False) > model.score_text([0, 1])
    other: Any = SimpleNamespace(vocab_size=5, num_classes=1)
    with pytest.raises(BundleError, match="4 tokens and 1 classes"):
        NGramModel.load(tmp_path / "m.safetensors", other)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:100])
    with pytest.raises(BundleError, match="compile it again"):
        NGramModel.load(tmp_path / "cut.safetensors", TOKENIZER)


def test_words_that_are_no_tokens(tmp_path: Path) -> None:
    path = train([["a", "b", "zebra"], ["c", "zebra", "d"]], 2, tmp_path)
    model = NGramModel.from_arpa(path, TOKENIZER)
    assert model.dropped == 5  # zebra itself, b zebra, zebra </s>, c zebra, zebra d
    path = train([["a", "b"]], 2, tmp_path)
    model = NGramModel.from_arpa(path, TOKENIZER)
    unigrams = model.rows(torch.tensor([0]))[0]
    assert unigrams[2] == unigrams[3] > -math.inf, "the probability of <unk>"
    path.write_text(path.read_text().replace("<unk>", "other"))
    with pytest.raises(DataError, match="no unigram for 2 of the 4 tokens"):
        NGramModel.from_arpa(path, TOKENIZER)
    path = train([["zebra", "lion"]], 2, tmp_path)
    with pytest.raises(DataError, match="no unigram for 4 of the 4 tokens"):
        NGramModel.from_arpa(path, TOKENIZER)


def test_ngrams_without_their_history_or_twice(tmp_path: Path) -> None:
    path = train([["a", "b", "a"], ["c"]], 3, tmp_path)
    whole = path.read_text()
    lost = "\n".join(line for line in whole.split("\n") if "\ta b\t" not in line)
    size = int(whole.split("ngram 2=")[1].split()[0])
    path.write_text(lost.replace(f"ngram 2={size}", f"ngram 2={size - 1}"))
    with pytest.raises(DataError, match="1 3-grams whose first 2 words are no 2-gram"):
        NGramModel.from_arpa(path, TOKENIZER)
    again = whole.replace("\tb a\t", "\ta b\t", 1)
    path.write_text(again)
    with pytest.raises(DataError, match="1 2-grams that stand there twice"):
        NGramModel.from_arpa(path, TOKENIZER)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("\\data\\", "data", "no .data"),
        ("ngram 2=", "ngram 3=", "ngram 2=COUNT"),
        ("ngram 1=", "ngram one=", "COUNT"),
        ("\\2-grams:", "\\3-grams:", "as many as announced"),
        ("\ta b", "\ta b c d e", "2 words"),
        ("\ta b", "\tb", "2 words"),
        ("\\end\\", "\\3-grams:", "another section"),
    ],
)
def test_broken_files(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = train([["a", "b"], ["c"]], 2, tmp_path)
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=says) as caught:
        read_arpa(path, {w: i for i, w in enumerate([*WORDS, "<s>", "</s>", "<unk>"])})
    assert "line" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    path = train([["a", "b"], ["c"]], 2, tmp_path)
    for cut in (10, 60, len(path.read_text()) - 6):
        (tmp_path / "cut.arpa").write_text(path.read_text()[:cut])
        with pytest.raises(DataError, match="line"):
            read_arpa(tmp_path / "cut.arpa", {})
    (tmp_path / "bad.arpa.gz").write_bytes(b"not gzip")
    for name in ("bad.arpa.gz", "missing.arpa"):
        with pytest.raises(DataError, match=name):
            read_arpa(tmp_path / name, {})
    with pytest.raises(DataError, match="without words"):
        train_arpa([[]], 2, tmp_path / "none.arpa")
    with pytest.raises(DataError, match="<s>"):
        train_arpa([["a", "<s>"]], 2, tmp_path / "none.arpa")
