"""Weighted automata over tokens, and their deterministic form.

States are made from the end backwards, so an arc always leads to a smaller number and nothing can loop. A state
is known by what may follow it: two that have the same arcs are one, so tails are shared. Determinisation is the
forward filter: a state of the result is a belief, the probabilities of the states one may be in after the
tokens read (Mohri 1997, "Finite-state transducers in language and speech processing", section 3.3, in the
probability semiring). Parts that are deterministic already, most of a long list, are taken over whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lm.class_encoding import ClassGraph
from lm.errors import EntityListError
from lm.token_trees import Floats, Forest, Ints

FINAL = 0
"""The state in which everything has been said."""
SKIP = -1
"""Token of an arc that says nothing."""
MOST_STATES = 200_000
"""States that patterns may need, before and after determinisation."""
MOST_SPLICED = 4_000_000
"""Nodes that the lists inside a class may have, counted at each place where they stand."""

Arc = tuple[int, int, float]
"""Token, next state, probability."""
Belief = dict[int, float]


class _Arcs(NamedTuple):
    source: Ints
    token: Ints
    target: Ints
    prob: Floats


class Automaton:
    """States made from the end backwards."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.states = 1
        self._made: dict[tuple[Arc, ...], int] = {}
        self._chunks: list[_Arcs] = []
        self._ends: list[tuple[Ints, Floats]] = []
        self._spliced = 0

    def chain(self, tokens: Sequence[int], then: int) -> int:
        """The state from which ``tokens`` lead to ``then``."""
        for token in reversed(tokens):
            then = self._state(((token, then, 1.0),))
        return then

    def choose(self, options: Sequence[tuple[float, int]]) -> int:
        """The state that goes on as one of the states, chosen in proportion to the weights."""
        total = math.fsum(weight for weight, _ in options)
        parts: dict[int, list[float]] = {}
        for weight, state in options:
            parts.setdefault(state, []).append(weight / total)
        if len(parts) == 1:
            return options[0][1]
        return self._state(tuple((SKIP, state, math.fsum(each)) for state, each in sorted(parts.items())))

    def splice(self, tree: Forest, then: int) -> int:
        """The root of a copy of a tree, whose entries lead to ``then``."""
        nodes = len(tree.mass)
        self._spliced += nodes
        if self._spliced > MOST_SPLICED:
            raise self._too_large(f"{MOST_SPLICED:,} nodes of lists")
        goes_on = np.zeros(nodes, dtype=bool)
        goes_on[tree.source] = True
        # Deeper nodes get smaller numbers; where an entry ends and none goes on is ``then`` itself.
        state = np.where(goes_on, self.states + goes_on[::-1].cumsum()[::-1] - 1, then)
        target = np.arange(nodes - len(tree.source), nodes)
        prob = tree.mass[target] / tree.mass[tree.source]
        self._chunks.append(_Arcs(state[tree.source], tree.token, state[target], prob))
        ends = np.flatnonzero(goes_on & (tree.end_mass > 0))
        ending = tree.end_mass[ends] / tree.mass[ends]
        if then == FINAL:
            self._ends.append((state[ends], ending))
        else:
            skip, to = np.full(len(ends), SKIP), np.full(len(ends), then)
            self._chunks.append(_Arcs(state[ends], skip, to, ending))
        self.states += int(goes_on.sum())
        return int(state[0])

    def arcs(self) -> _Arcs:
        """All arcs, rising by source and token."""
        made = [(state, *arc) for arcs, state in self._made.items() for arc in arcs]
        parts = [_columns(made), *self._chunks]
        source, token, target = (np.concatenate([part[i] for part in parts]) for i in range(3))
        prob = np.concatenate([part.prob for part in parts])
        order = np.lexsort((token, source))
        return _Arcs(source[order], token[order], target[order], prob[order])

    def ends(self) -> Floats:
        """``(states,)`` probability of stopping in a state."""
        end = np.zeros(self.states)
        end[FINAL] = 1.0
        for state, prob in self._ends:
            end[state] = prob
        return end

    def _state(self, arcs: tuple[Arc, ...]) -> int:
        if arcs not in self._made:
            if len(self._made) >= MOST_STATES:
                raise self._too_large(f"{MOST_STATES:,} states")
            self._made[arcs] = self.states
            self.states += 1
        return self._made[arcs]

    def _too_large(self, most: str) -> EntityListError:
        return too_large(self.name, most)


def too_large(name: str, most: str) -> EntityListError:
    """The error for a class whose patterns cannot be compiled."""
    return EntityListError(
        f"class {name!r} has patterns too large to compile", f"at most {most}", "repeat or nest less"
    )


def determinise(automaton: Automaton, start: int) -> ClassGraph:
    """The graph of everything that can be said from ``start``, with the same probabilities."""
    return _Determiniser(automaton).run(start)


class _Determiniser:
    def __init__(self, automaton: Automaton) -> None:
        self._name = automaton.name
        self._arcs = automaton.arcs()
        self._end = automaton.ends()
        states = automaton.states
        self._first = np.searchsorted(self._arcs.source, np.arange(states + 1))
        spoken = self._arcs.token != SKIP
        # What a state says itself; the rest goes on without a token.
        own = np.bincount(self._arcs.source[spoken], self._arcs.prob[spoken], minlength=states)
        self._mass: Floats = own + self._end
        self._clean = self._find_clean(states)
        self._skips = self._follow_skips()
        self._index: dict[tuple[tuple[int, float], ...], int] = {}
        self._beliefs: list[Belief] = []

    def run(self, start: int) -> ClassGraph:
        """Follow the beliefs from ``start``, then join them with the clean states they lead to."""
        first = self._normal(self._skips.get(start, {start: 1.0}))
        root = self._place(first)
        rows: list[tuple[int, int, int, float]] = []
        ends: list[float] = []
        at = 0
        while at < len(self._beliefs):
            belief = self._beliefs[at]
            ends.append(sum(weight * float(self._end[state]) for state, weight in belief.items()))
            rows += [(at, token, place, prob) for token, place, prob in self._leave(belief)]
            at += 1
        return self._join(root, rows, ends)

    def _find_clean(self, states: int) -> npt.NDArray[np.bool_]:
        """States from which everything is deterministic: no skips, no token twice."""
        arcs = self._arcs
        dirty = np.zeros(states, dtype=bool)
        dirty[arcs.source[arcs.token == SKIP]] = True
        twice = (arcs.source[1:] == arcs.source[:-1]) & (arcs.token[1:] == arcs.token[:-1])
        dirty[arcs.source[1:][twice]] = True
        while True:
            more = arcs.source[dirty[arcs.target] & ~dirty[arcs.source]]
            if not len(more):
                return ~dirty
            dirty[more] = True

    def _follow_skips(self) -> dict[int, Belief]:
        """Where each state with skips may be without saying anything."""
        arcs, found = self._arcs, dict[int, Belief]()
        size = 0
        for state in np.unique(arcs.source[arcs.token == SKIP]).tolist():  # targets come first
            reach: Belief = {state: 1.0} if self._mass[state] > 0 else {}
            for token, target, prob in self._of(state):
                if token == SKIP:
                    for end, weight in found.get(target, {target: 1.0}).items():
                        reach[end] = reach.get(end, 0.0) + prob * weight
            found[state] = reach
            size += len(reach)
            if size > 20 * MOST_STATES:
                raise too_large(self._name, f"{20 * MOST_STATES:,} ways to leave something out")
        return found

    def _of(self, state: int) -> Iterator[Arc]:
        here = slice(int(self._first[state]), int(self._first[state + 1]))
        return zip(
            self._arcs.token[here].tolist(),
            self._arcs.target[here].tolist(),
            self._arcs.prob[here].tolist(),
            strict=True,
        )

    def _leave(self, belief: Belief) -> Iterator[tuple[int, int, float]]:
        """Token, place of the next belief and probability of each arc of a belief."""
        reached: dict[int, Belief] = {}
        for state, weight in belief.items():
            for token, target, prob in self._of(state):
                if token != SKIP:
                    row = reached.setdefault(token, {})
                    for end, part in self._skips.get(target, {target: 1.0}).items():
                        row[end] = row.get(end, 0.0) + weight * prob * part
        for token in sorted(reached):
            row = reached[token]
            prob = sum(weight * float(self._mass[state]) for state, weight in row.items())
            yield token, self._place(self._normal(row)), prob

    def _normal(self, belief: Belief) -> Belief:
        belief = {state: weight for state, weight in belief.items() if weight > 0}  # what did not underflow
        total = sum(weight * float(self._mass[state]) for state, weight in belief.items())
        return {state: belief[state] / total for state in sorted(belief)}

    def _place(self, belief: Belief) -> int:
        """Number of a belief; a clean state s is place -1 - s, and needs no belief."""
        if len(belief) == 1 and self._clean[state := next(iter(belief))]:
            return -1 - state
        # Sums in another order differ in the last bits, which must not make two states of one.
        key = tuple((state, round(math.log(weight), 9)) for state, weight in belief.items())
        if key not in self._index:
            if len(self._beliefs) >= MOST_STATES:
                raise too_large(self._name, f"{MOST_STATES:,} states")
            self._index[key] = len(self._beliefs)
            self._beliefs.append(belief)
        return self._index[key]

    def _join(self, root: int, rows: list[tuple[int, int, int, float]], ends: list[float]) -> ClassGraph:
        arcs, beliefs = self._arcs, len(self._beliefs)
        source, token, place, prob = _columns(rows)
        whole = self._reachable([-1 - root] if root < 0 else -1 - place[place < 0])
        kept = np.flatnonzero(whole)
        # A belief's largest state falls along every arc, so this order puts targets behind their sources.
        height = np.concatenate(([max(b) for b in self._beliefs], kept)).astype(np.int64)
        rank = np.empty(len(height), dtype=np.int64)
        rank[np.argsort(-height, kind="stable")] = np.arange(len(height))
        of_state = np.full(len(whole), -1, dtype=np.int64)
        of_state[kept] = rank[beliefs:]
        inside = whole[arcs.source]
        at = np.where(
            place < 0, of_state[-1 - np.minimum(place, -1)], rank[np.maximum(place, 0)] if beliefs else 0
        )
        source = np.concatenate((rank[source], of_state[arcs.source[inside]]))
        token = np.concatenate((token, arcs.token[inside]))
        target = np.concatenate((at, of_state[arcs.target[inside]]))
        prob = np.concatenate((prob, arcs.prob[inside]))
        end = np.empty(len(height))
        end[rank] = np.concatenate((ends, self._end[kept]))
        order = np.lexsort((token, source))
        return _graph(source[order], token[order], target[order], prob[order], end)

    def _reachable(self, states: Sequence[int] | Ints) -> npt.NDArray[np.bool_]:
        """Clean states that can be reached from some of them."""
        arcs = self._arcs
        found = np.zeros(len(self._clean), dtype=bool)
        found[np.asarray(states, dtype=np.int64)] = True
        while True:
            more = arcs.target[found[arcs.source] & ~found[arcs.target]]
            if not len(more):
                return found
            found[more] = True


def _columns(rows: list[tuple[int, int, int, float]]) -> _Arcs:
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    source, token, target = (np.array(column, dtype=np.int64) for column in columns[:3])
    return _Arcs(source, token, target, np.array(columns[3], dtype=np.float64))


def _graph(source: Ints, token: Ints, target: Ints, prob: Floats, end: Floats) -> ClassGraph:
    on = np.bincount(source, prob, minlength=len(end))
    total = on + end  # one, but for rounding
    with np.errstate(divide="ignore"):
        return ClassGraph(
            source, token, target, np.log(prob / total[source]), np.log(end / total), np.log(on / total)
        )
