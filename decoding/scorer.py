"""The protocol of every knowledge source that a search may stack.

A scorer's state is ONE integer per hypothesis: the id of a node (an LM context, a trie node, an automaton state)
in tables that the scorer keeps. So a search can gather, merge and prune hypotheses without knowing any scorer,
and re-ordering a beam costs one index operation whatever the scorer remembers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from decoding.beam import SCORERS


@runtime_checkable
class Scorer(Protocol):
    """Scores label candidates of hypotheses; blank is never scored.

    ``name`` labels its part in ``Hypothesis.scores``; ``weight`` multiplies what it returns.
    """

    name: str
    weight: float

    def start(self, utterances: int) -> Tensor:
        """First state of each utterance, ``(B,)`` int64."""
        ...

    def score(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Natural-log scores ``(N, k)`` of ``tokens`` ``(N, k)`` after ``state`` ``(N,)``."""
        ...

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """State ``(M,)`` after the token ``(M,)`` was appended to ``state`` ``(M,)``."""
        ...

    def finish(self, state: Tensor) -> Tensor:
        """Score ``(N,)`` added when the utterance ends in ``state`` ``(N,)``."""
        ...


def weighted_parts(scorers: Sequence[Scorer], state: Tensor, tokens: Tensor) -> Tensor:
    """Weighted parts ``(B, K, F, k, S)`` of scorers on ``tokens`` ``(B, F, k)``, after ``Beam.state``."""
    shape = (*state.shape[:2], *tokens.shape[1:])
    asked = tokens.flatten(1)
    scores = [_scores(s, state[..., SCORERS + i], asked).view(shape) for i, s in enumerate(scorers)]
    scores = [found if s.weight == 1 else s.weight * found for s, found in zip(scorers, scores, strict=True)]
    return scores[0].unsqueeze(-1) if len(scores) == 1 else torch.stack(scores, dim=-1)


def _scores(scorer: Scorer, state: Tensor, tokens: Tensor) -> Tensor:
    """Scores ``(B, K, k)`` of ``tokens`` ``(B, k)`` after each ``state`` ``(B, K)``.

    A scorer with a ``score_beams`` of these shapes takes the tokens of an utterance once for all its hypotheses.
    """
    together: Callable[[Tensor, Tensor], Tensor] | None = getattr(scorer, "score_beams", None)
    if together is not None:
        return together(state, tokens)
    return scorer.score(state.flatten(), tokens[:, None].expand(-1, state.shape[1], -1).flatten(0, 1))
