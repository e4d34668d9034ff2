"""The boosting automaton against a reference that knows only strings."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding import phrase_boost
from decoding.phrase_boost import MAX_INHERITED, BoostGraph, PhraseBoost
from decoding.scorer import Scorer
from lm.errors import EntityListError

Phrases = list[tuple[list[int], float]]
LETTERS = 26


def spell(word: str) -> list[int]:
    return [ord(letter) - ord("A") for letter in word]


def graph_of(*words: str, bonus: float = 1.0) -> BoostGraph:
    return BoostGraph.build([(spell(word), bonus) for word in words], LETTERS)


def running_totals(boost: PhraseBoost, ids: Sequence[int]) -> list[float]:
    """Total after each token, then after the end."""
    state, total, totals = boost.start(1), 0.0, []
    for token in ids:
        total += float(boost.score(state, torch.tensor([[token]]))[0, 0])
        totals.append(total)
        state = boost.advance(state, torch.tensor([token]))
    return [*totals, total + float(boost.finish(state)[0])]


def reference_totals(phrases: Phrases, ids: Sequence[int]) -> list[float]:
    """The same, from the definition: occurrences so far, plus the promise of the longest match under way."""
    bonus: dict[tuple[int, ...], float] = {}
    for phrase, value in phrases:
        bonus[tuple(phrase)] = max(value, bonus.get(tuple(phrase), value))
    completed, totals = 0.0, []
    for end in range(1, len(ids) + 1):
        said = tuple(ids[:end])
        completed += sum(value * len(p) for p, value in bonus.items() if said[-len(p) :] == p)
        totals.append(completed + promise(bonus, said))
    return [*totals, completed]


def promise(bonus: dict[tuple[int, ...], float], said: tuple[int, ...]) -> float:
    for begin in range(len(said)):
        match = said[begin:]
        through = [value for p, value in bonus.items() if p[: len(match)] == match]
        if through:
            matched = max((len(p) for p in bonus if match[: len(p)] == p), default=0)
            return max(through) * (len(match) - matched)
    return 0.0


phrase_lists = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=5), st.sampled_from([0.5, 1.0, 2.0, 5.0, -1.0])
    ),
    max_size=8,
)
strings = st.lists(st.integers(0, 3), max_size=14)


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("HERSHE", 7),
        ("HERSHELL", 12),
        ("SHELF", 5),
        ("HI", 0),
        ("THE", 2),
        ("SHELL", 10),
        ("HERX", 2),
        ("HIS", 3),
    ],
)
def test_published_scores_of_the_classic_example(said: str, score: float) -> None:
    boost = PhraseBoost([graph_of("HE", "SHE", "SHELL", "HIS", "THIS")], 1.0)
    assert isinstance(boost, Scorer)
    assert running_totals(boost, spell(said))[-1] == score


def test_an_end_state_does_not_carry_its_phrase_twice() -> None:
    boost = PhraseBoost([graph_of("HE", "SHE", "SHELL", "HIS", "THIS")], 1.0)
    assert running_totals(boost, spell("SHELL")) == [1, 2, 5, 6, 10, 10]


@pytest.mark.parametrize("reverse", [False, True])
def test_shared_prefix_with_other_bonus_leaks_nothing(reverse: bool) -> None:
    phrases = [(spell("ABC"), 1.0), (spell("AX"), 5.0)]
    boost = PhraseBoost([BoostGraph.build(phrases[::-1] if reverse else phrases, LETTERS)], 1.0)
    assert running_totals(boost, spell("ABQ")) == [5, 2, 0, 0]
    assert running_totals(boost, spell("ABC"))[-1] == 3
    assert running_totals(boost, spell("AX"))[-1] == 10


@pytest.mark.parametrize("inherited", [0, 1, MAX_INHERITED])
@settings(max_examples=150, deadline=None)
@given(phrases=phrase_lists, ids=strings)
def test_totals_equal_the_definition(inherited: int, phrases: Phrases, ids: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phrase_boost, "MAX_INHERITED", inherited)
        boost = PhraseBoost([BoostGraph.build(phrases, 4)], 1.0)
    assert running_totals(boost, ids) == pytest.approx(reference_totals(phrases, ids), abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(phrases=phrase_lists, seed=st.integers(0, 1000))
def test_order_and_duplicates_do_not_matter(phrases: Phrases, seed: int) -> None:
    shuffled = phrases + [(ids, bonus - 1.0) for ids, bonus in phrases]
    random.Random(seed).shuffle(shuffled)
    one, other = BoostGraph.build(phrases, 4), BoostGraph.build(shuffled, 4)
    for field in ("keys", "targets", "root", "hub", "phi", "output"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field


@settings(max_examples=50, deadline=None)
@given(lists=st.lists(phrase_lists, min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_batch_of_graphs_equals_single_graphs(lists: list[Phrases], seed: int) -> None:
    graphs = [BoostGraph.build(phrases, 4) for phrases in lists]
    graphs.append(graphs[0])
    said = torch.randint(0, 4, (len(graphs), 8), generator=torch.Generator().manual_seed(seed))
    every = torch.arange(4).expand(len(graphs), 4)
    batch, singles = PhraseBoost(graphs, 1.0), [PhraseBoost([graph], 1.0) for graph in graphs]
    state, states = batch.start(len(graphs)), [boost.start(1) for boost in singles]
    for tokens in said.T:
        expected = torch.cat([boost.score(s, every[:1]) for boost, s in zip(singles, states, strict=True)])
        assert torch.equal(batch.score(state, every), expected)
        state = batch.advance(state, tokens)
        states = [b.advance(s, t[None]) for b, s, t in zip(singles, states, tokens, strict=True)]
        ends = torch.cat([boost.finish(s) for boost, s in zip(singles, states, strict=True)])
        assert torch.equal(batch.finish(state), ends)


def test_one_graph_serves_any_batch_and_is_stored_once() -> None:
    graph = graph_of("HE", "SHE")
    shared = PhraseBoost([graph], 1.0)
    assert shared.start(3).tolist() == [0, 0, 0]
    assert PhraseBoost([graph] * 5, 1.0).start(5).tolist() == [0] * 5
    assert shared.start(2).dtype == torch.int64


def test_no_phrases_score_exactly_zero() -> None:
    boost = PhraseBoost([BoostGraph.build([], 7)], 1.0)
    state = boost.start(4)
    tokens = torch.arange(7).expand(4, 7)
    assert torch.count_nonzero(boost.score(state, tokens)) == 0
    state = boost.advance(state, tokens[:, 3])
    assert torch.count_nonzero(boost.score(state, tokens)) == 0
    assert torch.count_nonzero(boost.finish(state)) == 0


def test_states_with_many_continuations_hop_and_still_match() -> None:
    heads = [([0] * depth + [token], 1.0) for depth in range(1, 4) for token in range(1, 100)]
    graph = BoostGraph.build(heads, 100)
    boost = PhraseBoost([graph], 1.0)
    assert graph.hops == 2
    assert (
        len(graph.keys) == len(graph.phi) - 1 - 1 + 1
    )  # every node but the root and its child, and the end mark
    assert running_totals(boost, [0, 0, 0, 0, 0, 42])[-1] == 2 + 3 + 4


def test_twenty_thousand_spelled_names_build_fast_and_small() -> None:
    rng = random.Random(1)
    names = [([rng.randrange(LETTERS) for _ in range(rng.randint(4, 12))], 1.0) for _ in range(20000)]
    began = time.process_time()
    graph = BoostGraph.build(names, LETTERS)
    assert time.process_time() - began < 5.0
    assert len(graph.keys) <= len(graph.phi) * LETTERS
    assert graph.hops == 0
    boost = PhraseBoost([graph], 1.0)
    said = [token for ids, _ in names[:3] for token in ids]
    assert running_totals(boost, said) == pytest.approx(reference_totals(names, said))


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        ([([1], 1.0), ([], 1.0)], "phrase 1 has no tokens"),
        ([([1, 9], 1.0)], "token 9"),
        ([([-1], 1.0)], "token -1"),
        ([([1], float("nan"))], "bonus nan"),
    ],
)
def test_wrong_phrases_are_named(phrases: Phrases, message: str) -> None:
    with pytest.raises(EntityListError, match=message):
        BoostGraph.build(phrases, 9)


def test_wrong_batches_are_named() -> None:
    graphs = [graph_of("HE"), graph_of("SHE")]
    with pytest.raises(EntityListError, match="2 boost graphs for 3 utterances"):
        PhraseBoost(graphs, 1.0).start(3)
    with pytest.raises(EntityListError, match=r"over \[9, 26\] tokens"):
        PhraseBoost([*graphs, BoostGraph.build([], 9)], 1.0)
    with pytest.raises(EntityListError, match="no boost graph"):
        PhraseBoost([], 1.0)


@settings(max_examples=60, deadline=None)
@given(
    lists=st.lists(
        st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=8), min_size=1, max_size=3
    ),
    spoken=st.lists(st.integers(0, 3), max_size=12),
)
def test_compiled_steps_are_steps_in_tensors(lists: list[list[list[int]]], spoken: list[int]) -> None:
    graphs = [BoostGraph.build([(phrase, 1.0 + len(phrase)) for phrase in phrases], 4) for phrases in lists]
    fast, slow = (PhraseBoost(graphs, 1.0, reference=reference) for reference in (False, True))
    state = fast.start(len(graphs))
    every = torch.arange(4).expand(len(graphs), -1)
    for token in spoken:
        assert torch.equal(fast.score(state, every), slow.score(state, every))
        tokens = torch.full((len(graphs),), token)
        after = fast.advance(state, tokens)
        assert torch.equal(after, slow.advance(state, tokens))
        state = after


@given(
    st.lists(st.lists(st.integers(0, 39), min_size=4, max_size=4), min_size=2, max_size=2), st.integers(1, 40)
)
@settings(max_examples=30, deadline=None)
def test_a_beam_asks_at_once_what_its_hypotheses_ask_alone(spoken: list[list[int]], count: int) -> None:
    # States with few arcs and many, below hubs with more arcs than are inherited; few tokens asked for and all.
    pairs = [BoostGraph.build([((i, j), 1.0 + j) for i in range(2) for j in range(40)], 40)]
    pairs.append(
        BoostGraph.build([((5, 1, j), 1.0) for j in range(40)] + [((1, j), 2.0) for j in range(40)], 40)
    )
    fast, slow = (PhraseBoost(pairs, 1.0, reference=reference) for reference in (False, True))
    assert fast._hops > 0
    states = [fast.start(2)]
    for tokens in torch.tensor(spoken).T:
        states.append(fast.advance(states[-1], tokens))
    states.append(fast.advance(fast.advance(fast.start(2), torch.tensor([1, 5])), torch.tensor([1, 1])))
    beams = torch.stack([*states, states[0]], dim=1)
    asked = torch.stack([torch.arange(40).roll(place)[:count] for place in spoken[0][:2]])
    found = fast.score_beams(beams, asked)
    assert torch.equal(found, slow.score_beams(beams, asked))
    assert all(torch.equal(found[:, k], fast.score(beams[:, k], asked)) for k in range(beams.shape[1]))
