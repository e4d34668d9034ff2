"""What a model family offers to a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lm.language_model import ContextStore


@dataclass(frozen=True)
class FrameScores:
    """Scores of some frames of each utterance for every hypothesis of a beam, natural logs.

    A column after the first is scored as it will be if the hypothesis takes the blank in all columns before.

    Attributes:
        blank_logp: ``(B, K, F)``.
        label: ``(B, K, F, k)`` scores of each frame's candidate tokens without any language model's part.
        repeat_logp: ``(B, K, F)`` score of staying by repeating the last label (CTC), -inf where that cannot be;
            None for families without it.
    """

    blank_logp: Tensor
    label: Tensor
    repeat_logp: Tensor | None = None


class FrameSynchronous(Protocol):
    """A family whose hypotheses move through the frames: CTC, RNN-T, FNT, TAED.

    Like a ``Scorer``, it keeps one integer of state per hypothesis.

    Attributes:
        num_tokens: V.
        lengths: ``(B,)`` encoder frames of each utterance.
        tokens: ``(B, T, k)`` candidate tokens of each frame, best first; k = V when nothing is left out.
        evidence: ``(B, T, k)`` how well each candidate fits its frame, whatever the hypothesis.
        lm_scale: weight of ``lm_logp``.
        contexts: the store of language model contexts that the states stand at, for a class grammar to share; None
            without one.
        repeats: whether a hypothesis may stay by repeating its last label (CTC). The states then say whether the
            last frame was a blank, and ``close`` is called when one is taken.
        lookahead: most frames worth scoring at once; small where scoring a frame is dear.
        loud: ``(B, T)`` frames in which a label may well be said, so that few behind them need be scored ahead; a
            guess that changes no answer. None where there is none.
        steady: whether states are made from numbers alone: nothing is remembered of one, ``score`` and ``advance``
            wait for no answer of the device, and there is no ``lm_logp``.
    """

    num_tokens: int
    lengths: Tensor
    tokens: Tensor
    evidence: Tensor
    lm_scale: float
    contexts: ContextStore | None
    repeats: bool
    lookahead: int
    loud: Tensor | None
    steady: bool

    def hear(self, encoded: Tensor, lengths: Tensor) -> None:
        """Go on to the next frames of each utterance, ``lengths`` ``(B,)`` of ``encoded`` ``(B, T, D)``.

        They are counted from 0 again and those before are forgotten, so a stream needs no more memory than the
        frames it is at. States stay as they are.
        """
        ...

    def start(self) -> Tensor:
        """First state of each utterance ``(B,)`` int64."""
        ...

    def score(self, frames: Tensor, state: Tensor) -> FrameScores:
        """Scores at ``frames`` ``(B, F)``, consecutive, after the states ``(B, K)``."""
        ...

    def lm_logp(self, state: Tensor, tokens: Tensor) -> Tensor | None:
        """The model's own language model ``(B, K, F, k)`` on ``tokens`` ``(B, F, k)``, not yet scaled; or None.

        A class grammar replaces it; otherwise the search adds ``lm_scale`` times it.
        """
        ...

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """States ``(M,)`` after each of ``tokens`` ``(M,)``."""
        ...

    def context(self, state: Tensor) -> Tensor:
        """Rows of ``contexts`` that states ``(M,)`` stand at; not called where there are none."""
        ...

    def join(self, state: Tensor, tokens: Tensor, contexts: Tensor) -> Tensor:
        """States ``(M,)`` after ``tokens``, with ``contexts`` ``(M,)`` as what the language model remembers.

        A class grammar that shares the store says so what comes after a label: where it ended an entity, the
        language model remembers its class tag. Not called where there are no contexts.
        """
        ...

    def close(self, state: Tensor) -> Tensor:
        """States after a blank, of any shape; the same ones unless the family repeats."""
        ...
