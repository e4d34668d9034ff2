"""Cross-entropy of an attention decoder's labels and its end, smoothed."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_loss(logits: Tensor, targets: Tensor, lengths: Tensor, smoothing: float = 0.0) -> Tensor:
    """Negative log probability ``(B,)`` of each utterance's labels and its end, in nats.

    With label smoothing ε (Szegedy et al. 2016, arXiv 1512.00567) the target is (1 - ε) the label plus ε a uniform
    distribution over all V + 1 symbols.

    Args:
        logits: ``(B, U + 1, V + 1)``, the end last; row u scores what follows the first u labels.
        targets: ``(B, U)``, anything beyond an utterance's labels.
        lengths: ``(B,)`` labels of each utterance, 0..U.
        smoothing: ε.
    """
    end = logits.shape[-1] - 1
    place = torch.arange(logits.shape[1], device=logits.device)
    wanted = torch.cat((targets, targets.new_zeros(len(targets), 1)), dim=1)
    wanted = torch.where(place < lengths[:, None], wanted, end)
    logp = logits.float().log_softmax(-1)
    picked = logp.gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
    mixed = (1 - smoothing) * picked + smoothing * logp.mean(-1)
    return -(mixed * (place <= lengths[:, None])).sum(-1)
