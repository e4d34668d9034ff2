"""Lattices against the enumeration of their paths, and against the searches they are read from."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import VOCAB, TableScorer, all_paths, distance, hypothesis, path_score, path_tokens, random_lattice
from toys import BigramLM, ToyEmitter
from trees import tree_of

from decoding.class_status import ClassGrammar
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.lattice import Lattice
from decoding.lattice_reading import Merged, lattice_of_nbest, read_lattices
from decoding.oracle import edit_distance, error_rate, lattice_oracle, lattice_word_oracle, nbest_oracle
from decoding.trace import BLANK, RawHypothesis, Step, TokenSpan, Trace
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


def test_two_ways_of_waiting_are_added_up() -> None:
    """As in CTC, where a hypothesis waits by a blank or by its last label: two hypotheses of the same tokens."""
    entries = [[(0, 0, 1, -1.0)], [(0, 0, BLANK, -0.5), (1, 0, BLANK, -0.7)]]
    kept, _, score = tensors(entries, [[0], [0, 1]])
    [lattice] = read_lattices(kept, score, torch.zeros(*score.shape, 0), [])
    [found] = lattice.nbest(9)
    assert found.tokens == (1,)
    assert found.score == pytest.approx(float(np.logaddexp(-1.5, -1.7)))
    assert sum(found.parts.values()) == pytest.approx(-1.5)


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


Entry = tuple[int, int, int, float]
"""Slot, parent, token and gain of an extension."""


def random_merges(seed: int) -> list[list[Entry]]:
    rng = np.random.default_rng(seed)
    steps, before = [], 1
    for _ in range(int(rng.integers(1, 5))):
        slots = int(rng.integers(1, 4))
        count = slots + int(rng.integers(4))
        step = [
            (
                place if place < slots else int(rng.integers(-1, slots)),
                int(rng.integers(before)),
                int(rng.integers(BLANK, VOCAB)),
                float(rng.normal()),
            )
            for place in range(count)
        ]
        steps.append(step)
        before = slots
    return steps


def tensors(
    steps: list[list[Entry]], surfaces: list[list[int]]
) -> tuple[list[Step], list[Merged], torch.Tensor]:
    """The steps with their merged extensions, and the final scores; the tokens of a surface are added up."""
    alpha = torch.zeros(1, dtype=torch.float64)
    kept, merged = [], []
    for frame, (entries, surface) in enumerate(zip(steps, surfaces, strict=True)):
        slot, parent, token = (torch.tensor([[e[i] for e in entries]]) for i in range(3))
        gain = torch.tensor([[e[3] for e in entries]], dtype=torch.float64)
        no, zero = torch.zeros_like(slot, dtype=torch.bool), torch.zeros_like(gain)
        extra = torch.zeros(*gain.shape, 0, dtype=torch.float64)
        node = torch.full_like(slot, -1)
        step = Step(
            torch.tensor([frame]), parent, token, node, no, no, gain * 0.25, gain * 0.1, extra, gain * 0.75
        )
        score = alpha[parent] + gain
        merged.append(Merged(step, slot, score, torch.tensor([surface])))
        live = int(slot.max()) + 1
        kept.append(step)
        alpha = torch.stack(
            [
                max(
                    score[(slot == k) & (torch.tensor([surface]) == s)].logsumexp(0)
                    for s in {s for e, s in zip(entries, surface, strict=True) if e[0] == k}
                )
                for k in range(live)
            ]
        )
        assert zero.shape == score.shape
    return kept, merged, alpha[None]


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_merged_extensions_of_other_tokens_stand_beside_each_other(seed: int) -> None:
    steps = random_merges(seed)
    kept, merged, score = tensors(steps, [list(range(len(step))) for step in steps])
    paths: dict[int, list[tuple[tuple[int, ...], float]]] = {0: [((), 0.0)]}
    for step in steps:
        after: dict[int, list[tuple[tuple[int, ...], float]]] = {}
        for slot, parent, token, gain in step:
            if slot >= 0:
                grown = [(t + (token,) * (token != BLANK), s + gain) for t, s in paths[parent]]
                after.setdefault(slot, []).extend(grown)
        paths = after
    best: dict[tuple[int, ...], float] = {}
    for tokens, total in [p for ways in paths.values() for p in ways]:
        best[tokens] = max(best.get(tokens, -np.inf), total)
    [lattice] = read_lattices(kept, score, torch.zeros(*score.shape, 0), [], merged)
    found = lattice.nbest(10_000)
    assert {h.tokens: pytest.approx(h.score, abs=1e-9) for h in found} == best
    assert all(sum(h.parts.values()) == pytest.approx(h.score, abs=1e-9) for h in found)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, data=st.data())
def test_merged_extensions_of_the_same_tokens_are_added_up(seed: int, data: st.DataObject) -> None:
    steps = random_merges(seed)
    surfaces = [[data.draw(st.integers(0, 1)) for _ in step] for step in steps]
    kept, merged, score = tensors(steps, surfaces)
    [lattice] = read_lattices(kept, score, torch.zeros(*score.shape, 0), [], merged)
    best = lattice.best_path()
    assert best.score == pytest.approx(float(score.max()), abs=1e-9)
    assert sum(best.parts.values()) <= best.score + 1e-9


def test_utterance_without_a_hypothesis_is_refused() -> None:
    kept, merged, score = tensors([[(0, 0, 1, -1.0)]], [[0]])
    with pytest.raises(DataError, match="utterance 0"):
        read_lattices(kept, score - torch.inf, torch.zeros(*score.shape, 0), [], merged)
