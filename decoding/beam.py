"""Columnar hypotheses: every field a column of a tensor with leading axes (utterances, beam)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Odd 64-bit constants of two linear hashes; products wrap around.
SURFACE_HASH = 6364136223846793005
HISTORY_HASH = -7046029254386353131
MIX_HASH = -4417276706812531889

MODEL, SURFACE, DONE, NODE, PATH, HISTORY, SCORERS = range(7)
"""Columns of ``Beam.state``; the scorers' states start at SCORERS."""


@dataclass
class Beam:
    """Live hypotheses of a batch; a score of -inf marks an unused place.

    One tensor holds all that is remembered, so that re-ordering a beam is one operation.

    Attributes:
        score: ``(B, K)`` log probability, recombined paths included.
        state: ``(B, K, SCORERS + S)`` int64: the model's state; hash of the surface tokens; whether it has left
            the current frame; entity tree node, NORMAL or EXITED (``decoding.class_status``); hash of the
            class history; context of that history; the state of each scorer.
    """

    score: Tensor
    state: Tensor

    def select(self, parents: Tensor) -> Tensor:
        """State ``(B, K', ...)`` of the hypotheses ``parents`` ``(B, K')``."""
        return self.state.gather(1, parents.unsqueeze(-1).expand(-1, -1, self.state.shape[-1]))


def extend_surface(surface: Tensor, token: Tensor) -> Tensor:
    """Hash of the surface tokens with ``token`` appended."""
    return (surface + token + 1) * SURFACE_HASH


def extend_path(path: Tensor, token: Tensor) -> Tensor:
    """Hash of a history with a token or a class tag appended."""
    return (path + token + 1) * HISTORY_HASH


def state_key(state: Tensor) -> Tensor:
    """Hash under which hypotheses may be recombined: same tokens, history, place in a list and frame."""
    return state[..., SURFACE] ^ ((state[..., PATH] + state[..., NODE] * 2 + state[..., DONE]) * MIX_HASH)


def future_key(state: Tensor) -> Tensor:
    """Hash of all that decides the scores of what follows: everything but what was said."""
    past = {SURFACE, PATH}
    key = torch.zeros_like(state[..., MODEL])
    for column in range(state.shape[-1]):
        if column not in past:
            key = (key + state[..., column] + 1) * MIX_HASH
    return key


def earlier(size: int, device: torch.device) -> Tensor:
    """``(M, M)`` true where the column comes before the row."""
    order = torch.arange(size, device=device)
    return order[None, :] < order[:, None]


def recombine(score: Tensor, key: Tensor, before: Tensor, maximum: bool = False) -> Tensor:
    """Sum the probability of equal hypotheses into the first of them; the others get -inf.

    Args:
        score: ``(B, M)`` sorted in descending order.
        key: ``(B, M)``.
        before: ``earlier(M)``.
        maximum: the first keeps its own probability instead.
    """
    same = key[:, :, None] == key[:, None, :]
    repeated = (same & before).any(-1)
    total = score if maximum else torch.where(same, score[:, None, :], -torch.inf).logsumexp(-1)
    # An unused place stays unused: its key may be anything.
    return torch.where(repeated | score.isneginf(), -torch.inf, total)


def within_beam(surface: Tensor, size: int) -> Tensor:
    """True for the hypotheses whose surface is among the first ``size`` distinct ones.

    The same words reached through different class paths are different hypotheses, but count once, so that they
    do not push others out (the dynamic beam of arXiv 2309.07648).

    Args:
        surface: ``(B, M)`` in descending order of score.
    """
    order = torch.arange(surface.shape[1], device=surface.device)
    first = (surface[:, :, None] == surface[:, None, :]).int().argmax(-1)  # where each surface is met first
    rank = (first == order).cumsum(-1)
    return rank.gather(-1, first) <= size


def repeats(values: Tensor) -> Tensor:
    """How often each of ``values`` ``(B, M)`` comes before."""
    same = values[:, :, None] == values[:, None, :]
    return (same & earlier(values.shape[1], values.device)).sum(-1)
