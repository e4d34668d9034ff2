"""A catalog as a prefix tree in flat tensors: which tokens may follow inside an entity, how likely each is.

Inside a class the probability of an entity is its share of the class's weight, spread over its tokens (our
reading of the class model of C-FNT, Wang et al., arXiv 2309.07648): ``P_in(v|q) = mass(child) / mass(q)`` and
``P_in(END|q) = end weight / mass(q)``, where mass is the weight of all entities at or below a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lm.class_encoding import ClassGraph
from lm.classes import EncodedCatalog, EncodedClass
from lm.token_trees import Floats, Ints, grow


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """The trees of all classes in one arena of M nodes with A arcs; V surface tokens, C classes.

    Nodes are numbered level by level, so they do not depend on the order of the lists. Behind the trees stand
    the graphs of classes that are not lists (``lm.nested``): their nodes may be reached in several ways, and no
    list entry ends at them.
    """

    vocab_size: int
    """V."""
    num_classes: int
    """C."""
    arc_key: Tensor
    """``(A,)`` int64, sorted: node * V + token."""
    arc_target: Tensor
    """``(A,)`` int64: the node that the arc leads to."""
    arc_logp: Tensor
    """``(A,)`` float32: log P_in(token | node)."""
    end_logp: Tensor
    """``(M,)`` float32: log P_in(END | node), -inf where no entity ends."""
    node_class: Tensor
    """``(M,)`` int64: class index."""
    on_logp: Tensor
    """``(M,)`` float32: log P_in(not END | node), -inf where no entity goes on."""
    root: Tensor
    """``(C,)`` int64: first node of each class, -1 for a class without entities."""
    root_target: Tensor
    """``(C, V)`` int64: the arcs of the roots as a table, -1 where there is none."""
    root_logp: Tensor
    """``(C, V)`` float32: log P_in(token | root), -inf where there is no arc."""
    class_cost: Tensor
    """``(C,)`` float32: nats to take off the log odds of each class."""
    entry_offset: Ints
    """``(M + 1,)``: the entries of a node are this range of ``entry_index`` and ``entry_weight``."""
    entry_index: Ints
    """Position of each ending entry in its canonical class, by node."""
    entry_weight: Floats
    """Weight share of each ending entry, by node."""

    @classmethod
    def build(cls, encoded: EncodedCatalog, vocab_size: int, num_classes: int) -> PrefixTree:
        """Compile an encoded catalog; the same entities in any order give the same tensors."""
        return _build(sorted(encoded.classes, key=lambda c: c.index), vocab_size, num_classes)

    @classmethod
    def empty(cls, vocab_size: int, num_classes: int) -> PrefixTree:
        """The tree without entities: every root is -1."""
        return _build((), vocab_size, num_classes)

    @property
    def num_nodes(self) -> int:
        """M, the nodes of all classes."""
        return len(self.entry_offset) - 1

    @cached_property
    def onward_logp(self) -> Tensor:
        """``(A,)`` float32: log P_in(token | node, not END)."""
        return self.arc_logp - self.on_logp[self.arc_key // self.vocab_size]

    def lookup(self, nodes: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Follow one arc from each node.

        ``nodes`` and ``tokens`` are int64 of shapes that broadcast to S. Returns the targets, S int64, -1
        where the node has no such arc, and log P_in, S float32, -inf there. A node below 0 or a token outside
        0..V-1 has none.
        """
        key = nodes * self.vocab_size + tokens
        if not len(self.arc_key):
            return torch.full_like(key, -1), torch.full_like(key, -torch.inf, dtype=self.arc_logp.dtype)
        slot = torch.searchsorted(self.arc_key, key).clamp_(max=len(self.arc_key) - 1)
        # A class tag as token would land on an arc of the next node.
        found = (self.arc_key[slot] == key) & (nodes >= 0) & (tokens >= 0) & (tokens < self.vocab_size)
        return torch.where(found, self.arc_target[slot], -1), torch.where(
            found, self.arc_logp[slot], -torch.inf
        )

    def entries_at(self, node: int) -> list[tuple[int, int, float]]:
        """``(class_index, entry_index, weight)`` of each entity that ends at a node.

        ``entry_index`` is the position in the canonical class; entries that sound alike share a node.
        """
        if not 0 <= node < self.num_nodes:
            raise IndexError(f"node {node} of a tree with {self.num_nodes} nodes")
        here = slice(int(self.entry_offset[node]), int(self.entry_offset[node + 1]))
        kind = int(self.node_class[node])
        pairs = zip(self.entry_index[here].tolist(), self.entry_weight[here].tolist(), strict=True)
        return [(kind, entry, weight) for entry, weight in pairs]

    def share_logp(self, node: int, tokens: Sequence[int] | None = None) -> float:
        """Log of the share of its class's weight that the entity of ``tokens``, which ends at ``node``, holds.

        Without tokens, that of all entities ending there; in a tree that is the same.
        """
        if self.entry_offset[node] < self.entry_offset[node + 1]:
            here = slice(int(self.entry_offset[node]), int(self.entry_offset[node + 1]))
            total = self._class_weight[int(self.node_class[node])]
            return float(np.log(self.entry_weight[here].sum() / total))
        if tokens is None:
            with np.errstate(divide="ignore"):
                return float(np.log(self._reach[node])) + float(self.end_logp[node])
        at, logp = self.root[self.node_class[node]], 0.0
        for token in tokens:
            at, arc = self.lookup(at, torch.tensor(token))
            logp += float(arc)
        if int(at) != node:
            raise ValueError(f"tokens {list(tokens)} lead to node {int(at)}, not to node {node}")
        return logp + float(self.end_logp[node])

    @cached_property
    def _class_weight(self) -> Floats:
        """``(C,)`` weight of all listed entries of each class."""
        of_entry = np.repeat(self.node_class.cpu().numpy(), np.diff(self.entry_offset))
        return np.bincount(of_entry, self.entry_weight, minlength=self.num_classes).astype(np.float64)

    @cached_property
    def _reach(self) -> Floats:
        """``(M,)`` probability of coming through each node from the root of its class."""
        source, prob = self.arc_key // self.vocab_size, self.arc_logp.double().exp()
        wave = torch.zeros(self.num_nodes, dtype=torch.float64, device=prob.device)
        wave[self.root[self.root >= 0]] = 1.0
        total = wave.clone()
        while bool(wave.any()):
            wave = torch.zeros_like(wave).index_add_(0, self.arc_target, wave[source] * prob)
            total += wave
        reach: Floats = total.cpu().numpy()
        return reach

    def to(self, device: torch.device | str) -> PrefixTree:
        """The same tree with its tensors on ``device``; the entry lists stay with the CPU."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = value.to(device) if isinstance(value, Tensor) else value
        return PrefixTree(**moved)


def _build(classes: Sequence[EncodedClass], vocab_size: int, num_classes: int) -> PrefixTree:
    listed = [c for c in classes if c.graph is None]
    trees = grow([c.sequences for c in listed], vocab_size)
    roots, nodes = len(listed), len(trees.mass)
    target = np.arange(roots, nodes)
    with np.errstate(divide="ignore"):
        end_logp = np.log(trees.end_mass) - np.log(trees.mass)
        on_mass = np.bincount(trees.source, trees.mass[target], minlength=nodes)
        on_logp = np.log(on_mass) - np.log(trees.mass)
    of_node = np.array([c.index for c in listed], dtype=np.int64)[trees.tree]
    parts = [
        _Part(
            trees.source * vocab_size + trees.token,
            target,
            np.log(trees.mass[target]) - np.log(trees.mass[trees.source]),
            end_logp,
            on_logp,
            of_node,
        )
    ]
    root = np.full(num_classes, -1, dtype=np.int64)
    root[[c.index for c in listed]] = np.arange(roots)
    for one in classes:
        if one.graph is not None:
            root[one.index] = nodes
            parts.append(_part(one.graph, one.index, nodes, vocab_size))
            nodes += len(one.graph.end_logp)
    whole = _Part(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    root_target, root_logp = _root_table(root, whole, vocab_size)
    cost = np.zeros(num_classes, dtype=np.float32)
    cost[[c.index for c in classes]] = [c.cost for c in classes]
    return PrefixTree(
        vocab_size=vocab_size,
        num_classes=num_classes,
        arc_key=torch.from_numpy(whole.key),
        arc_target=torch.from_numpy(whole.target),
        arc_logp=torch.from_numpy(whole.arc_logp.astype(np.float32)),
        end_logp=torch.from_numpy(whole.end_logp.astype(np.float32)),
        node_class=torch.from_numpy(whole.node_class),
        on_logp=torch.from_numpy(whole.on_logp.astype(np.float32)),
        root=torch.from_numpy(root),
        root_target=torch.from_numpy(root_target),
        root_logp=torch.from_numpy(root_logp),
        class_cost=torch.from_numpy(cost),
        entry_offset=np.concatenate(([0], np.cumsum(np.bincount(trees.node, minlength=nodes)))),
        entry_index=trees.entry,
        entry_weight=trees.weight,
    )


class _Part(NamedTuple):
    """Arcs and nodes of some classes."""

    key: Ints
    target: Ints
    arc_logp: Floats
    end_logp: Floats
    on_logp: Floats
    node_class: Ints


def _part(graph: ClassGraph, index: int, first: int, vocab_size: int) -> _Part:
    """A class's graph with its nodes from ``first`` on."""
    if len(graph.token) and graph.token.max() >= vocab_size:
        raise ValueError(f"token {graph.token.max()} in a graph over {vocab_size} tokens")
    node_class = np.full(len(graph.end_logp), index, dtype=np.int64)
    key = (graph.source + first) * vocab_size + graph.token
    return _Part(key, graph.target + first, graph.arc_logp, graph.end_logp, graph.on_logp, node_class)


def _root_table(root: Ints, arcs: _Part, vocab_size: int) -> tuple[Ints, npt.NDArray[np.float32]]:
    """The arcs of the roots as tables ``(C, V)``."""
    target = np.full((len(root), vocab_size), -1, dtype=np.int64)
    logp = np.full((len(root), vocab_size), -np.inf, dtype=np.float32)
    for index in np.flatnonzero(root >= 0):
        first, last = np.searchsorted(arcs.key, [root[index] * vocab_size, (root[index] + 1) * vocab_size])
        tokens = arcs.key[first:last] % vocab_size
        target[index, tokens] = arcs.target[first:last]
        logp[index, tokens] = arcs.arc_logp[first:last]
    return target, logp
