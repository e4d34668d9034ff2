"""Class-based language model: a proper distribution over surface strings (Brown et al. 1992; arXiv 2309.07648).

With w the history in which every finished entity is its tag, a sentence is derived token by token:

    outside:  P(v | w), or P(@c | w) · P_in(v | root of c) to enter an entity
    inside:   P_in(v | node), then P_in(END | node) to leave, w ← w + @c

where P is normalised over the surface tokens and the tags of the classes that have entries, and directly behind
an entity over tags and tokens that start a word. The probability of a string is the sum over its derivations;
over all strings of n tokens, with what is still inside an entity counted, these sum to one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lm.language_model import LanguageModel
from lm.prefix_tree import PrefixTree


@dataclass(frozen=True)
class Derivation:
    """One way to have read a prefix: ``history`` is a context of the model, ``node`` a tree node or -1 outside."""

    history: int
    node: int
    behind_entity: bool


_Add = Callable[[float, Derivation], None]


class ClassLM:
    """Exact scores of a class-based language model, for perplexity and as the reference of the search.

    Args:
        model: language model over V tokens and C tags.
        tree: the entity lists.
        starts_word: ``(V,)`` tokens that start a word.
        bonus: nats added to every tag's log odds before normalisation; a class's own cost is taken off.
    """

    def __init__(
        self, model: LanguageModel, tree: PrefixTree, starts_word: Tensor, bonus: float = 0.0
    ) -> None:
        self._tree = tree
        self._contexts = model.contexts()
        self._num_tokens = model.num_tokens
        self._starts_word = starts_word
        self._offset = torch.where((tree.root_target >= 0).any(-1), bonus - tree.class_cost, -torch.inf)

    @property
    def start(self) -> dict[Derivation, float]:
        """Derivations of the empty string with their log probabilities."""
        return {Derivation(int(self._contexts.start(1)), -1, False): 0.0}

    def advance(self, prefix: dict[Derivation, float], token: int) -> dict[Derivation, float]:
        """Derivations of the prefix with ``token`` appended; impossible ones are left out."""
        found: dict[Derivation, list[float]] = {}

        def add(logp: float, derivation: Derivation) -> None:
            if logp > -torch.inf:
                found.setdefault(derivation, []).append(logp)

        for derivation, logp in prefix.items():
            if derivation.node >= 0:
                self._follow(derivation.history, derivation.node, token, logp, add)
            else:
                self._outside(derivation, token, logp, add)
        return {d: float(torch.tensor(parts, dtype=torch.float64).logsumexp(0)) for d, parts in found.items()}

    def score_text(self, tokens: list[int]) -> float:
        """Log probability of ``tokens`` as a whole text: no entity is left unfinished."""
        prefix = self.start
        for token in tokens:
            prefix = self.advance(prefix, token)
        return _total([logp for d, logp in prefix.items() if d.node < 0])

    def prefix_logp(self, tokens: list[int]) -> float:
        """Log probability that a text starts with ``tokens``, the entity they may end in included."""
        prefix = self.start
        for token in tokens:
            prefix = self.advance(prefix, token)
        return _total(list(prefix.values()))

    def _outside(self, derivation: Derivation, token: int, logp: float, add: _Add) -> None:
        scores = self._contexts.score(torch.tensor(derivation.history)).double()
        surface = scores[: self._num_tokens]
        odds = scores[self._num_tokens :] + self._offset
        if derivation.behind_entity:
            surface = surface.masked_fill(~self._starts_word, -torch.inf)
        total = torch.cat((surface, odds)).logsumexp(0)
        history = int(self._contexts.advance(torch.tensor([derivation.history]), torch.tensor([token])))
        add(logp + float(surface[token] - total), Derivation(history, -1, False))
        for index, value in enumerate((odds - total).tolist()):
            root = self._tree.root[index]
            if root >= 0:
                self._follow(derivation.history, int(root), token, logp + value, add)

    def _follow(self, history: int, node: int, token: int, logp: float, add: _Add) -> None:
        """Take the arc of ``token`` inside an entity: go on, or leave behind it."""
        target, arc = self._tree.lookup(torch.tensor([node]), torch.tensor([token]))
        child = int(target)
        if child < 0:
            return
        logp += float(arc - self._tree.on_logp[node])
        add(logp + float(self._tree.on_logp[child]), Derivation(history, child, False))
        tag = self._num_tokens + int(self._tree.node_class[child])
        after = int(self._contexts.advance(torch.tensor([history]), torch.tensor([tag])))
        add(logp + float(self._tree.end_logp[child]), Derivation(after, -1, True))


def _total(logps: list[float]) -> float:
    return float(torch.tensor(logps, dtype=torch.float64).logsumexp(0)) if logps else -float("inf")
