"""Lattices: many hypotheses of one utterance as paths of one graph, for rescoring, tuning and oracle error rates.

``decoding.lattice_reading`` makes one from a search or from an n-best list. Nodes are numbered in topological
order from the start, node 0; an arc carries a token or, with BLANK, none. The score of a path is the sum of all
its parts. Paths of the same tokens (other times, other entities) are one hypothesis, shown as the best of them;
what the search gained by adding recombined paths stands in the part RECOMBINED.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from decoding.trace import BLANK, RawHypothesis, TokenSpan
from lm.errors import DataError

UNKNOWN = -1
"""Frame of a token of a model that does not tell where it heard it."""
RECOMBINED = "recombined"
"""Part of a path's score that recombined paths brought; not among ``RawHypothesis.parts``."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Label = tuple[int, int, float, bool, int]
"""Token, frame, logp, entered and node of an arc."""
_Link = tuple[int, Any] | None
"""The last arc of a path and the link before it."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """A directed acyclic graph of A arcs and F final nodes; scores are natural logs, already weighted.

    Attributes:
        parts: names of the P knowledge sources, in the order of the score columns.
        source, target: ``(A,)`` nodes; arcs are sorted by source, and ``source < target``.
        token: ``(A,)`` token id or BLANK.
        frame: ``(A,)`` encoder frame of the token, or UNKNOWN.
        logp: ``(A,)`` the token's own log probability, for confidence; not part of the path's score.
        entered: ``(A,)`` whether the token opened an entity.
        node: ``(A,)`` entity tree node where the token ended an entity, else -1.
        scores: ``(A, P)``.
        final: ``(F,)`` nodes at which a path may end.
        final_scores: ``(F, P)`` what ending there adds.

    Raises:
        DataError: the arrays do not make such a graph.
    """

    parts: tuple[str, ...]
    source: Ints
    target: Ints
    token: Ints
    frame: Ints
    logp: Floats
    entered: NDArray[np.bool_]
    node: Ints
    scores: Floats
    final: Ints
    final_scores: Floats

    def __post_init__(self) -> None:
        arcs, finals, width = len(self.source), len(self.final), len(self.parts)
        if len(set(self.parts)) < width:
            _refuse(f"parts {', '.join(self.parts)}", "names that are all different")
        expected = {f.name: (arcs,) for f in fields(self)[1:]}
        wide = {"scores": (arcs, width), "final": (finals,), "final_scores": (finals, width)}
        for name, shape in (expected | wide).items():
            if (found := getattr(self, name).shape) != shape:
                _refuse(f"{name} of shape {found}", f"shape {shape}")
        if not finals or len(np.unique(self.final)) < finals:
            _refuse(f"final nodes {self.final.tolist()[:8]}", "at least one, each once")
        if (self.source >= self.target).any() or (np.diff(self.source) < 0).any():
            _refuse("arcs out of order", "arcs sorted by source, each leading to a higher node")
        if min(self.source.min(initial=0), self.final.min()) < 0:
            _refuse("a negative node", "nodes numbered from 0, the start")
        if not (np.isfinite(self.scores).all() and np.isfinite(self.final_scores).all()):
            _refuse("a score that is not finite", "finite log probabilities; leave out impossible arcs")

    @property
    def num_nodes(self) -> int:
        """Nodes, the start included."""
        return int(max(self.target.max(initial=0), self.final.max())) + 1

    def scaled(self, factors: Mapping[str, float]) -> Lattice:
        """The same paths with some parts multiplied; 0 takes a knowledge source out.

        Raises:
            DataError: a name is not among ``parts``.
        """
        for name in factors:
            if name not in self.parts:
                _refuse(f"a factor for part {name!r}", f"one of {', '.join(self.parts)}")
        by = np.array([factors.get(name, 1.0) for name in self.parts])
        return replace(self, scores=self.scores * by, final_scores=self.final_scores * by)

    def trimmed(self) -> Lattice:
        """Without the nodes that lie on no path from the start to an end.

        Raises:
            DataError: there is no such path.
        """
        arcs = list(zip(self.source.tolist(), self.target.tolist(), strict=True))
        reached, useful = np.zeros((2, self.num_nodes), dtype=bool)
        reached[0], useful[self.final] = True, True
        for source, target in arcs:
            reached[target] |= reached[source]
        for source, target in reversed(arcs):
            useful[source] |= useful[target]
        keep = reached & useful
        if not keep[0]:
            _refuse("a lattice without a path", "a way from the start to a final node")
        number, live, ends = keep.cumsum() - 1, keep[self.source] & keep[self.target], keep[self.final]
        columns = {f.name: getattr(self, f.name)[live] for f in fields(self)[1:-2]}
        columns |= {"source": number[columns["source"]], "target": number[columns["target"]]}
        columns |= {"final": number[self.final[ends]], "final_scores": self.final_scores[ends]}
        return replace(self, **columns)

    def best_path(self) -> RawHypothesis:
        """The hypothesis of the highest score; of equals the one whose tokens come first."""
        return self.nbest(1)[0]

    def nbest(self, size: int) -> list[RawHypothesis]:
        """The ``size`` best distinct token sequences, best first; fewer where the lattice holds fewer.

        An A* search over token prefixes whose estimate is the exact best completion, so it looks at little more
        than what it returns.
        """
        search = _Prefixes(self)
        queue: list[_Prefix] = [search.first()]
        found: list[RawHypothesis] = []
        while queue and len(found) < size:
            prefix = heapq.heappop(queue)
            if prefix.complete:
                [(final, link)] = prefix.ways.items()
                found.append(self.hypothesis(_arcs(link), final))
                continue
            for following in search.extend(prefix):
                heapq.heappush(queue, following)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        arrays = {f.name: getattr(self, f.name).tolist() for f in fields(self)[1:]}
        return {"parts": list(self.parts)} | arrays

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Lattice:
        """What ``to_dict`` wrote.

        Raises:
            DataError: keys are missing or unknown, or the values are no lattice.
        """
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            _refuse(f"a lattice with keys {sorted(data)}", f"the keys {sorted(names)}")
        parts = tuple(data["parts"])
        try:
            arrays = {name: np.array(data[name], dtype=_TYPES[name]) for name in names - {"parts"}}
            for name in ("scores", "final_scores"):
                arrays[name] = arrays[name].reshape(-1, len(parts))
        except (TypeError, ValueError) as error:
            _refuse(f"a lattice that cannot be read ({error})", "lists of numbers")
        return cls(parts=parts, **arrays)

    def hypothesis(self, arcs: Sequence[int], final: int) -> RawHypothesis:
        """The hypothesis along the path of ``arcs`` that ends at node ``final``."""
        path = np.array(arcs, dtype=np.int64)
        ending = self.final_scores[np.flatnonzero(self.final == final)[0]]
        total = dict(zip(self.parts, (self.scores[path].sum(0) + ending).tolist(), strict=True))
        emitted = path[self.token[path] != BLANK]
        spans, start = [], 0
        for place, arc in enumerate(emitted.tolist()):
            start = place if self.entered[arc] else start
            if self.node[arc] >= 0:
                spans.append(TokenSpan(int(self.node[arc]), start, place + 1))
        return RawHypothesis(
            tokens=tuple(self.token[emitted].tolist()),
            frames=() if (self.frame[emitted] == UNKNOWN).any() else tuple(self.frame[emitted].tolist()),
            token_logp=tuple(self.logp[emitted].tolist()),
            score=sum(total.values()),
            parts={name: value for name, value in total.items() if name != RECOMBINED},
            spans=tuple(spans),
        )


_TYPES = {f.name: np.int64 for f in fields(Lattice)[1:]} | {
    "logp": np.float64,
    "entered": np.bool_,
    "scores": np.float64,
    "final_scores": np.float64,
}


@dataclass
class Draft:
    """A lattice under construction; nodes must be added in topological order."""

    nodes: int = 1
    ends: list[tuple[int, int]] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    scores: list[Floats] = field(default_factory=list)

    def add_node(self) -> int:
        """A further node."""
        self.nodes += 1
        return self.nodes - 1

    def add(self, source: int, target: int, label: Label, scores: Floats) -> None:
        """Add an arc."""
        self.ends.append((source, target))
        self.labels.append(label)
        self.scores.append(scores)

    def finish(self, parts: tuple[str, ...], finals: Mapping[int, Floats]) -> Lattice:
        """The lattice, given the final nodes with their scores."""
        ends = np.array(self.ends, dtype=np.int64).reshape(-1, 2)
        order = np.argsort(ends[:, 0], kind="stable")
        columns = [list(column) for column in zip(*self.labels, strict=True)] or [[]] * 5
        names = ("token", "frame", "logp", "entered", "node")
        labels = {n: np.array(c, dtype=_TYPES[n])[order] for n, c in zip(names, columns, strict=True)}
        return Lattice(
            parts=parts,
            source=ends[order, 0],
            target=ends[order, 1],
            scores=np.array(self.scores).reshape(-1, len(parts))[order],
            final=np.array(list(finals), dtype=np.int64),
            final_scores=np.array(list(finals.values())),
            **labels,
        )


class _Prefix(NamedTuple):
    """Paths of equal tokens; sorts by the best score that any of their completions has, then by tokens.

    ``ways`` maps each node reached to the arcs of the best path there; ``scores`` to its score.
    """

    cost: float
    tokens: tuple[int, ...]
    complete: bool
    ways: dict[int, _Link]
    scores: dict[int, float]


class _Prefixes:
    """Extends token prefixes through a lattice; of the paths of equal tokens to a node only the best is kept."""

    def __init__(self, lattice: Lattice) -> None:
        self._target, self._token = lattice.target.tolist(), lattice.token.tolist()
        self._weight = lattice.scores.sum(-1).tolist()
        self._end = dict(zip(lattice.final.tolist(), lattice.final_scores.sum(-1).tolist(), strict=True))
        count = lattice.num_nodes
        self._first = np.searchsorted(lattice.source, np.arange(count + 1)).tolist()
        self._rest = [self._end.get(node, -np.inf) for node in range(count)]  # score of the best completion
        for node in reversed(range(count)):
            for arc in range(self._first[node], self._first[node + 1]):
                self._rest[node] = max(self._rest[node], self._weight[arc] + self._rest[self._target[arc]])

    def first(self) -> _Prefix:
        return self._prefix((), {0: None}, {0: 0.0})

    def extend(self, prefix: _Prefix) -> list[_Prefix]:
        """The prefix as a complete sequence, where it may end, and with every token that can follow."""
        found = []
        ended = {node: s + self._end[node] for node, s in prefix.scores.items() if node in self._end}
        if ended:
            node = max(ended, key=lambda n: ended[n])
            found.append(_Prefix(-ended[node], prefix.tokens, True, {node: prefix.ways[node]}, {}))
        ways: dict[int, dict[int, _Link]] = {}
        scores: dict[int, dict[int, float]] = {}
        for node, score in prefix.scores.items():
            for arc in range(self._first[node], self._first[node + 1]):
                if (token := self._token[arc]) != BLANK:
                    into = ways.setdefault(token, {}), scores.setdefault(token, {})
                    self._follow(arc, score, prefix.ways[node], *into)
        found += [self._prefix((*prefix.tokens, token), ways[token], scores[token]) for token in ways]
        return [p for p in found if p.cost < np.inf]

    def _prefix(self, tokens: tuple[int, ...], ways: dict[int, _Link], scores: dict[int, float]) -> _Prefix:
        """Close the nodes reached under blanks."""
        queue = sorted(scores)
        while queue:
            node = heapq.heappop(queue)
            for arc in range(self._first[node], self._first[node + 1]):
                if self._token[arc] == BLANK:
                    if self._target[arc] not in scores:
                        heapq.heappush(queue, self._target[arc])
                    self._follow(arc, scores[node], ways[node], ways, scores)
        best = max(score + self._rest[node] for node, score in scores.items())
        return _Prefix(-best, tokens, False, ways, scores)

    def _follow(
        self, arc: int, score: float, link: _Link, ways: dict[int, _Link], scores: dict[int, float]
    ) -> None:
        target, total = self._target[arc], score + self._weight[arc]
        if target not in scores or total > scores[target]:
            ways[target], scores[target] = (arc, link), total


def _arcs(link: _Link) -> list[int]:
    arcs: list[int] = []
    while link is not None:
        arcs.append(link[0])
        link = link[1]
    return arcs[::-1]


def _refuse(given: str, expected: str) -> NoReturn:
    raise DataError(given, expected, "make the lattice anew from the search")
