"""Second-pass scores for lattices, from any stack of scorers: the product of a lattice with their automata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoding.lattice import Floats, Ints, Lattice
from decoding.rescore import check_names, checked
from decoding.scorer import Scorer
from decoding.trace import BLANK
from lm.errors import ConfigError, DataError


@torch.no_grad()
def rescore_lattices(
    lattices: Sequence[Lattice],
    scorers: Sequence[Scorer],
    factors: Mapping[str, float] | None = None,
    keep: int | None = None,
) -> list[Lattice]:
    """Score the lattices of a batch again: nodes are split by the states of the scorers.

    Paths to a node on which all states are equal share what follows. All lattices go forward together, one
    topological level after the other. Arcs that a scorer forbids (-inf) are left out; a scorer of weight 0 is not
    asked.

    Args:
        lattices: one an utterance; scorers that know utterances start in this order.
        scorers: what to add, token by token; each becomes a part.
        factors: multipliers of the lattices' parts; 0 takes one out, so that a better scorer can replace it.
        keep: split a node into no more than this many, the best by their paths so far, and drop the others; what
            is left has exact scores. None keeps all, but a scorer that remembers everything then makes the lattice
            a tree of all its paths.

    Raises:
        ConfigError: ``keep`` is less than 1.
        DataError: a name does not fit, a score is NaN or +inf, or the scorers allow no path of a lattice.
    """
    if keep is not None and keep < 1:
        raise ConfigError(f"keep {keep}", "1 or more, or None", "keep at least one of each node")
    if not lattices:
        return []
    factors = factors or {}
    for lattice in lattices:
        check_names(set(lattice.parts), scorers, factors)
    # A lattice without entities may have no part "classes".
    scaled = [x.scaled({n: f for n, f in factors.items() if n in x.parts}) for x in lattices]
    product = _Product(scaled, [s for s in scorers if s.weight != 0.0], keep)
    product.run()
    return [product.lattice(b, [s.name for s in scorers]) for b in range(len(lattices))]


class _Arrivals(NamedTuple):
    """M arcs as they reach their target.

    Attributes:
        node: ``(M,)`` lattice node reached.
        states: ``(M, S)`` states of the scorers there.
        source: ``(M,)`` node of the product they come from, -1 at the start.
        arc: ``(M,)`` lattice arc, -1 at the start.
        extra: ``(M, S)`` what the scorers give the arc, weighted.
        best: ``(M,)`` score of the best path this way.
    """

    node: Tensor
    states: Tensor
    source: Tensor
    arc: Tensor
    extra: Tensor
    best: Tensor


class _Product:
    """The product of lattices, laid side by side, with scorers; its nodes are numbered as they are made."""

    def __init__(self, lattices: Sequence[Lattice], scorers: Sequence[Scorer], keep: int | None) -> None:
        self._lattices, self._scorers, self._keep = lattices, scorers, keep
        self._starts = [s.start(len(lattices)) for s in scorers]
        device = self._starts[0].device if scorers else torch.device("cpu")
        self._arc_offset = np.cumsum([0] + [len(x.source) for x in lattices])
        self._node_offset = np.cumsum([0] + [x.num_nodes for x in lattices])

        def joined(columns: Iterable[NDArray[Any]]) -> Tensor:
            return torch.from_numpy(np.concatenate(list(columns))).to(device)

        nodes = [np.arange(x.num_nodes) for x in lattices]
        first = [np.searchsorted(x.source, n) for x, n in zip(lattices, nodes, strict=True)]
        self._level = joined(_levels(x) for x in lattices)
        self._is_final = joined(np.isin(n, x.final) for x, n in zip(lattices, nodes, strict=True))
        self._first = joined([*map(np.add, first, self._arc_offset), self._arc_offset[-1:]])
        self._target = joined(x.target + n for x, n in zip(lattices, self._node_offset, strict=False))
        self._token = joined(x.token for x in lattices)
        self._weight = joined(x.scores.sum(-1) for x in lattices)
        self._waiting: dict[int, list[_Arrivals]] = {}
        self._made = 0
        # Of the product: the lattice node of each node, its arcs, and where it ends with what.
        self._nodes: list[Tensor] = []
        self._arcs: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._ends: list[tuple[Tensor, Tensor]] = []

    def run(self) -> None:
        """Build the product, level by level."""
        roots = torch.from_numpy(self._node_offset[:-1]).to(self._level.device)
        none, nothing = torch.full_like(roots, -1), torch.zeros(len(roots), dtype=torch.float64)
        nothing = nothing.to(roots.device)
        states = torch.stack(self._starts, dim=-1) if self._starts else roots.new_zeros(len(roots), 0)
        extra = nothing.new_zeros(states.shape)
        self._waiting[0] = [_Arrivals(roots, states, none, none, extra, nothing)]
        for level in range(int(self._level.max()) + 1):
            if arrivals := self._waiting.pop(level, []):
                self._visit(_Arrivals(*(torch.cat(column) for column in zip(*arrivals, strict=True))))

    def lattice(self, b: int, names: Sequence[str]) -> Lattice:
        """The product of utterance ``b``, with a part for each of ``names``."""
        old, asked = self._lattices[b], [s.name for s in self._scorers]
        node = torch.cat(self._nodes).cpu().numpy()
        mine = (node >= self._node_offset[b]) & (node < self._node_offset[b + 1])
        number = mine.cumsum() - 1
        source, target, arc, extra = (torch.cat(x).cpu().numpy() for x in zip(*self._arcs, strict=True))
        inside = np.flatnonzero(mine[source])
        inside = inside[np.argsort(source[inside], kind="stable")]
        ending, finish = (torch.cat(x).cpu().numpy() for x in zip(*self._ends, strict=True))
        ends = np.flatnonzero(mine[ending])
        if not len(ends):
            _refuse(b, asked)
        arc = arc[inside] - self._arc_offset[b]
        kept = [i for i, name in enumerate(old.parts) if name not in names]

        def parts(before: Floats, added: Floats) -> Floats:
            columns = [added[:, asked.index(n)] if n in asked else np.zeros(len(added)) for n in names]
            return np.concatenate([before[:, kept], *(c[:, None] for c in columns)], axis=1)

        was = node[ending[ends]] - self._node_offset[b]
        at = np.argsort(old.final)
        ended = at[np.searchsorted(old.final, was, sorter=at)]
        found = Lattice(
            parts=(*(old.parts[i] for i in kept), *names),
            source=number[source[inside]],
            target=number[target[inside]],
            token=old.token[arc],
            frame=old.frame[arc],
            logp=old.logp[arc],
            entered=old.entered[arc],
            node=old.node[arc],
            scores=parts(old.scores[arc], extra[inside]),
            final=number[ending[ends]],
            final_scores=parts(old.final_scores[ended], finish[ends]),
        )
        return found.trimmed()

    def _visit(self, found: _Arrivals) -> None:
        """Make the nodes of a level of which all arcs are known, and send their arcs on."""
        _, which = torch.unique(found.node, return_inverse=True)
        for column in found.states.unbind(-1):
            _, which = torch.unique(which * (column.max() + 1) + column, return_inverse=True)
        order = torch.arange(len(which), device=which.device)
        first = order[: int(which.max()) + 1].scatter_reduce(0, which, order, "amin", include_self=False)
        rows, states = found.node[first], found.states[first]
        best = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=rows.device)
        best = best.scatter_reduce(0, which, found.best, "amax")
        kept = self._best_of_each(rows, best)
        number = torch.where(kept, self._made + kept.cumsum(0) - 1, -1)
        self._made += int(kept.sum())
        arrived = (number[which] >= 0) & (found.source >= 0)
        arcs = (found.source, number[which], found.arc, found.extra)
        self._arcs.append((arcs[0][arrived], arcs[1][arrived], arcs[2][arrived], arcs[3][arrived]))
        node, states, best, number = rows[kept], states[kept], best[kept], number[kept]
        self._nodes.append(node)
        self._end(node, states, number)
        begin, count = self._first[node], self._first[node + 1] - self._first[node]
        parent = torch.arange(len(node), device=node.device).repeat_interleave(count)
        within = torch.arange(len(parent), device=node.device) - (count.cumsum(0) - count)[parent]
        self._send(begin[parent] + within, states[parent], number[parent], best[parent])

    def _best_of_each(self, node: Tensor, best: Tensor) -> Tensor:
        """The rows to keep: of each lattice node the ``keep`` best."""
        if self._keep is None:
            return torch.ones_like(node, dtype=torch.bool)
        order = best.argsort(descending=True, stable=True)
        order = order[node[order].argsort(stable=True)]
        _, count = torch.unique(node, return_counts=True)  # sorted, as the rows are now
        begin = (count.cumsum(0) - count).repeat_interleave(count)
        kept = torch.empty_like(node, dtype=torch.bool)
        kept[order] = torch.arange(len(node), device=node.device) - begin < self._keep
        return kept

    def _end(self, node: Tensor, states: Tensor, number: Tensor) -> None:
        final = self._is_final[node]
        finish = torch.zeros(states[final].shape, dtype=torch.float64, device=node.device)
        if len(finish):
            for i, scorer in enumerate(self._scorers):
                scores = scorer.weight * scorer.finish(states[final, i]).double()
                finish[:, i] = checked(scorer.name, scores)
        possible = finish.isfinite().all(-1)
        self._ends.append((number[final][possible], finish[possible]))

    def _send(self, arc: Tensor, states: Tensor, source: Tensor, best: Tensor) -> None:
        """Score ``arc`` ``(M,)`` from ``states`` and let those that are possible wait at their targets."""
        extra = torch.zeros(states.shape, dtype=torch.float64, device=arc.device)
        speaks = (self._token[arc] != BLANK).nonzero().squeeze(1)
        if len(speaks):
            tokens = self._token[arc[speaks]]
            for i, scorer in enumerate(self._scorers):
                scores = scorer.score(states[speaks, i], tokens[:, None]).squeeze(-1)
                extra[speaks, i] = checked(scorer.name, scorer.weight * scores.double())
        possible = extra.isfinite().all(-1)
        arc, states, source, extra = arc[possible], states[possible], source[possible], extra[possible]
        best = best[possible] + self._weight[arc] + extra.sum(-1)
        speaks = (self._token[arc] != BLANK).nonzero().squeeze(1)
        if len(speaks):
            tokens = self._token[arc[speaks]]
            for i, scorer in enumerate(self._scorers):
                states[speaks, i] = scorer.advance(states[speaks, i], tokens)
        target = self._target[arc]
        for level in torch.unique(self._level[target]).tolist():
            rows = self._level[target] == level
            arrived = _Arrivals(target[rows], states[rows], source[rows], arc[rows], extra[rows], best[rows])
            self._waiting.setdefault(level, []).append(arrived)


def _levels(lattice: Lattice) -> Ints:
    """Arcs on the longest way from the start to each node."""
    level = np.zeros(lattice.num_nodes, dtype=np.int64)
    for source, target in zip(lattice.source.tolist(), lattice.target.tolist(), strict=True):
        level[target] = max(level[target], level[source] + 1)
    return level


def _refuse(b: int, names: Sequence[str]) -> NoReturn:
    raise DataError(
        f"no path of lattice {b} is possible for {', '.join(names)}",
        "at least one that all scorers allow",
        "raise keep, or give weight 0 to a scorer that forbids",
    )
