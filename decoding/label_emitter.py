"""What an attention-based encoder-decoder family offers to the label-synchronous search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelScores:
    """What may come next for every hypothesis of a beam, natural logs, normalised over V labels and the end.

    Attributes:
        label_logp: ``(B, K, V)``.
        end_logp: ``(B, K)`` log probability that the utterance ends here.
    """

    label_logp: Tensor
    end_logp: Tensor


@runtime_checkable
class LabelSynchronous(Protocol):
    """A family whose hypotheses grow by one label a step, whatever the frames: AED.

    Like a ``Scorer``, it keeps one integer of state per hypothesis; the state knows its utterance. The search
    may ask for any state again, in any order, and for the same successor more than once.

    Attributes:
        num_tokens: V.
        max_labels: ``(B,)`` int64 most labels an utterance may have, from its number of frames; 0 or more. A
            hypothesis of that length can only end, so ``end_logp`` must be finite there.
    """

    num_tokens: int
    max_labels: Tensor

    def start(self) -> Tensor:
        """First state of each utterance ``(B,)`` int64."""
        ...

    def score(self, state: Tensor) -> LabelScores:
        """Scores after the states ``(B, K)``; row b holds states of utterance b."""
        ...

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """States ``(M,)`` after each of ``tokens`` ``(M,)``."""
        ...


@runtime_checkable
class Attending(LabelSynchronous, Protocol):
    """A label-synchronous family that can say where in the recording a label was heard."""

    def where(self, state: Tensor) -> Tensor:
        """Encoder frame ``(M,)`` int64 attended to when scoring what follows the states ``(M,)``.

        The label taken from a state was heard there; the frames of a hypothesis need not rise.
        """
        ...


@runtime_checkable
class Spelled(Attending, Protocol):
    """A label-synchronous family with a CTC head on its encoder."""

    def ctc(self) -> tuple[Tensor, Tensor] | None:
        """Its log probabilities ``(B, T, V + 1)``, blank last, and the frames of each utterance ``(B,)``.

        None if it was not trained.
        """
        ...


@torch.no_grad()
def attended_frames(
    emitter: Attending, hypotheses: list[list[tuple[int, ...]]]
) -> list[list[tuple[int, ...]]]:
    """Frame of each token of some hypotheses of each utterance; their states are walked through once more."""
    flat = [tokens for found in hypotheses for tokens in found]
    first = emitter.start()
    state = first.repeat_interleave(torch.tensor([len(found) for found in hypotheses], device=first.device))
    lengths = torch.tensor([len(tokens) for tokens in flat], device=first.device)
    longest = max(map(len, flat), default=0)
    padded = torch.zeros((len(flat), longest), dtype=torch.long)
    for row, tokens in enumerate(flat):
        padded[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    padded = padded.to(first.device)
    frames = torch.zeros_like(padded)
    for place in range(longest):
        rows = (lengths > place).nonzero().squeeze(1)
        frames[rows, place] = emitter.where(state[rows])
        state[rows] = emitter.advance(state[rows], padded[rows, place])
    listed = iter([tuple(row[: len(tokens)]) for row, tokens in zip(frames.tolist(), flat, strict=True)])
    return [[next(listed) for _ in found] for found in hypotheses]
