"""A catalog as a prefix tree in flat tensors: which tokens may follow inside an entity, how likely each is.

Inside a class the probability of an entity is its share of the class's weight, spread over its tokens (our
reading of the class model of C-FNT, Wang et al., arXiv 2309.07648): ``P_in(v|q) = mass(child) / mass(q)`` and
``P_in(END|q) = end weight / mass(q)``, where mass is the weight of all entities at or below a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lm.classes import EncodedCatalog, EncodedClass

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """The trees of all classes in one arena of M nodes with A arcs; V surface tokens, C classes.

    Nodes are numbered level by level, so they do not depend on the order of the lists.
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

    def share_logp(self, node: int) -> float:
        """Log of the share of its class's weight that the entities ending at ``node`` hold."""
        inside = self.node_class.numpy() == int(self.node_class[node])
        total = float(np.repeat(inside, np.diff(self.entry_offset)) @ self.entry_weight)
        here = slice(int(self.entry_offset[node]), int(self.entry_offset[node + 1]))
        return float(np.log(self.entry_weight[here].sum() / total))

    def to(self, device: torch.device | str) -> PrefixTree:
        """The same tree with its tensors on ``device``; the entry lists stay with the CPU."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = value.to(device) if isinstance(value, Tensor) else value
        return PrefixTree(**moved)


def _build(classes: Sequence[EncodedClass], vocab_size: int, num_classes: int) -> PrefixTree:
    node, keys, node_class = _grow(classes, vocab_size)
    roots, nodes = len(classes), sum(map(len, node_class))
    arc_key = _join(keys)
    source, target = arc_key // vocab_size, np.arange(roots, nodes)

    entry = _join([c.entry for c in classes])
    weight = np.concatenate([np.empty(0, dtype=np.float64), *(c.weight for c in classes)])
    # Sums of floats depend on their order, so the order must not be that of the lists.
    order = np.lexsort((weight, entry, node))
    node, entry, weight = node[order], entry[order], weight[order]
    end_mass: Floats = np.bincount(node, weight, minlength=nodes).astype(np.float64)
    mass = _mass(end_mass, source, [len(key) for key in keys], roots)
    with np.errstate(divide="ignore"):
        end_logp = np.log(end_mass) - np.log(mass)
        on_logp = np.log(np.bincount(source, mass[target], minlength=nodes)) - np.log(mass)
    arc_logp = (np.log(mass[target]) - np.log(mass[source])).astype(np.float32)

    of_root = source < roots
    root_class, root_token = _join(node_class[:1])[source[of_root]], arc_key[of_root] % vocab_size
    root = np.full(num_classes, -1, dtype=np.int64)
    root[[c.index for c in classes]] = np.arange(roots)
    root_target = np.full((num_classes, vocab_size), -1, dtype=np.int64)
    root_target[root_class, root_token] = target[of_root]
    root_logp = np.full((num_classes, vocab_size), -np.inf, dtype=np.float32)
    root_logp[root_class, root_token] = arc_logp[of_root]
    return PrefixTree(
        vocab_size=vocab_size,
        num_classes=num_classes,
        arc_key=torch.from_numpy(arc_key),
        arc_target=torch.from_numpy(target),
        arc_logp=torch.from_numpy(arc_logp),
        end_logp=torch.from_numpy(end_logp.astype(np.float32)),
        node_class=torch.from_numpy(_join(node_class)),
        on_logp=torch.from_numpy(on_logp.astype(np.float32)),
        root=torch.from_numpy(root),
        root_target=torch.from_numpy(root_target),
        root_logp=torch.from_numpy(root_logp),
        entry_offset=np.concatenate(([0], np.cumsum(np.bincount(node, minlength=nodes)))),
        entry_index=entry,
        entry_weight=weight,
    )


def _grow(classes: Sequence[EncodedClass], vocab_size: int) -> tuple[Ints, list[Ints], list[Ints]]:
    """Number the nodes level by level, in the order of their parents and tokens.

    Returns the last node of each sequence; the arc keys into each level but the roots'; and the classes of
    each level's nodes. The arcs of all levels, one after another, are sorted, and arc a leads to node
    (number of roots) + a.
    """
    tokens = _join([c.tokens for c in classes])
    length = _join([np.diff(c.offsets) for c in classes])
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise ValueError(f"tokens {tokens.min()}..{tokens.max()} in a tree over {vocab_size} tokens")
    start = np.cumsum(length) - length
    node = np.repeat(np.arange(len(classes)), [len(c.entry) for c in classes])
    node_class = [np.array([c.index for c in classes], dtype=np.int64)]
    keys: list[Ints] = []
    first, nodes = 0, len(classes)
    for depth in range(int(length.max(initial=0))):
        going = np.flatnonzero(length > depth)
        key, child = np.unique(node[going] * vocab_size + tokens[start[going] + depth], return_inverse=True)
        node[going] = nodes + child
        keys.append(key)
        node_class.append(node_class[-1][key // vocab_size - first])
        first, nodes = nodes, nodes + len(key)
    return node, keys, node_class


def _mass(end_mass: Floats, source: Ints, arcs_of_level: list[int], roots: int) -> Floats:
    """Weight at or below each node, summed from the leaves up."""
    mass = end_mass.copy()
    last = len(source)
    for arcs in reversed(arcs_of_level):
        level = slice(last - arcs, last)
        np.add.at(mass, source[level], mass[roots + last - arcs : roots + last])
        last -= arcs
    return mass


def _join(parts: Sequence[Ints]) -> Ints:
    # The empty array keeps the type where there are no parts.
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])
