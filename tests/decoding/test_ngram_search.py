"""N-gram models in the search: what it adds is what the ARPA file says, word by word."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import BigramLM, ToyEmitter
from trees import tree_of

from decoding.class_status import ClassGrammar
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.internal_lm import ContextScorer
from decoding.rescore import rescore_nbest
from decoding.trace import RawHypothesis
from lm.kneser_ney import train_arpa
from lm.ngram import NGramContexts, NGramModel

WORDS = ("a", "b", "c", "d", "<c0>", "<c1>")
TOKENIZER: Any = SimpleNamespace(
    pieces=WORDS[:4], classes=("c0", "c1"), vocab_size=4, num_classes=2, digest="x"
)
STARTS = torch.tensor([True, True, False, False])
LISTS = {0: [([0, 2], 1.0), ([0], 2.0), ([1, 3, 1], 1.0)], 1: [([1, 3], 1.0), ([0, 2], 0.5)]}
Table = dict[tuple[str, ...], tuple[float, float]]


def model_of(folder: Path, seed: int, order: int) -> tuple[NGramModel, Table]:
    """A model of random text, compiled, and its file in a dictionary (base 10)."""
    draw = random.Random(seed)
    train_arpa([draw.choices(WORDS, range(6, 0, -1), k=7) for _ in range(40)], order, folder / "m.arpa")
    rows = [line.split("\t") for line in (folder / "m.arpa").read_text().splitlines() if "\t" in line]
    table = {tuple(row[1].split()): (float(row[0]), float(row[2]) if len(row) > 2 else 0.0) for row in rows}
    return NGramModel.from_arpa(folder / "m.arpa", TOKENIZER), table


def log10(table: Table, history: tuple[str, ...], word: str) -> float:
    if (*history, word) in table:
        return table[*history, word][0]
    return table.get(history, (0.0, 0.0))[1] + log10(table, history[1:], word)


def brute_force(table: Table, tokens: tuple[int, ...], order: int) -> float:
    """Natural log probability of surface tokens, each normalised over the surface tokens, with no end."""
    said, total = ["<s>"], 0.0
    for token in tokens:
        history = tuple(said[1 - order :]) if order > 1 else ()
        row = [10 ** log10(table, history, word) for word in WORDS[:4]]
        total += math.log(row[token] / sum(row))
        said.append(WORDS[token])
    return total


def shown(found: list[list[RawHypothesis]]) -> list[list[tuple[object, ...]]]:
    return [[(h.tokens, [(s.node, s.start, s.end) for s in h.spans]) for h in one] for one in found]


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_search_adds_what_the_file_says(tmp_path: Path, seed: int, order: int) -> None:
    model, table = model_of(tmp_path, seed, order)
    emitter = ToyEmitter([7, 4, 9], BigramLM(4, 0, seed), seed, sharpness=2.0)
    scorer = ContextScorer(model.contexts(), "ngram", 0.6)
    found = BeamSearch(emitter, BeamConfig(beam=6), scorers=[scorer]).run()
    lengths = set[int]()
    for hypothesis in (h for one in found for h in one):
        lengths.add(len(hypothesis.tokens))
        expected = 0.6 * brute_force(table, hypothesis.tokens, order)
        assert hypothesis.parts["ngram"] == pytest.approx(expected, abs=1e-3)
    assert max(lengths) > 3
    again = rescore_nbest(found, [ContextScorer(NGramContexts(model), "again", 0.6)], factors={"ngram": 0.0})
    for one, other in zip(found, again, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-3)
    assert len(model.contexts()) <= len(model.backoff)


@pytest.mark.parametrize("seed", range(4))
def test_lists_and_compiled_steps(tmp_path: Path, seed: int) -> None:
    model, _ = model_of(tmp_path, seed, 3)

    def found(reference: bool) -> list[list[RawHypothesis]]:
        emitter = ToyEmitter([6, 9], BigramLM(4, 2, seed), seed, sharpness=3.0)
        emitter.contexts = NGramContexts(model)
        tree = tree_of(LISTS, 4, 2)
        grammar = ClassGrammar(emitter.contexts, STARTS, [tree, tree], 1.0)
        return BeamSearch(emitter, BeamConfig(beam=8, threshold=1000.0), grammar, reference=reference).run()

    fast, slow = found(False), found(True)
    assert shown(fast) == shown(slow)
    assert any(h.spans for one in fast for h in one)
    for one, other in zip(fast, slow, strict=True):
        assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-4)
