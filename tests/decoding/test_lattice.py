"""Lattices against the enumeration of their paths, and against the searches they are read from."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import (
    VOCAB,
    TableScorer,
    all_paths,
    distance,
    hypothesis,
    path_score,
    path_tokens,
    random_lattice,
    score_alone,
)
from toys import BigramLM, ToyEmitter, alignment_sums
from trees import tree_of

from asr.families.ctc.emitter import CTCEmitter
from decoding.class_status import ClassGrammar
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.lattice import Lattice
from decoding.lattice_reading import lattice_of_nbest, read_lattices
from decoding.oracle import edit_distance, error_rate, lattice_oracle, lattice_word_oracle, nbest_oracle
from decoding.trace import RawHypothesis, Step, TokenSpan, Trace
from lm.errors import DataError

SEEDS = st.integers(0, 100_000)
STARTS = [True, False, True, False]


def spell(tokens: tuple[int, ...]) -> list[str]:
    """Words of a toy tokenizer: tokens 0 and 2 start a word; 2 alone is a mark that spells nothing."""
    text = "".join(" a" if t == 0 else "" if t == 2 else "bd"[t // 2] for t in tokens)
    return text.split()


def spell_all(tokens: tuple[int, ...]) -> list[str]:
    """The words of a whole sequence, word by word."""
    words: list[str] = []
    cuts = [i for i, t in enumerate(tokens) if STARTS[t] or i == 0] + [len(tokens)]
    for first, last in itertools.pairwise(cuts):
        words += spell(tokens[first:last])
    return words


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, nodes=st.integers(1, 6), arcs=st.integers(4, 18))
def test_nbest_is_what_enumeration_finds(seed: int, nodes: int, arcs: int) -> None:
    lattice = random_lattice(seed, nodes, arcs)
    best: dict[tuple[int, ...], float] = {}
    for path, end in all_paths(lattice):
        tokens = path_tokens(lattice, path)
        best[tokens] = max(best.get(tokens, -np.inf), path_score(lattice, path, end))
    found = lattice.nbest(len(best) + 5)
    assert {h.tokens: pytest.approx(h.score, abs=1e-9) for h in found} == best
    scores = [h.score for h in found]
    assert scores == sorted(scores, reverse=True)
    assert lattice.best_path() == found[0]
    assert lattice.nbest(2) == found[:2]
    for h in found:
        assert len(h.frames) == len(h.token_logp) == len(h.tokens)
        assert set(h.parts) == {"model", "lm"}


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, reference=st.lists(st.integers(0, VOCAB), max_size=6))
def test_token_oracle_is_the_nearest_path(seed: int, reference: list[int]) -> None:
    lattice = random_lattice(seed, nodes=5, arcs=12)
    least = min(distance(reference, path_tokens(lattice, path)) for path, _ in all_paths(lattice))
    oracle = lattice_oracle(lattice, reference)
    assert oracle.errors == least == distance(reference, oracle.hypothesis.tokens)
    everything = lattice.nbest(10_000)
    assert nbest_oracle(everything, reference).errors == least


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, reference=st.lists(st.sampled_from(["a", "ab", "ad", "abd", "b", "x"]), max_size=4))
def test_word_oracle_is_the_nearest_path(seed: int, reference: list[str]) -> None:
    lattice = random_lattice(seed, nodes=5, arcs=12)
    spelled = [spell_all(path_tokens(lattice, path)) for path, _ in all_paths(lattice)]
    oracle = lattice_word_oracle(lattice, reference, spell, STARTS)
    assert oracle.errors == min(distance(reference, words) for words in spelled)
    assert oracle.errors == distance(reference, spell_all(oracle.hypothesis.tokens))


def test_word_oracle_counts_every_word_of_a_token() -> None:
    lattice = lattice_of_nbest([hypothesis([0, 1], 0.0)])
    oracle = lattice_word_oracle(lattice, ["new"], lambda tokens: ["new", "york", "city"], [True, False])
    assert oracle.errors == 2
    assert oracle.hypothesis.tokens == (0, 1)


@given(one=st.lists(st.integers(0, 3), max_size=7), other=st.lists(st.integers(0, 3), max_size=7))
def test_edit_distance(one: list[int], other: list[int]) -> None:
    assert edit_distance(one, other) == distance(one, other)


def test_error_rate_of_a_corpus() -> None:
    lists = [[hypothesis([0, 1], -1.0), hypothesis([0, 3], -2.0)], [hypothesis([], 0.0)]]
    references = [["ad"], ["a", "b"]]
    found = [nbest_oracle(nbest, ref, spell_all) for nbest, ref in zip(lists, references, strict=True)]
    assert found[0].hypothesis.tokens == (0, 3)
    assert error_rate(found, references) == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="2 oracles for 1 references"):
        error_rate(found, references[:1])
    with pytest.raises(DataError, match="empty n-best"):
        nbest_oracle([], ["a"])


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_json_and_back(seed: int) -> None:
    lattice = random_lattice(seed)
    again = Lattice.from_dict(json.loads(json.dumps(lattice.to_dict())))
    assert again.nbest(99) == lattice.nbest(99)
    alone = lattice_of_nbest([hypothesis([], -1.5)])
    assert Lattice.from_dict(json.loads(json.dumps(alone.to_dict()))).best_path().score == -1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token": [0]}, "token of shape"),
        ({"source": [0, 0, 2], "target": [1, 2, 1]}, "arcs out of order"),
        ({"final": [2, 2]}, "final nodes"),
        ({"final": []}, "final nodes|cannot be read"),
        ({"logp": ["x", 0, 0]}, "cannot be read"),
        ({"scores": [[0.0], [float("inf")], [0.0]]}, "not finite"),
        ({"parts": ["model", "model"]}, "parts model, model|cannot be read"),
        ({"source": [-1, 0, 1]}, "negative node"),
        ({"extra": 1}, "keys"),
    ],
)
def test_what_is_no_lattice_is_refused(change: dict[str, object], message: str) -> None:
    good = {
        "parts": ["model"],
        "source": [0, 0, 1],
        "target": [1, 2, 2],
        "token": [0, 1, 2],
        "frame": [0, 0, 1],
        "logp": [0.0, 0.0, 0.0],
        "entered": [False] * 3,
        "node": [-1] * 3,
        "scores": [[-1.0], [-2.0], [-0.5]],
        "final": [2],
        "final_scores": [[0.0]],
    }
    assert Lattice.from_dict(good).best_path().tokens == (0, 2)
    if "final" in change:
        change = change | {"final_scores": [[0.0]] * len(change["final"])}
    with pytest.raises(DataError, match=message):
        Lattice.from_dict(good | change)


def test_trimming_and_scaling() -> None:
    lattice = random_lattice(3, nodes=6, arcs=18)
    last = lattice.num_nodes
    dead = {"source": 0, "target": last, "token": 1, "frame": 0, "logp": 0.0, "entered": False, "node": -1}
    longer = {k: np.insert(getattr(lattice, k), 0, v) for k, v in dead.items()}
    longer["scores"] = np.insert(lattice.scores, 0, 9.0, axis=0)
    trimmed = replace(lattice, **longer).trimmed()
    assert trimmed.num_nodes == lattice.num_nodes
    assert len(trimmed.source) == len(lattice.source)
    assert trimmed.nbest(99) == lattice.nbest(99)
    with pytest.raises(DataError, match="without a path"):
        replace(lattice, final=lattice.final + last, final_scores=lattice.final_scores).trimmed()
    for before, after in zip(
        sorted(lattice.nbest(999), key=lambda h: h.tokens),
        sorted(lattice.scaled({"model": 1.0}).nbest(999), key=lambda h: h.tokens),
        strict=True,
    ):
        assert before == after
    assert all(h.parts["lm"] == 0 for h in lattice.scaled({"lm": 0.0}).nbest(99))
    with pytest.raises(DataError, match="factor for part 'lmm'"):
        lattice.scaled({"lmm": 2.0})


class Spy:
    """What a search hands to ``Trace.read``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[tuple[list[Step], torch.Tensor, torch.Tensor, list[str]]] = []
        read = Trace.read

        def note(trace: Trace, score: torch.Tensor, finish: torch.Tensor, names: list[str], *rest):
            self.found.append((trace.steps, score, finish, names))
            return read(trace, score, finish, names, *rest)

        monkeypatch.setattr(Trace, "read", note)


def same(found: list[RawHypothesis], expected: list[RawHypothesis]) -> None:
    assert [h.tokens for h in found] == [h.tokens for h in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.frames == other.frames
        assert one.token_logp == pytest.approx(other.token_logp, abs=1e-5)
        assert one.spans == other.spans
        for name in one.parts | other.parts:
            assert one.parts.get(name, 0.0) == pytest.approx(other.parts.get(name, 0.0), abs=1e-4)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("symbols", [1, 2])
def test_lattice_of_a_search_holds_its_nbest_list(
    seed: int, symbols: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    emitter = ToyEmitter([6, 1, 4], BigramLM(VOCAB, 0, seed), seed, sharpness=2.0)
    scorers = [TableScorer("one", 0.5, seed), TableScorer("two", -0.2, seed + 1)]
    config = BeamConfig(beam=4, max_symbols_per_frame=symbols)
    lists = BeamSearch(emitter, config, scorers=scorers).run()
    steps, score, finish, names = spy.found[0]
    for lattice, expected in zip(read_lattices(steps, score, finish, names), lists, strict=True):
        same(lattice.nbest(99), expected)
    for expected in lists:
        same(lattice_of_nbest(expected).nbest(99), expected)


@pytest.mark.parametrize("seed", range(4))
def test_lattice_of_a_class_search_adds_up_the_readings_of_equal_words(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    emitter = ToyEmitter([5, 3], BigramLM(VOCAB, 1, seed), seed)
    entries = {0: [([0, 1], 1.0), ([2], 2.0)]}
    grammar = ClassGrammar(emitter.contexts, torch.tensor(STARTS), [tree_of(entries, VOCAB, 1)] * 2, 2.0)
    config = BeamConfig(beam=12, threshold=100.0, nbest=99)
    lists = BeamSearch(emitter, config, grammar).run()
    steps, score, finish, names = spy.found[0]
    several = 0
    for lattice, expected in zip(read_lattices(steps, score, finish, names), lists, strict=True):
        found = lattice.nbest(99)
        assert [h.tokens for h in found] == [h.tokens for h in expected]
        assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-4)
        for h in found:
            assert (h.parts["classes"] != 0) == bool(h.spans)
            for span in h.spans:
                assert h.tokens[span.start : span.end] in {(0, 1), (2,)}
        several += len(lattice.final) - len(found)
    assert several > 0


def test_entities_and_unknown_times_survive() -> None:
    spans = (TokenSpan(7, 1, 3),)
    one = replace(hypothesis([3, 0, 1, 2], -1.0, model=-1.0), spans=spans)
    two = hypothesis([3, 0, 1, 2, 2], -1.2, model=-1.4, lm=0.1)
    found = lattice_of_nbest([two, one]).nbest(5)
    same(found, [one, two])
    blind = lattice_of_nbest([replace(one, frames=())]).best_path()
    assert blind.frames == ()
    assert blind.spans == spans
    with pytest.raises(DataError, match="empty n-best list"):
        lattice_of_nbest([])


class ShortMemory(ToyEmitter):
    """A random transducer that remembers its last token only, as a stateless predictor does."""

    contexts = None

    def __init__(self, lengths: list[int], seed: int) -> None:
        super().__init__(lengths, BigramLM(VOCAB, 0, seed), seed, with_lm=False, sharpness=2.0)
        self.contexts = None

    def start(self) -> torch.Tensor:
        return torch.full((len(self.lengths),), self.num_tokens)

    def advance(self, state: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.clone()


def searched(
    emitter: ToyEmitter,
    scorers: list[TableScorer],
    beam: int,
    recombine: str = "max",
    reference: bool = False,
) -> tuple[list[list[RawHypothesis]], list[Lattice]]:
    config = BeamConfig(beam=beam, threshold=50.0, recombine=recombine, nbest=beam)
    search = BeamSearch(emitter, config, scorers=scorers, reference=reference, lattices=True)
    return search.run(), search.lattices()


@pytest.mark.parametrize("reference", [False, True])
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, beam=st.integers(1, 6))
def test_paths_of_a_lattice_have_the_scores_of_their_alignments(
    reference: bool, seed: int, beam: int
) -> None:
    emitter = ShortMemory([5, 3], seed)
    scorers = [TableScorer("one", 0.5, seed), TableScorer("two", -0.2, seed + 1)]
    lists, lattices = searched(emitter, scorers, beam, reference=reference)
    for b, (nbest, lattice) in enumerate(zip(lists, lattices, strict=True)):
        viterbi = alignment_sums(emitter, b, 1, max)
        found = {h.tokens: h for h in lattice.nbest(10_000)}
        assert lattice.best_path().tokens == nbest[0].tokens
        assert lattice.best_path().score == pytest.approx(nbest[0].score, abs=1e-4)
        for tokens, h in found.items():
            apart = {s.name: score_alone(s, tokens) for s in scorers}
            assert {n: h.parts[n] for n in apart} == pytest.approx(apart, abs=1e-4)
            # Some alignment of these tokens: at best the best of all.
            assert h.score <= viterbi[tokens] + sum(apart.values()) + 1e-4
            assert sum(h.parts.values()) == pytest.approx(h.score, abs=1e-4)
        for h in nbest:
            assert found[h.tokens].score >= h.score - 1e-4


@pytest.mark.parametrize("recombine", ["sum", "max"])
def test_a_lattice_holds_more_than_the_beam_and_the_truth_more_often(recombine: str) -> None:
    sizes, near, nearest = [], 0, 0
    for seed in range(20):
        emitter = ShortMemory([8], seed)
        [nbest], [lattice] = searched(emitter, [TableScorer("one", 0.5, seed)], 4, recombine)
        sizes.append(len(lattice.nbest(10_000)) / len(nbest))
        assert lattice.best_path().tokens == nbest[0].tokens
        assert lattice.best_path().score == pytest.approx(nbest[0].score, abs=1e-4)
        truth = np.random.default_rng(seed).integers(0, VOCAB, 5).tolist()
        near += nbest_oracle(nbest, truth).errors
        nearest += lattice_oracle(lattice, truth).errors
    assert np.mean(sizes) > 5
    assert nearest < near


def test_where_everything_is_remembered_the_lattice_is_the_nbest_list() -> None:
    emitter = ToyEmitter([6, 4], BigramLM(VOCAB, 0, 1), 1, sharpness=2.0)
    lists, lattices = searched(emitter, [TableScorer("one", 0.5, 1)], 4, "sum")
    for nbest, lattice in zip(lists, lattices, strict=True):
        same(lattice.nbest(99), nbest)


@pytest.mark.parametrize("seed", range(6))
def test_lattice_of_a_ctc_search(seed: int) -> None:
    """Two ways to wait behind a label, and merging across all that came before it."""
    logp = (2 * torch.randn(2, 9, VOCAB + 1, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)
    model: Any = SimpleNamespace(num_tokens=VOCAB, logp=lambda encoded: encoded)
    emitter: Any = CTCEmitter(model, logp, torch.tensor([9, 6]), VOCAB)
    lists, lattices = searched(emitter, [], 4, "max")
    more = 0
    for nbest, lattice in zip(lists, lattices, strict=True):
        assert lattice.best_path().tokens == nbest[0].tokens
        assert lattice.best_path().score == pytest.approx(nbest[0].score, abs=1e-4)
        more += len(lattice.nbest(200)) - len(nbest)
    assert more > 5


def test_lattices_must_be_asked_for() -> None:
    search = BeamSearch(ShortMemory([3], 0), BeamConfig())
    search.run()
    with pytest.raises(RuntimeError, match="lattices=True"):
        search.lattices()


def test_utterance_without_a_hypothesis_has_no_lattice() -> None:
    score = torch.full((1, 1), -torch.inf)
    assert read_lattices([], score, torch.zeros(1, 1, 0), []) == [None]
