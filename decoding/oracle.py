"""Oracle error rates: how near an n-best list or a lattice comes to the reference, whatever its scores say.

Exact dynamic programs over (node, words of the reference matched): the edit distance of Levenshtein between a
string and the best path of a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from decoding.lattice import Ints, Lattice
from decoding.trace import BLANK, RawHypothesis
from lm.errors import DataError

Words = Callable[[Sequence[int]], Sequence[str]]
"""The words that a sequence of tokens spells."""


class Oracle(NamedTuple):
    """The hypothesis nearest to a reference, and how many edits it is away from it."""

    errors: int
    hypothesis: RawHypothesis


def error_rate(oracles: Sequence[Oracle], references: Sequence[Sequence[Hashable]]) -> float:
    """Errors of a corpus per word (or token) of its references.

    Raises:
        DataError: there are not as many oracles as references, or the references are empty.
    """
    length = sum(len(reference) for reference in references)
    if len(oracles) != len(references) or not length:
        raise DataError(
            f"{len(oracles)} oracles for {len(references)} references of {length} words",
            "one oracle a reference, and at least one word",
            "pass the references of the same utterances",
        )
    return sum(oracle.errors for oracle in oracles) / length


def edit_distance(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> int:
    """Fewest insertions, deletions and substitutions that turn one sequence into the other."""
    graph = _Labelled()
    for place, label in enumerate(hypothesis):
        graph.add(place, place + 1, label, place)
    return _fewest_errors(graph, [len(hypothesis)], reference)[0]


def nbest_oracle(
    hypotheses: Sequence[RawHypothesis], reference: Sequence[Hashable], words: Words | None = None
) -> Oracle:
    """The hypothesis with the fewest errors, the first of equals; in words if ``words`` is given, else in tokens.

    Raises:
        DataError: the list is empty.
    """
    if not hypotheses:
        raise DataError("an empty n-best list", "at least one hypothesis", "leave the utterance out")
    found = [Oracle(edit_distance(reference, words(h.tokens) if words else h.tokens), h) for h in hypotheses]
    return min(found, key=lambda oracle: oracle.errors)


def lattice_oracle(lattice: Lattice, reference: Sequence[int]) -> Oracle:
    """The path of a lattice with the fewest token errors."""
    graph = _Labelled()
    columns = (lattice.source.tolist(), lattice.target.tolist(), lattice.token.tolist())
    for arc, (source, target, token) in enumerate(zip(*columns, strict=True)):
        graph.add(source, target, None if token == BLANK else token, arc)
    return _oracle(lattice, graph, lattice.final.tolist(), reference)


def lattice_word_oracle(
    lattice: Lattice, reference: Sequence[str], words: Words, starts_word: Sequence[bool]
) -> Oracle:
    """The path of a lattice with the fewest word errors.

    Args:
        lattice: paths of tokens.
        reference: the spoken words.
        words: what the tokens of one word spell.
        starts_word: ``(V,)`` tokens that start a word.
    """
    graph, last = _spell(lattice, words, starts_word)
    return _oracle(lattice, graph, [last], reference)


@dataclass
class _Labelled:
    """A graph with arcs in topological order: source, target, label (None: no label), arc it came from or -1."""

    arcs: list[tuple[int, int, Hashable, int]] = field(default_factory=list)

    def add(self, source: int, target: int, label: Hashable, origin: int) -> None:
        self.arcs.append((source, target, label, origin))


def _oracle(lattice: Lattice, graph: _Labelled, ends: Sequence[int], reference: Sequence[Hashable]) -> Oracle:
    errors, path = _fewest_errors(graph, ends, reference)
    final = int(lattice.target[path[-1]]) if path else 0
    return Oracle(errors, lattice.hypothesis(path, final))


def _fewest_errors(
    graph: _Labelled, ends: Sequence[int], reference: Sequence[Hashable]
) -> tuple[int, list[int]]:
    """Edit distance of the best path from node 0 to one of ``ends``, and the origins of its arcs."""
    place = np.arange(len(reference) + 1)
    wanted = {label: np.array([label != r for r in reference], dtype=np.int64) for label in reference}
    wrong = np.ones(len(reference), dtype=np.int64)
    cost: dict[int, Ints] = {0: place}  # of a path to the node against each prefix of the reference
    into: dict[int, list[tuple[int, Hashable, int]]] = {}
    for source, target, label, origin in graph.arcs:
        if source not in cost:
            continue
        row = cost[source]
        if label is not None:
            differs = wanted.get(label, wrong)
            row = row + 1
            row[1:] = np.minimum(row[1:], cost[source][:-1] + differs)
            row = np.minimum.accumulate(row - place) + place  # deletions
        cost[target] = np.minimum(cost[target], row) if target in cost else row
        into.setdefault(target, []).append((source, label, origin))
    node = min((end for end in ends if end in cost), key=lambda end: int(cost[end][-1]))
    return int(cost[node][-1]), _walk_back(cost, into, node, reference)


def _walk_back(
    cost: dict[int, Ints],
    into: dict[int, list[tuple[int, Hashable, int]]],
    node: int,
    reference: Sequence[Hashable],
) -> list[int]:
    at, path = len(reference), list[int]()
    while node in into:
        here = cost[node][at]
        if at and cost[node][at - 1] + 1 == here:
            at -= 1
            continue
        for source, label, origin in into[node]:
            row = cost[source]
            steps = [(at, 0)] if label is None else [(at, 1)]
            if label is not None and at:
                steps.append((at - 1, int(label != reference[at - 1])))
            taken = next((before for before, errors in steps if row[before] + errors == here), None)
            if taken is not None:
                node, at = source, taken
                path.append(origin)
                break
    return [origin for origin in reversed(path) if origin >= 0]


def _spell(lattice: Lattice, words: Words, starts_word: Sequence[bool]) -> tuple[_Labelled, int]:
    """The lattice with a word on the arc behind its last token, and the node where all paths end.

    Nodes are split by the tokens of the word that a path is in.
    """
    graph, count = _Labelled(), 1
    states: dict[int, dict[tuple[int, ...], int]] = {0: {(): 0}}
    spelled: dict[tuple[int, ...], list[str]] = {(): []}
    first = np.searchsorted(lattice.source, np.arange(lattice.num_nodes + 1)).tolist()
    target, tokens = lattice.target.tolist(), lattice.token.tolist()
    leaving: list[tuple[int, tuple[int, ...]]] = []

    def connect(source: int, target: int, pending: tuple[int, ...], origin: int) -> None:
        nonlocal count
        if pending not in spelled:
            spelled[pending] = list(words(pending))
        for word in spelled[pending][:-1]:
            graph.add(source, count, word, -1)
            source, count = count, count + 1
        graph.add(source, target, spelled[pending][-1] if spelled[pending] else None, origin)

    final = set(lattice.final.tolist())
    for node in range(lattice.num_nodes):
        for pending, state in states.pop(node, {}).items():
            if node in final:
                leaving.append((state, pending))
            for arc in range(first[node], first[node + 1]):
                token = tokens[arc]
                ends = token != BLANK and starts_word[token]
                after = pending if token == BLANK else (token,) if ends else (*pending, token)
                known = states.setdefault(target[arc], {})
                if after not in known:
                    known[after], count = count, count + 1
                connect(state, known[after], pending if ends else (), arc)
    for state, pending in leaving:
        connect(state, -1, pending, -1)
    return graph, -1
