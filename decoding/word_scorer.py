"""Word-level language models as scorers of subword tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lm.errors import ConfigError


class WordScorer:
    """A word-level language model as a scorer of tokens: a word counts once the next begins, or at the end.

    For n-best lists and lattices; a state is looked up in Python, too slow for the first pass. See
    ``decoding.scorer.Scorer``.

    Args:
        logp: log probabilities of words after histories, ``(history, word)`` pairs of a batch.
        words: the words that the tokens of one word spell.
        starts_word: ``(V,)`` tokens that start a word.
        order: words a probability depends on, its own included; histories are cut to it, so that lattice paths
            which agree on them meet again. None keeps all.
        end: the word for the end of a sentence, asked after the last one; None for models without.
        name: label of its part.
        weight: multiplies its scores.
    """

    def __init__(
        self,
        logp: Callable[[Sequence[tuple[tuple[str, ...], str]]], Sequence[float]],
        words: Callable[[Sequence[int]], Sequence[str]],
        starts_word: Tensor,
        order: int | None = None,
        end: str | None = None,
        name: str = "words",
        weight: float = 1.0,
    ) -> None:
        if order is not None and order < 1:
            raise ConfigError(f"order {order}", "1 or more, or None", "give the order of the word model")
        self.name, self.weight = name, weight
        self._logp, self._words, self._end = logp, words, end
        self._starts = starts_word
        self._history = order - 1 if order is not None else None
        self._states: list[tuple[tuple[str, ...], tuple[int, ...]]] = [((), ())]
        self._number = {self._states[0]: 0}
        self._closed: dict[int, tuple[float, tuple[str, ...]]] = {}

    def start(self, utterances: int) -> Tensor:
        """See ``Scorer.start``."""
        return torch.zeros(utterances, dtype=torch.long, device=self._starts.device)

    def score(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``Scorer.score``."""
        closing = self._starts[tokens]
        closed = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        rows = closing.any(-1)
        values = [self._closed[s][0] for s in self._close(state[rows].tolist())]
        closed[rows] = torch.tensor(values, dtype=torch.float64, device=state.device)
        return torch.where(closing, closed[:, None], 0.0)

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``Scorer.advance``."""
        starting = self._starts[tokens].tolist()
        before, after = state.tolist(), list[int]()
        self._close([s for s, starts in zip(before, starting, strict=True) if starts])
        for s, token, starts in zip(before, tokens.tolist(), starting, strict=True):
            history, pending = self._states[s]
            new = (self._closed[s][1], (token,)) if starts else (history, (*pending, token))
            if new not in self._number:
                self._number[new] = len(self._states)
                self._states.append(new)
            after.append(self._number[new])
        return torch.tensor(after, dtype=torch.long, device=state.device)

    def finish(self, state: Tensor) -> Tensor:
        """See ``Scorer.finish``."""
        states = self._close(state.tolist())
        total = [self._closed[s][0] for s in states]
        if self._end is not None:
            ends = self._logp([(self._closed[s][1], self._end) for s in states]) if states else []
            total = [value + float(end) for value, end in zip(total, ends, strict=True)]
        return torch.tensor(total, dtype=torch.float64, device=state.device)

    def _close(self, states: list[int]) -> list[int]:
        """Score the words that end in ``states``, each state once in the life of the scorer."""
        asked: list[tuple[tuple[str, ...], str]] = []
        counts: dict[int, int] = {}
        for state in dict.fromkeys(states):
            if state in self._closed:
                continue
            history, pending = self._states[state]
            found = self._words(pending) if pending else ()
            for word in found:
                asked.append((history, word))
                history = self._cut((*history, word))
            counts[state] = len(found)
            self._closed[state] = (0.0, history)
        values = iter([float(value) for value in self._logp(asked)] if asked else [])
        for state, count in counts.items():
            self._closed[state] = (sum(next(values) for _ in range(count)), self._closed[state][1])
        return states

    def _cut(self, history: tuple[str, ...]) -> tuple[str, ...]:
        if self._history is None:
            return history
        return history[len(history) - min(self._history, len(history)) :]
