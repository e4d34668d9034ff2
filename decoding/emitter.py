"""What a model family offers to a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lm.language_model import ContextStore


@dataclass(frozen=True)
class FrameScores:
    """Scores of one frame for every hypothesis of a beam, natural logs.

    Attributes:
        blank_logp: ``(B, K)``.
        label: ``(B, K, k)`` scores of the frame's candidate tokens without any language model's part.
    """

    blank_logp: Tensor
    label: Tensor


class FrameSynchronous(Protocol):
    """A family whose hypotheses move through the frames together: CTC, RNN-T, FNT, TAED.

    Like a ``Scorer``, it keeps one integer of state per hypothesis.

    Attributes:
        num_tokens: V.
        lengths: ``(B,)`` encoder frames of each utterance.
        tokens: ``(B, T, k)`` candidate tokens of each frame, best first; k = V when nothing is left out.
        evidence: ``(B, T, k)`` how well each candidate fits its frame, whatever the hypothesis.
        lm_scale: weight of ``lm_logp``.
        contexts: the store that the states are contexts of, for a class grammar to share; None without one.
    """

    num_tokens: int
    lengths: Tensor
    tokens: Tensor
    evidence: Tensor
    lm_scale: float
    contexts: ContextStore | None

    def start(self) -> Tensor:
        """First state of each utterance ``(B,)`` int64."""
        ...

    def score(self, frame: int, state: Tensor) -> FrameScores:
        """Scores at ``frame`` after the states ``(B, K)``."""
        ...

    def lm_logp(self, frame: int, state: Tensor) -> Tensor | None:
        """The model's own language model on the candidates ``(B, K, k)``, not yet scaled; None without one.

        A class grammar replaces it; otherwise the search adds ``lm_scale`` times it.
        """
        ...

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """States ``(M,)`` after each of ``tokens`` ``(M,)``."""
        ...
