"""Relaxed attention: Ã = (1 - γ) A + γ / T (Lohrenz et al. 2021, arXiv 2107.01275, equation 2).

T counts the frames that may be attended to, so padding changes nothing. In training only.
"""

from __future__ import annotations

from torch import Tensor


def relaxed(weights: Tensor, mask: Tensor, share: float) -> Tensor:
    """Attention with a uniform part.

    Args:
        weights: ``(..., T)`` after the softmax, zero where ``mask`` is false.
        mask: what may be attended to; broadcasts.
        share: γ.
    """
    return (1 - share) * weights + share * mask / mask.sum(-1, keepdim=True)


def relaxed_values(attended: Tensor, values: Tensor, mask: Tensor, share: float) -> Tensor:
    """The same where the weights are not to be had or too large: Ã V = (1 - γ) A V + γ mean(V).

    Args:
        attended: ``(..., Q, D)`` what attention found, A V.
        values: ``(..., T, D)`` V.
        mask: ``(..., Q, T)`` what may be attended to; Q may be 1, where all see the same.
        share: γ.
    """
    even = (mask / mask.sum(-1, keepdim=True)).to(values.dtype)
    return (1 - share) * attended + share * (even @ values)
