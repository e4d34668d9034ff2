"""Columnar hypotheses: every field a tensor with leading axes (utterances, beam)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Odd 64-bit constants of two linear hashes; products wrap around.
_SURFACE = 6364136223846793005
_HISTORY = -7046029254386353131
_MIX = -4417276706812531889


@dataclass
class Beam:
    """Live hypotheses of a batch, ``(B, K)`` each; a score of -inf marks an unused place.

    Attributes:
        score: log probability, recombined paths included.
        emitter: state of the model.
        history: context of the class-based language model.
        node: entity tree node, NORMAL or EXITED (``decoding.class_status``).
        surface: hash of the surface tokens.
        path: hash of the history.
        scorers: ``(B, K, S)`` state of each scorer.
        done: true where the hypothesis has left the current frame.
    """

    score: Tensor
    emitter: Tensor
    history: Tensor
    node: Tensor
    surface: Tensor
    path: Tensor
    scorers: Tensor
    done: Tensor

    def select(self, parents: Tensor) -> Beam:
        """The hypotheses ``parents`` ``(B, K')`` of each utterance."""
        deep = parents.unsqueeze(-1)
        return Beam(
            self.score.gather(1, parents),
            self.emitter.gather(1, parents),
            self.history.gather(1, parents),
            self.node.gather(1, parents),
            self.surface.gather(1, parents),
            self.path.gather(1, parents),
            self.scorers.gather(1, deep.expand(-1, -1, self.scorers.shape[-1])),
            self.done.gather(1, parents),
        )


def extend_surface(surface: Tensor, token: Tensor) -> Tensor:
    """Hash of the surface tokens with ``token`` appended."""
    return (surface + token + 1) * _SURFACE


def extend_path(path: Tensor, token: Tensor) -> Tensor:
    """Hash of a history with a token or a class tag appended."""
    return (path + token + 1) * _HISTORY


def state_key(surface: Tensor, path: Tensor, node: Tensor, done: Tensor) -> Tensor:
    """Hash under which hypotheses may be recombined: same tokens, history, place in a list and frame."""
    return surface ^ ((path + node * 2 + done.long()) * _MIX)


def recombine(score: Tensor, key: Tensor) -> Tensor:
    """Sum the probability of equal hypotheses into the first of them; the others get -inf.

    Args:
        score: ``(B, M)`` sorted in descending order.
        key: ``(B, M)``.
    """
    order = torch.arange(score.shape[1], device=score.device)
    same = key[:, :, None] == key[:, None, :]
    repeated = (same & (order[None, :] < order[:, None])).any(-1)
    total = score[:, None, :].masked_fill(~same, -torch.inf).logsumexp(-1)
    return torch.where(repeated | score.isneginf(), -torch.inf, total)


def within_beam(score: Tensor, surface: Tensor, size: int) -> Tensor:
    """True for the hypotheses whose surface is among the ``size`` best distinct ones.

    The same words reached through different class paths are different hypotheses, but count once, so that they
    do not push others out (the dynamic beam of arXiv 2309.07648).

    Args:
        score: ``(B, M)`` sorted in descending order, -inf last.
        surface: ``(B, M)``.
    """
    order = torch.arange(score.shape[1], device=score.device)
    first = (surface[:, :, None] == surface[:, None, :]).int().argmax(-1)  # where each surface is met first
    rank = (first == order).cumsum(-1)
    return rank.gather(-1, first) <= size
