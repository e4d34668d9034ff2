"""Every stack of scorers in every search, against plain enumeration of all alignments and all class readings.

Nothing here prunes, so what a search finds must be all there is: each label sequence once, with the probability of
all its alignments and class readings (or of the best), plus what each scorer says of the tokens one by one.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import (
    KINDS,
    SCORERS,
    STACKS,
    WEIGHTS,
    WORDS,
    Kind,
    Stack,
    World,
    name_of,
    world,
)

from decoding.trace import RawHypothesis
from lm.kneser_ney import train_arpa
from lm.ngram import NGramModel


@pytest.fixture(scope="module")
def ngram(tmp_path_factory: pytest.TempPathFactory) -> NGramModel:
    import random

    draw, path = random.Random(1), tmp_path_factory.mktemp("ngram") / "m.arpa"
    train_arpa([draw.choices(WORDS, range(6, 1, -1), k=6) for _ in range(30)], 3, path)
    tokenizer: Any = SimpleNamespace(pieces=WORDS[:3], classes=("c0", "c1"), vocab_size=3, num_classes=2)
    return NGramModel.from_arpa(path, tokenizer)


def near(one: float, other: float) -> bool:
    """As near as single precision allows; ``pytest.approx`` takes its time."""
    return abs(one - other) < 2e-4


def check(here: World, stack: Stack, found: list[list[RawHypothesis]], maximum: bool) -> int:
    """Hold an n-best list against enumeration; how many hypotheses had entities."""
    assert len(found) == len(here.sizes)
    for utterance, nbest in enumerate(found):
        expected = here.expected(stack, utterance, maximum)
        assert len(nbest) == len(expected)
        assert {h.tokens for h in nbest} == set(expected)
        assert [h.score for h in nbest] == sorted((h.score for h in nbest), reverse=True)
        for h in nbest:
            assert near(h.score, expected[h.tokens]), (h, expected[h.tokens])
            for name in SCORERS:
                if name in stack:
                    assert near(h.parts[name], here.said(name, utterance, h.tokens)), (h, name)
                assert (name in h.parts) == (name in stack)
            check_path(here, stack, utterance, h, maximum)
    return sum(bool(h.spans) for nbest in found for h in nbest)


def check_path(here: World, stack: Stack, utterance: int, h: RawHypothesis, maximum: bool) -> None:
    """The alignment and the reading that a hypothesis shows are real ones, and its parts are theirs."""
    readings, scale = here.read_as(stack, utterance, h.tokens), here.lm_scale
    shown = [(s.start, s.end) for s in h.spans]
    mine = [
        r
        for r in readings
        if [(start, end) for _, start, end in r.spans] == shown
        and near(h.parts.get("lm", 0.0), scale * r.lm)
        and near(h.parts.get("classes", 0.0), scale * r.classes)
        and near(h.parts.get("end", 0.0), scale * r.end)
    ]
    assert mine, (h, readings)
    assert ("classes" in h.parts) == bool(h.spans)
    steps = [0.0 if here.kind == "labels" else scale * step for step in mine[0].steps]
    paths = [
        p
        for p in here.alignments(utterance)[h.tokens]
        if h.frames == p.frames
        and near(h.parts["model"], p.logp)
        and all(near(a, b + c) for a, b, c in zip(h.token_logp, p.tokens, steps, strict=True))
    ]
    assert paths, (h, here.alignments(utterance)[h.tokens], steps)
    if maximum and len(readings) == 1:
        assert near(sum(h.parts.values()), h.score)
    if len({r.history for r in readings}) == len(readings):
        # Nothing was recombined, so what is shown is best once the length of its lists is given back.
        worth = [r.lm + r.classes + r.end - r.share for r in readings]
        assert any(r.lm + r.classes + r.end - r.share > max(worth) - 1e-3 for r in mine)


WAYS = [("sum", False), ("max", False), ("sum", True), ("max", True)]


@pytest.mark.parametrize("stack", STACKS, ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
def test_a_search_without_pruning_is_enumeration(kind: Kind, stack: Stack, ngram: NGramModel) -> None:
    here = world(kind, len(stack) % 3, (3, 2), ngram)
    for recombine, reference in WAYS[: 4 if kind != "labels" else 2]:
        found = here.search(stack, recombine=recombine, reference=reference)
        entities = check(here, stack, found, recombine == "max")
        assert (entities > 5) == ("classes" in stack)


@pytest.mark.parametrize("stack", [s for s in STACKS if "classes" in s][::4], ids=name_of)
def test_the_best_reading_counts_in_the_label_synchronous_search(stack: Stack, ngram: NGramModel) -> None:
    here = world("labels", len(stack) % 3, (3, 2), ngram)
    check(here, stack, here.search(stack, recombine="max"), True)


@pytest.mark.parametrize(
    ("stack", "recombine", "beam"),
    [
        (STACKS[0], "sum", 150),
        (frozenset(SCORERS), "max", 150),
        (frozenset(("classes",)), "max", 1000),
        (STACKS[-1], "sum", 1000),
    ],
)
def test_several_symbols_a_frame(stack: Stack, recombine: str, beam: int, ngram: NGramModel) -> None:
    here = World("transducer", 1 + len(stack), (2, 1), ngram)
    here.symbols = 2
    found = here.search(stack, beam, recombine=recombine)
    assert max(len(h.tokens) for h in found[0]) == 4
    check(here, stack, found, recombine == "max")


ENDING = [
    frozenset(names.split())
    for names in ("neural", "classes", "ngram internal", "classes neural internal boost length")
]


@pytest.mark.parametrize("stack", ENDING, ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
def test_ends_of_sentences_in_every_search(kind: Kind, stack: Stack, ngram: NGramModel) -> None:
    """Sources that know ends score each as the last event of a sentence, against all that might have followed."""
    here = World(kind, len(stack) % 3, (3, 2), ngram, ends=True)
    ways = (WAYS[0], WAYS[3]) if kind != "labels" else WAYS[:1]
    for recombine, reference in ways:
        found = here.search(stack, recombine=recombine, reference=reference)
        check(here, stack, found, recombine == "max")
        parts = {name for nbest in found for h in nbest for name in h.parts}
        assert ("end" in parts) == ("classes" in stack and kind != "transducer")


WEIGHT = st.sampled_from([-0.7, -0.2, 0.15, 1.0, 2.5])


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(KINDS),
    stack=st.sampled_from(STACKS),
    weights=st.fixed_dictionaries(dict.fromkeys(SCORERS, WEIGHT)),
    sizes=st.sampled_from([(3,), (1, 0, 3), (2, 3, 3)]),
    way=st.sampled_from(WAYS),
)
def test_any_weights_and_lengths(
    ngram: NGramModel,
    seed: int,
    kind: Kind,
    stack: Stack,
    weights: dict[str, float],
    sizes: tuple[int, ...],
    way: tuple[str, bool],
) -> None:
    here = World(kind, seed, sizes, ngram)
    here.weights = {name: abs(w) if name == "internal" else w for name, w in weights.items()}
    recombine, reference = way
    found = here.search(stack, beam=400, recombine=recombine, reference=reference)
    check(here, stack, found, recombine == "max")


def to_the_byte(found: list[list[RawHypothesis]]) -> str:
    """All that is in the lists, floats in full and with their signs."""
    return repr(found)


@pytest.mark.parametrize("stack", [s for s in STACKS if s - {"classes"}][::2], ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
def test_a_scorer_of_weight_zero_is_as_if_it_were_not_there(
    kind: Kind, stack: Stack, ngram: NGramModel
) -> None:
    """With pruning; the scorers of the stack are silent, all others speak."""
    here = World(kind, len(stack), (4, 3), ngram)
    loud = frozenset((*SCORERS, "classes")) - stack | (stack & {"classes"})
    for reference in (False, True)[: 1 + (kind != "labels")]:
        expected = here.search(loud, 4, 6.0, reference=reference)
        here.weights = WEIGHTS | {name: 0.0 for name in stack if name in WEIGHTS}
        found = here.search(loud | stack, 4, 6.0, reference=reference)
        here.weights = dict(WEIGHTS)
        assert to_the_byte(found) == to_the_byte(expected)


def alike(found: list[list[RawHypothesis]], others: list[list[RawHypothesis]]) -> None:
    """The same hypotheses in the same order but for rounding.

    Where two entities of one class follow each other, the list may have them in either order at one score:
    then rounding chooses.
    """
    for one, other in zip(found, others, strict=True):
        assert [h.tokens for h in one] == [h.tokens for h in other]
        for a, b in zip(one, other, strict=True):
            assert a.frames == b.frames
            assert sorted(s.end - s.start for s in a.spans) == sorted(s.end - s.start for s in b.spans)
            assert near(a.score, b.score)
            assert set(a.parts) == set(b.parts)
            assert all(near(a.parts[name], b.parts[name]) for name in a.parts)


@pytest.mark.parametrize("stack", STACKS, ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
def test_order_and_batch_do_not_matter(kind: Kind, stack: Stack, ngram: NGramModel) -> None:
    """With pruning: of lists and phrases to the byte, of scorers and for a batch up to rounding."""
    here = world(kind, 7 + len(stack), (4, 3), ngram)
    reference = kind != "labels" and len(stack) % 2 == 1
    expected = here.search(stack, 4, 6.0, reference=reference)
    alike(here.search(stack, 4, 6.0, reference=reference, order=lambda scorers: scorers[::-1]), expected)
    if stack & {"classes", "boost"}:
        other = here.search(stack, 4, 6.0, reference=reference, reverse=True)
        assert to_the_byte(other) == to_the_byte(expected)
    for utterance, found in enumerate(expected):
        alike(here.search(stack, 4, 6.0, reference=reference, only=utterance), [found])
