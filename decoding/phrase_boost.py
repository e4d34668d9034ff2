"""Phrase boosting with batched Aho-Corasick automata.

The automaton of k2/sherpa's context graph, with two differences. First, the running total of a hypothesis is
always the scores of the phrases it has completed plus the promise ``phi`` of the match it is in. (In the
original, a hypothesis in the end state of a phrase carries that phrase twice, which misleads pruning and
partial results.) Second, what is promised is a function of the state, so it is taken back in full wherever a
match breaks off, whatever prefixes and bonuses the phrases share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lm.errors import EntityListError

MAX_INHERITED = 32  # arcs a state copies from its failure state; where there are more, it hops there instead
NO_KEY = torch.iinfo(torch.int64).max  # ends every key table, so a search never runs off its end


@dataclass(frozen=True)
class BoostGraph:
    """An Aho-Corasick automaton over token ids in flat tensors; state 0 is the root.

    S states, A arcs. A state has the arcs of its own trie node and copies those of its failure state, unless
    they are more than ``MAX_INHERITED``: then that state becomes its ``hub``. A token without an arc is
    looked up at the hub next and last of all at the root, so the table stays small whatever the phrases are.
    """

    vocab_size: int
    """Token ids run from 0 to ``vocab_size - 1``."""
    keys: Tensor
    """``(A + 1,)`` int64, rising: ``state * vocab_size + token`` of every arc but the root's; ``NO_KEY``."""
    targets: Tensor
    """``(A + 1,)`` int64: state an arc leads to."""
    begin: Tensor
    """``(S + 1,)`` int64: where the arcs of each state begin among ``keys``, and where the last ones end."""
    root: Tensor
    """``(V,)`` int64: state after a token at the root."""
    hub: Tensor
    """``(S,)`` int64: state to look at next for a token without an arc; 0 when only the root is left."""
    hops: int
    """How many hubs lie between a state and the root, at most."""
    phi: Tensor
    """``(S,)``: promise of the match under way: its highest bonus a token since its last phrase end."""
    output: Tensor
    """``(S,)``: summed scores of the phrases that end in this state."""

    @classmethod
    def build(cls, phrases: Sequence[tuple[Sequence[int], float]], vocab_size: int) -> BoostGraph:
        """Build from ``(token ids, bonus per token)`` pairs; a completed phrase scores ``bonus * length``.

        Order does not matter, and of a phrase given twice the higher bonus counts.
        ``vocab_size`` must cover every token that a search will show (V + C where class tags pass through).

        Raises:
            EntityListError: a phrase has no tokens or one outside the vocabulary, or a bonus is not finite.
        """
        tokens, lengths, bonus = _flatten(phrases, vocab_size)
        trie = _grow(tokens, lengths, bonus, vocab_size)
        fail = _failure_links(trie, vocab_size)
        keys, targets, hub, hops = _complete(trie, fail, vocab_size)
        own = torch.where(trie.end > -math.inf, trie.end * trie.depth, 0.0)
        output = own.clone()
        for first, last in trie.levels:
            output[first:last] += output[fail[first:last]]
        matched = _terminal_depth(trie)
        phi = torch.where(trie.depth > matched, trie.best * (trie.depth - matched), 0.0)
        begin = torch.searchsorted(keys, torch.arange(len(phi) + 1) * vocab_size)
        root = _root_table(trie, vocab_size)
        return cls(vocab_size, keys, targets, begin, root, hub, hops, phi.float(), output.float())


class PhraseBoost:
    """Scores phrases while they are being said; a ``Scorer`` over one or many ``BoostGraph``s.

    The total over a finished hypothesis is exactly the summed scores of all phrase occurrences in it,
    overlapping ones included.

    Args:
        graphs: one graph an utterance of the batch, or a single graph that all utterances share. A graph
            named twice is stored once.
        weight: multiplies the scores (applied by the search).
        name: label of its part in ``Hypothesis.scores``.
        device: where the tables, and so all states, live.
        reference: take every step in tensors, also on a CPU.
    """

    def __init__(
        self,
        graphs: Sequence[BoostGraph],
        weight: float,
        name: str = "boost",
        device: torch.device | str = "cpu",
        reference: bool = False,
    ) -> None:
        self.name = name
        self.weight = weight
        if not graphs:
            raise EntityListError(
                "no boost graph", "one for all utterances or one for each", "build one from []"
            )
        sizes = sorted({graph.vocab_size for graph in graphs})
        if len(sizes) > 1:
            raise EntityListError(
                f"boost graphs over {sizes} tokens",
                "one vocabulary size",
                "build all graphs with one tokenizer",
            )
        self._vocab_size = sizes[0]
        distinct = list({id(graph): graph for graph in graphs}.values())
        states = torch.tensor([len(graph.phi) for graph in distinct])
        first = (states.cumsum(0) - states).tolist()
        place = {id(graph): root for graph, root in zip(distinct, first, strict=True)}
        arena = list(zip(distinct, first, strict=True))
        self._starts = torch.tensor([place[id(graph)] for graph in graphs], device=device)
        keys = [graph.keys[:-1] + root * self._vocab_size for graph, root in arena]
        self._keys = torch.cat([*keys, torch.tensor([NO_KEY])]).to(device)
        targets = [graph.targets[:-1] + root for graph, root in arena]
        self._targets = torch.cat([*targets, torch.tensor([0])]).to(device)
        arcs = torch.tensor([len(each) for each in keys])
        before = (arcs.cumsum(0) - arcs).tolist()
        begin = [graph.begin[:-1] + arc for graph, arc in zip(distinct, before, strict=True)]
        self._begin = torch.cat([*begin, arcs.sum()[None]]).to(device)
        self._root = torch.stack([graph.root + root for graph, root in arena]).to(device)
        self._hub = torch.cat([graph.hub + root for graph, root in arena]).to(device)
        self._graph = torch.arange(len(distinct)).repeat_interleave(states).to(device)
        self._phi = torch.cat([graph.phi for graph in distinct]).to(device)
        self._entry = torch.cat([graph.phi + graph.output for graph in distinct]).to(device)
        self._hops = max(graph.hops for graph in distinct)
        behind = (self._entry, self._phi, self._entry[self._targets], self._entry[self._root])
        tables = (self._keys, self._targets, self._begin, self._root, self._graph, self._hub)
        self._tables: list[Any] | None = None
        self._scores: list[Any] = []
        if not reference and not self._keys.is_cuda:
            self._tables = [each.contiguous().numpy() for each in tables]
            self._scores = [each.numpy() for each in behind]

    def start(self, utterances: int) -> Tensor:
        """First states ``(B,)``.

        Raises:
            EntityListError: there are several graphs but not one for each utterance.
        """
        if len(self._starts) == 1:
            return self._starts.repeat(utterances)
        if len(self._starts) != utterances:
            raise EntityListError(
                f"{len(self._starts)} boost graphs for {utterances} utterances",
                "one graph, or one an utterance",
                "give as many graphs as the batch has utterances",
            )
        return self._starts.clone()

    def score(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Change of promise plus phrases completed, for ``tokens`` ``(N, k)`` after ``state`` ``(N,)``."""
        return self.score_beams(state[:, None], tokens)[:, 0]

    def score_beams(self, state: Tensor, tokens: Tensor) -> Tensor:
        """The same ``(B, K, k)`` for ``tokens`` ``(B, k)`` that are before all hypotheses ``state`` ``(B, K)``."""
        if self._tables is not None:
            from decoding import boost_kernel

            found = torch.empty((*state.shape, tokens.shape[1]))
            function: Any = boost_kernel.score
            asked = state.contiguous().numpy(), tokens.contiguous().numpy()
            function(*asked, *self._tables, self._hops, *self._scores, found.numpy())
            return found
        flat = state.flatten()
        each = tokens[:, None].expand(-1, state.shape[1], -1).flatten(0, 1)
        found = self._entry[self._step(flat, each)] - self._phi[flat][:, None]
        return found.view(*state.shape, -1)

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """States ``(M,)`` after ``tokens`` ``(M,)`` were appended to ``state`` ``(M,)``."""
        return self._step(state, tokens[:, None])[:, 0]

    def finish(self, state: Tensor) -> Tensor:
        """Takes back the promise of unfinished matches, ``(N,)``."""
        return -self._phi[state]

    def _step(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Next states ``(N, k)``: arcs of the state, of its hubs, of the root; the first that fits."""
        if self._tables is not None:
            return self._step_compiled(state, tokens, self._tables)
        after = self._root[self._graph[state][:, None], tokens]
        found = torch.zeros_like(tokens, dtype=torch.bool)
        for _ in range(self._hops + 1):
            key = state[:, None] * self._vocab_size + tokens
            at = torch.searchsorted(self._keys, key)
            new = (self._keys[at] == key) & ~found
            after = torch.where(new, self._targets[at], after)
            found |= new
            state = self._hub[state]
        return after

    def _step_compiled(self, state: Tensor, tokens: Tensor, tables: list[Any]) -> Tensor:
        from decoding import boost_kernel

        after = torch.empty(tokens.shape, dtype=torch.long)
        function: Any = boost_kernel.step
        asked = state.contiguous().numpy(), tokens.contiguous().numpy()
        function(*asked, *tables, self._hops, after.numpy())
        return after


@dataclass(frozen=True)
class _Trie:
    """Nodes in breadth-first order, so the arc into node ``i`` is ``keys[i - 1]``, and ``keys`` rise."""

    keys: Tensor  # (S - 1,) parent * vocab_size + token
    parent: Tensor  # (S,) -1 at the root
    token: Tensor  # (S,) -1 at the root
    depth: Tensor  # (S,)
    best: Tensor  # (S,) float64: highest bonus of the phrases through a node
    end: Tensor  # (S,) float64: bonus of the phrase that ends here, -inf where none does
    levels: list[tuple[int, int]]  # node range of depth 1, 2, ...


def _flatten(
    phrases: Sequence[tuple[Sequence[int], float]], vocab_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """All tokens in a row, phrase lengths, bonuses; checked."""
    lengths = torch.tensor([len(ids) for ids, _ in phrases], dtype=torch.int64)
    bonus = torch.tensor([score for _, score in phrases], dtype=torch.float64)
    tokens = torch.tensor(list(chain.from_iterable(ids for ids, _ in phrases)), dtype=torch.int64)
    empty = (lengths == 0).nonzero()
    if len(empty):
        raise EntityListError(
            f"phrase {int(empty[0])} has no tokens", "at least one", "drop phrases that encode to nothing"
        )
    wrong = ((tokens < 0) | (tokens >= vocab_size)).nonzero()
    if len(wrong):
        raise EntityListError(
            f"a phrase holds token {int(tokens[wrong[0]])}",
            f"ids from 0 to {vocab_size - 1}",
            "encode the phrases with the tokenizer of this model",
        )
    if not bool(bonus.isfinite().all()):
        bad = int((~bonus.isfinite()).nonzero()[0])
        raise EntityListError(f"phrase {bad} has bonus {float(bonus[bad])}", "a finite number", "correct it")
    return tokens, lengths, bonus


def _grow(tokens: Tensor, lengths: Tensor, bonus: Tensor, vocab_size: int) -> _Trie:
    """The trie of all phrases, one level at a time."""
    offset = lengths.cumsum(0) - lengths
    node = torch.zeros_like(lengths)
    keys: list[Tensor] = []
    best = [torch.tensor([-math.inf], dtype=torch.float64)]
    levels: list[tuple[int, int]] = []
    total = 1
    alive = torch.arange(len(lengths))
    for depth in range(int(lengths.max()) if len(lengths) else 0):
        alive = alive[lengths[alive] > depth]
        level, inverse = torch.unique(
            node[alive] * vocab_size + tokens[offset[alive] + depth], return_inverse=True
        )
        node[alive] = total + inverse
        keys.append(level)
        best.append(_highest(len(level), inverse, bonus[alive]))
        levels.append((total, total + len(level)))
        total += len(level)
    arcs = torch.cat([*keys, torch.empty(0, dtype=torch.int64)])
    sizes = torch.tensor([1] + [last - first for first, last in levels])
    return _Trie(
        keys=arcs,
        parent=torch.cat([torch.tensor([-1]), arcs // vocab_size]),
        token=torch.cat([torch.tensor([-1]), arcs % vocab_size]),
        depth=torch.arange(len(sizes)).repeat_interleave(sizes),
        best=torch.cat(best),
        end=_highest(total, node, bonus),
        levels=levels,
    )


def _highest(size: int, index: Tensor, values: Tensor) -> Tensor:
    """Highest of the ``values`` at each index, -inf where there is none."""
    return torch.full((size,), -math.inf, dtype=torch.float64).scatter_reduce(0, index, values, "amax")


def _child(trie: _Trie, key: Tensor) -> Tensor:
    """Node that an arc key leads to, 0 where the trie has no such arc."""
    if not len(trie.keys):
        return torch.zeros_like(key)
    at = torch.searchsorted(trie.keys, key).clamp(max=len(trie.keys) - 1)
    return torch.where(trie.keys[at] == key, at + 1, 0)


def _failure_links(trie: _Trie, vocab_size: int) -> Tensor:
    """``(S,)``: the longest proper suffix of a node's path that is a path too."""
    fail = torch.zeros_like(trie.depth)
    for first, last in trie.levels[1:]:
        nodes = torch.arange(first, last)
        token = trie.token[nodes]
        suffix = fail[trie.parent[nodes]]
        while len(nodes):
            child = _child(trie, suffix * vocab_size + token)
            fail[nodes] = child
            open_ = (child == 0) & (suffix != 0)
            nodes, token, suffix = nodes[open_], token[open_], fail[suffix[open_]]
    return fail


def _complete(trie: _Trie, fail: Tensor, vocab_size: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Arcs of every state but the root with those it copies: ``keys``, ``targets``, ``hub`` and ``hops``."""
    states = len(trie.depth)
    hub, hops = torch.zeros_like(fail), torch.zeros_like(fail)
    begin, count = torch.zeros_like(fail), torch.zeros_like(fail)
    edges = torch.searchsorted(trie.keys, torch.arange(states + 1) * vocab_size)
    keys = targets = torch.empty(0, dtype=torch.int64)
    for first, last in trie.levels:
        own = torch.arange(int(edges[first]), int(edges[last]))
        suffix = fail[first:last]
        copies = count[suffix] <= MAX_INHERITED
        hub[first:last] = torch.where(copies, hub[suffix], suffix)
        hops[first:last] = torch.where(copies, hops[suffix], hops[suffix] + 1)
        heir, arc = _ragged(begin[suffix], torch.where(copies, count[suffix], 0))
        inherited = (first + heir) * vocab_size + keys[arc] % vocab_size
        new = _child(trie, inherited) == 0
        level_keys, order = torch.cat([trie.keys[own], inherited[new]]).sort()
        targets = torch.cat([targets, torch.cat([own + 1, targets[arc[new]]])[order]])
        bounds = torch.searchsorted(level_keys, torch.arange(first, last + 1) * vocab_size)
        begin[first:last] = len(keys) + bounds[:-1]
        count[first:last] = bounds[1:] - bounds[:-1]
        keys = torch.cat([keys, level_keys])
    keys, targets = torch.cat([keys, torch.tensor([NO_KEY])]), torch.cat([targets, torch.tensor([0])])
    return keys, targets, hub, int(hops.max())


def _ragged(begin: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Row and position of every element of the ranges ``begin .. begin + count``."""
    row = torch.arange(len(count)).repeat_interleave(count)
    within = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
    return row, begin[row] + within


def _terminal_depth(trie: _Trie) -> Tensor:
    """``(S,)``: length of the longest phrase that is a prefix of a node's path, itself included."""
    matched = torch.where(trie.end > -math.inf, trie.depth, 0)
    for first, last in trie.levels:
        matched[first:last] = torch.maximum(matched[first:last], matched[trie.parent[first:last]])
    return matched


def _root_table(trie: _Trie, vocab_size: int) -> Tensor:
    """``(V,)``: state after each token at the root."""
    table = torch.zeros(vocab_size, dtype=torch.int64)
    if trie.levels:
        first, last = trie.levels[0]
        table[trie.token[first:last]] = torch.arange(first, last)
    return table
