"""Random lattices small enough to enumerate every path, and scorers with random tables."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from decoding.lattice import RECOMBINED, Draft, Lattice
from decoding.scorer import Scorer
from decoding.trace import BLANK, RawHypothesis

VOCAB = 4


def random_lattice(seed: int, nodes: int = 5, arcs: int = 9, spread: float = 1.0) -> Lattice:
    """A lattice in which every node is on some path; parallel arcs, blanks and several ends among them."""
    rng = np.random.default_rng(seed)
    graph = Draft()
    for node in range(1, nodes):
        graph.add_node()
        pairs = [(int(rng.integers(node)), node)]
        pairs += [tuple(sorted(rng.choice(nodes, 2, replace=False).tolist())) for _ in range(arcs // nodes)]
        for source, target in pairs:
            token = int(rng.integers(BLANK, VOCAB))
            label = (token, int(rng.integers(9)), float(-rng.random()), False, -1)
            graph.add(source, target, label, spread * rng.normal(size=3))
    ends = {nodes - 1} | {int(n) for n in rng.integers(nodes, size=2)}
    finals = {end: spread * rng.normal(size=3) for end in ends}
    return graph.finish(("model", "lm", RECOMBINED), finals).trimmed()


def all_paths(lattice: Lattice) -> Iterator[tuple[list[int], int]]:
    """Every path: its arcs and the node where it ends."""
    ends = set(lattice.final.tolist())
    open_: list[tuple[list[int], int]] = [([], 0)]
    while open_:
        path, node = open_.pop()
        if node in ends:
            yield path, node
        open_ += [([*path, int(a)], int(lattice.target[a])) for a in np.flatnonzero(lattice.source == node)]


def path_score(lattice: Lattice, path: list[int], node: int) -> float:
    ending = lattice.final_scores[lattice.final.tolist().index(node)]
    return float(lattice.scores[path].sum() + ending.sum())


def path_tokens(lattice: Lattice, path: list[int]) -> tuple[int, ...]:
    return tuple(int(lattice.token[a]) for a in path if lattice.token[a] != BLANK)


def distance(reference: Sequence[object], other: Sequence[object]) -> int:
    """Edit distance by its definition."""

    @functools.cache
    def least(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        swap = least(i - 1, j - 1) + (reference[i - 1] != other[j - 1])
        return min(swap, least(i - 1, j) + 1, least(i, j - 1) + 1)

    return least(len(reference), len(other))


class TableScorer:
    """A bigram from a random table, with a score for the end; may forbid pairs and start at an utterance's row."""

    def __init__(
        self, name: str, weight: float, seed: int, forbid: float = 0.0, per_utterance: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.name, self.weight = name, weight
        self.table = torch.randn(VOCAB + 4, VOCAB + 1, generator=generator)
        barred = torch.rand(self.table[:, :VOCAB].shape, generator=generator) < forbid
        self.table[:, :VOCAB].masked_fill_(barred, -torch.inf)
        self.per_utterance = per_utterance

    def start(self, utterances: int) -> Tensor:
        return VOCAB + torch.arange(utterances) * self.per_utterance

    def score(self, state: Tensor, tokens: Tensor) -> Tensor:
        return self.table[state[:, None], tokens]

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        return tokens.clone()

    def finish(self, state: Tensor) -> Tensor:
        return self.table[state, VOCAB]


def score_alone(scorer: Scorer, tokens: Sequence[int], utterance: int = 0, utterances: int = 1) -> float:
    """Weighted score of a token sequence, one token after the other."""
    state, total = scorer.start(utterances)[utterance : utterance + 1], 0.0
    for token in tokens:
        total += float(scorer.score(state, torch.tensor([[token]]))[0, 0])
        state = scorer.advance(state, torch.tensor([token]))
    return scorer.weight * (total + float(scorer.finish(state)))


def hypothesis(tokens: Sequence[int], score: float, **parts: float) -> RawHypothesis:
    """A hypothesis with one frame a token."""
    return RawHypothesis(
        tokens=tuple(tokens),
        frames=tuple(range(len(tokens))),
        token_logp=tuple(-0.1 for _ in tokens),
        score=score,
        parts=parts,
        spans=(),
    )
