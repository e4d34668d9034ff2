"""Rescoring of n-best lists and lattices against scoring every hypothesis on its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import (
    VOCAB,
    TableScorer,
    all_paths,
    hypothesis,
    path_score,
    path_tokens,
    random_lattice,
    score_alone,
)
from toys import BigramLM, ToyEmitter

from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.internal_lm import ContextScorer
from decoding.lattice import Lattice
from decoding.lattice_reading import lattice_of_nbest
from decoding.lattice_rescoring import rescore_lattices
from decoding.rescore import TextLM, rescore_nbest
from decoding.scorer import Scorer
from decoding.trace import RawHypothesis
from decoding.word_scorer import WordScorer
from lm.errors import ConfigError, DataError

SEEDS = st.integers(0, 100_000)
STARTS = torch.tensor([True, False, True, False])


def stack(seed: int) -> list[Scorer]:
    """A bigram with its own start for each utterance, and a subtracted model that remembers everything."""
    lm = ContextScorer(BigramLM(VOCAB, 0, seed).contexts(), "all", -0.3)
    return [TableScorer("table", 0.7, seed, per_utterance=True), lm]


def random_lists(seed: int) -> list[list[RawHypothesis]]:
    rng = np.random.default_rng(seed)
    return [
        sorted(
            (
                hypothesis(
                    rng.integers(VOCAB, size=rng.integers(6)).tolist(), s, model=0.75 * s, first=0.25 * s
                )
                for s in rng.normal(size=rng.integers(4))
            ),
            key=lambda h: -h.score,
        )
        for _ in range(3)
    ]


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, factor=st.floats(-2, 2))
def test_nbest_equals_scoring_one_by_one(seed: int, factor: float) -> None:
    lists, scorers = random_lists(seed), stack(seed)
    if not any(lists):
        factor = 1.0
    found = rescore_nbest(lists, scorers, factors={"first": factor} if any(lists) else None)
    for b, (before, after) in enumerate(zip(lists, found, strict=True)):
        assert sorted(h.tokens for h in after) == sorted(h.tokens for h in before)
        assert [h.score for h in after] == sorted((h.score for h in after), reverse=True)
        for h in after:
            new = {s.name: score_alone(s, h.tokens, b, 3) for s in scorers}
            assert {n: h.parts[n] for n in new} == pytest.approx(new, abs=1e-4)
            assert sum(h.parts.values()) == pytest.approx(h.score, abs=1e-4)
            old = [o for o in before if o.tokens == h.tokens]
            expected = [o.parts["model"] + factor * o.parts["first"] + sum(new.values()) for o in old]
            assert min(abs(h.score - e) for e in expected) < 1e-4


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_weight_zero_changes_nothing(seed: int) -> None:
    lists = random_lists(seed)
    forbidding = TableScorer("bars", 0.0, seed, forbid=0.9)
    text = TextLM("text", 0.0, lambda texts: [math.nan] * len(texts), str)
    for before, after in zip(lists, rescore_nbest(lists, [forbidding], [text]), strict=True):
        assert [(h.tokens, h.score) for h in before] == [(h.tokens, h.score) for h in after]
        for old, new in zip(before, after, strict=True):
            assert new.parts == old.parts | {"bars": 0.0, "text": 0.0}
    assert rescore_nbest(lists) == lists
    lattice = random_lattice(seed)
    [again] = rescore_lattices([lattice], [forbidding])
    assert [(h.tokens, h.score, h.frames) for h in again.nbest(99)] == [
        (h.tokens, h.score, h.frames) for h in lattice.nbest(99)
    ]
    assert again.best_path().parts["bars"] == 0.0
    assert again.num_nodes == lattice.num_nodes


@pytest.mark.parametrize("seed", range(5))
def test_rescoring_gives_the_scores_of_the_search(seed: int) -> None:
    """A wide first pass rescored is the search with the scorers in it, and so is that one rescored with its own."""
    scorers = [TableScorer("one", 0.6, seed), TableScorer("two", -0.3, seed + 50)]
    wide = BeamConfig(beam=600, threshold=1000.0, nbest=2000)

    def search(stack: Sequence[Scorer]) -> list[list[RawHypothesis]]:
        return BeamSearch(ToyEmitter([3, 2], BigramLM(VOCAB, 0, seed), seed), wide, scorers=stack).run()

    with_scorers, without = search(scorers), search([])
    own = rescore_nbest(with_scorers, scorers, factors={"one": 0.0, "two": 0.0})
    lattices = rescore_lattices([lattice_of_nbest(nbest) for nbest in without], scorers)
    for found in (rescore_nbest(without, scorers), own, [lattice.nbest(2000) for lattice in lattices]):
        for nbest, expected in zip(found, with_scorers, strict=True):
            want = {h.tokens: h for h in expected}
            assert {h.tokens for h in nbest} == set(want)
            for h in nbest:
                assert h.score == pytest.approx(want[h.tokens].score, abs=1e-3)
                assert h.parts == pytest.approx(want[h.tokens].parts, abs=1e-3)


def test_ties_keep_their_order_and_impossible_hypotheses_come_last() -> None:
    nbest = [hypothesis([t], -1.0, model=-1.0) for t in (3, 1, 2)]
    assert rescore_nbest([nbest]) == [nbest]
    scorer = TableScorer("bars", 1.0, 0)
    scorer.table.zero_()
    scorer.table[VOCAB, 3] = -math.inf
    [after] = rescore_nbest([nbest], [scorer])
    assert [h.tokens for h in after] == [(1,), (2,), (3,)]
    assert after[-1].score == -math.inf


def test_names_and_numbers_that_do_not_fit_are_refused() -> None:
    nbest = [hypothesis([1], -1.0, model=-1.0, lm=0.0)]
    lattice = lattice_of_nbest(nbest)
    for run in (
        lambda s, f: rescore_nbest([nbest], s, factors=f),
        lambda s, f: rescore_lattices([lattice], s, f),
    ):
        with pytest.raises(DataError, match="named 'lm'"):
            run([TableScorer("lm", 1.0, 0)], {})
        run([TableScorer("lm", 1.0, 0)], {"lm": 0.0, "classes": 2.0})
        with pytest.raises(DataError, match="part 'nolm'"):
            run([], {"nolm": 0.5})
        with pytest.raises(DataError, match="named 'x'"):
            run([TableScorer("x", 1.0, 0), TableScorer("x", 1.0, 1)], {})
        with pytest.raises(DataError, match="NaN or"):
            run([TableScorer("x", math.nan, 0)], {})
        with pytest.raises(DataError, match="forbids words"):
            run([TableScorer("x", -1.0, 0, forbid=2.0)], {})
    with pytest.raises(DataError, match="'t' returned NaN"):
        rescore_nbest([nbest], texts=[TextLM("t", 1.0, lambda texts: [math.nan], str)])
    with pytest.raises(ConfigError, match="keep 0"):
        rescore_lattices([lattice], [], keep=0)
    with pytest.raises(DataError, match="no path of lattice 0 is possible for x"):
        rescore_lattices([lattice], [TableScorer("x", 1.0, 0, forbid=2.0)])
    assert rescore_lattices([], []) == []
    assert rescore_nbest([[]], [TableScorer("x", 1.0, 0)], factors={"any": 0.0}) == [[]]


def test_text_model_is_asked_once_for_each_text() -> None:
    asked: list[list[str]] = []

    def logp(texts: Sequence[str]) -> list[float]:
        asked.append(list(texts))
        return [-float(len(t)) for t in texts]

    lists = [
        [hypothesis([0, 1], -1.0, model=-1.0), hypothesis([0], -1.5, model=-1.5)],
        [hypothesis([0], -9.0)],
    ]
    model = TextLM("text", 2.0, logp, lambda tokens: "".join("abcd"[t] for t in tokens))
    found = rescore_nbest(lists, texts=[model])
    assert asked == [["a", "ab"]]
    assert [[h.score for h in nbest] for nbest in found] == [[-3.5, -5.0], [-11.0]]
    assert found[0][0].parts == {"model": -1.5, "text": -2.0}


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, forbid=st.sampled_from([0.0, 0.15]), arcs=st.integers(4, 14))
def test_lattice_equals_every_path_on_its_own(seed: int, forbid: float, arcs: int) -> None:
    lattices = [random_lattice(seed + i, 5 - i, arcs) for i in range(3)]
    scorers = [*stack(seed), TableScorer("bars", 0.2, seed + 7, forbid)]
    expected = []
    for b, lattice in enumerate(lattices):
        scaled = lattice.scaled({"lm": 0.4})
        best: dict[tuple[int, ...], float] = {}
        for path, end in all_paths(scaled):
            tokens = path_tokens(scaled, path)
            score = path_score(scaled, path, end) + sum(score_alone(s, tokens, b, 3) for s in scorers)
            if score > -math.inf:
                best[tokens] = max(best.get(tokens, -math.inf), score)
        expected.append(best)
    if not all(expected):
        with pytest.raises(DataError, match="no path of lattice"):
            rescore_lattices(lattices, scorers, {"lm": 0.4})
        return
    exact = rescore_lattices(lattices, scorers, {"lm": 0.4})
    pruned = rescore_lattices(lattices, scorers[:2], {"lm": 0.4}, keep=1)
    unpruned = rescore_lattices(lattices, scorers[:2], {"lm": 0.4})
    for b, lattice in enumerate(exact):
        assert {h.tokens: pytest.approx(h.score, abs=1e-4) for h in lattice.nbest(10_000)} == expected[b]
        top = lattice.best_path()
        for s in scorers:
            assert top.parts[s.name] == pytest.approx(score_alone(s, top.tokens, b, 3), abs=1e-4)
        true = {h.tokens: h.score for h in unpruned[b].nbest(10_000)}
        few = pruned[b].nbest(10_000)
        assert pruned[b].num_nodes <= lattices[b].num_nodes
        assert all(h.score <= true[h.tokens] + 1e-4 for h in few)
        assert few


def test_paths_meet_again_where_the_states_are_equal() -> None:
    """Two tokens five times over: 2^5 paths, but only two states at each place."""
    rng = np.random.default_rng(1)
    arcs = [(i, i + 1, t) for i in range(5) for t in (0, 1)]
    ones = np.zeros(10, dtype=np.int64)
    lattice = Lattice(
        parts=("model",),
        source=np.array([a[0] for a in arcs]),
        target=np.array([a[1] for a in arcs]),
        token=np.array([a[2] for a in arcs]),
        frame=ones,
        logp=ones.astype(float),
        entered=ones.astype(bool),
        node=ones - 1,
        scores=rng.normal(size=(10, 1)),
        final=np.array([5]),
        final_scores=np.zeros((1, 1)),
    )
    [found] = rescore_lattices([lattice], [TableScorer("table", 1.0, 0)])
    assert found.num_nodes == 11
    assert len(found.nbest(99)) == 32
    [tree] = rescore_lattices([lattice], [stack(0)[1]])
    assert tree.num_nodes == 63
    best: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for place in range(5):
        each = lattice.scores[2 * place : 2 * place + 2, 0]
        grown = [((*tokens, t), total + each[t]) for tokens, total in best for t in (0, 1)]
        best = sorted(grown, key=lambda g: -g[1] - score_alone(stack(0)[1], g[0]))[:2]
    [two] = rescore_lattices([lattice], [stack(0)[1]], keep=2)
    true = {h.tokens: pytest.approx(h.score) for h in tree.nbest(99)}
    assert [h.tokens for h in two.nbest(99)] == [tokens for tokens, _ in best]
    assert all(h.score == true[h.tokens] for h in two.nbest(99))


def word_logp(pairs: Sequence[tuple[tuple[str, ...], str]]) -> list[float]:
    """A trigram of words by hashing."""
    return [-((sum(map(ord, "|".join((*h[-2:], w)))) * 37) % 101) / 50 for h, w in pairs]


def spell(tokens: Sequence[int]) -> list[str]:
    return ["".join("abcd"[t] for t in tokens)]


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, order=st.sampled_from([None, 3, 4]))
def test_word_model_scores_whole_words(seed: int, order: int | None) -> None:
    lists = random_lists(seed)
    scorer = WordScorer(word_logp, spell, STARTS, order, end="</s>", weight=0.5)
    lattices = [lattice_of_nbest(nbest) for nbest in lists if nbest]
    rescored = rescore_lattices(lattices, [scorer])
    for nbest, lattice in zip([x for x in rescore_nbest(lists, [scorer]) if x], rescored, strict=True):
        for h in nbest:
            cuts = [i for i, t in enumerate(h.tokens) if STARTS[t] or i == 0] + [len(h.tokens)]
            words = [spell(h.tokens[i:j])[0] for i, j in itertools.pairwise(cuts)] + ["</s>"]
            expected = sum(word_logp([(tuple(words[:i]), w)])[0] for i, w in enumerate(words))
            assert h.parts["words"] == pytest.approx(0.5 * expected, abs=1e-9)
        tops = {h.tokens: h.score for h in reversed(nbest)}
        assert {h.tokens: pytest.approx(h.score, abs=1e-9) for h in lattice.nbest(99)} == tops


def test_word_histories_are_cut_to_the_order() -> None:
    seen: set[tuple[str, ...]] = set()

    def logp(pairs: Sequence[tuple[tuple[str, ...], str]]) -> list[float]:
        seen.update(history for history, _ in pairs)
        return [0.0] * len(pairs)

    nbest = [[hypothesis([0, 2, 0, 2], 0.0)]]
    rescore_nbest(nbest, [WordScorer(logp, spell, STARTS, order=1)])
    assert seen == {()}
    rescore_nbest(nbest, [WordScorer(logp, spell, STARTS, order=2)])
    assert seen == {(), ("a",), ("c",)}
    with pytest.raises(ConfigError, match="order 0"):
        WordScorer(logp, spell, STARTS, order=0)
