"""Token sequences as prefix trees: nodes numbered level by level, weights summed from the leaves up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Sequences(NamedTuple):
    """S token sequences, one of each spoken form; sequence s is ``tokens[offsets[s]:offsets[s + 1]]``.

    ``entry`` and ``weight`` are ``(S,)``: the entry's position in its class, the sequence's share of its weight.
    """

    tokens: Ints
    offsets: Ints
    entry: Ints
    weight: Floats


class Forest(NamedTuple):
    """One tree for each list of sequences: M nodes, the first ones the roots, and A = M - roots arcs.

    Arc a leads to node roots + a; ``source`` and ``token`` are ``(A,)`` and rise together.

    Attributes:
        sizes: arcs of each level.
        tree: ``(M,)`` which tree a node belongs to.
        node: ``(S,)`` last node of each sequence, the sequences ordered by node, entry and weight.
        entry: ``(S,)`` their entries.
        weight: ``(S,)`` their weights.
        end_mass: ``(M,)`` weight of the sequences that end at a node.
        mass: ``(M,)`` weight of those that end at it or below.
    """

    source: Ints
    token: Ints
    sizes: list[int]
    tree: Ints
    node: Ints
    entry: Ints
    weight: Floats
    end_mass: Floats
    mass: Floats


def grow(lists: Sequence[Sequences], vocab_size: int) -> Forest:
    """The trees of several lists; the order of their sequences never shows.

    Nodes are numbered level by level, in the order of their parents and tokens.
    """
    node, keys, trees = _number(lists, vocab_size)
    roots, nodes = len(lists), sum(map(len, trees))
    key = join(keys)
    source = key // vocab_size
    entry = join([one.entry for one in lists])
    weight = np.concatenate([np.empty(0, dtype=np.float64), *(one.weight for one in lists)])
    # Sums of floats depend on their order, so the order must not be that of the lists.
    order = np.lexsort((weight, entry, node))
    node, entry, weight = node[order], entry[order], weight[order]
    end_mass: Floats = np.bincount(node, weight, minlength=nodes).astype(np.float64)
    sizes = [len(level) for level in keys]
    mass = _mass(end_mass, source, sizes, roots)
    return Forest(source, key % vocab_size, sizes, join(trees), node, entry, weight, end_mass, mass)


def join(parts: Sequence[Ints]) -> Ints:
    """All parts one after another; integers even where there are none."""
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def _number(lists: Sequence[Sequences], vocab_size: int) -> tuple[Ints, list[Ints], list[Ints]]:
    """The last node of each sequence; arc keys into each level but the roots'; trees of each level's nodes."""
    tokens = join([one.tokens for one in lists])
    length = join([np.diff(one.offsets) for one in lists])
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise ValueError(f"tokens {tokens.min()}..{tokens.max()} in a tree over {vocab_size} tokens")
    start = np.cumsum(length) - length
    node = np.repeat(np.arange(len(lists)), [len(one.entry) for one in lists])
    trees = [np.arange(len(lists), dtype=np.int64)]
    keys: list[Ints] = []
    first, nodes = 0, len(lists)
    for depth in range(int(length.max(initial=0))):
        going = np.flatnonzero(length > depth)
        key, child = np.unique(node[going] * vocab_size + tokens[start[going] + depth], return_inverse=True)
        node[going] = nodes + child
        keys.append(key)
        trees.append(trees[-1][key // vocab_size - first])
        first, nodes = nodes, nodes + len(key)
    return node, keys, trees


def _mass(end_mass: Floats, source: Ints, sizes: Sequence[int], roots: int) -> Floats:
    mass = end_mass.copy()
    last = len(source)
    for arcs in reversed(sizes):
        level = slice(last - arcs, last)
        np.add.at(mass, source[level], mass[roots + last - arcs : roots + last])
        last -= arcs
    return mass
