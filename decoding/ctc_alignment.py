"""When CTC hears the labels of a known sequence: its best path (Graves et al. 2006, "Connectionist temporal
classification", ICML), for many sequences at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def first_frames(
    logp: Tensor, lengths: Tensor, sequences: Sequence[Sequence[Sequence[int]]]
) -> list[list[tuple[int, ...] | None]]:
    """The frame in which each label begins on the most probable path that says its sequence.

    Args:
        logp: ``(B, T, V + 1)`` log probabilities, blank last.
        lengths: ``(B,)`` frames of each utterance.
        sequences: label sequences of each utterance.

    Returns:
        Rising frames for each sequence; None for one that the frames are too few to say.
    """
    flat = [labels for found in sequences for labels in found]
    if not flat:
        return [[] for _ in sequences]
    owner = torch.tensor([n for n, found in enumerate(sequences) for _ in found], device=logp.device)
    symbols, skips = _states(flat, logp.shape[-1] - 1, logp.device)
    count = torch.tensor([2 * len(labels) for labels in flat], device=logp.device)
    scores, steps = _forward(logp, lengths, owner, symbols, skips)
    at = count[:, None]
    possible = ~scores.gather(1, at).squeeze(1).isneginf()
    begins = torch.zeros_like(symbols)
    for t in range(len(steps) - 1, -1, -1):
        begins.scatter_(1, at, t)
        at = at - steps[t].gather(1, at).long()
    rows = [
        tuple(row[1 : 2 * len(labels) : 2]) if fits else None
        for row, labels, fits in zip(begins.tolist(), flat, possible.tolist(), strict=True)
    ]
    found = iter(rows)
    return [[next(found) for _ in each] for each in sequences]


def _states(flat: Sequence[Sequence[int]], blank: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Symbol of each state, a blank around every label ``(H, S)``, and whether the blank before may be skipped."""
    longest = max(map(len, flat))
    symbols = torch.full((len(flat), 2 * longest + 1), blank)
    for row, labels in enumerate(flat):
        symbols[row, 1 : 2 * len(labels) : 2] = torch.tensor(labels, dtype=torch.long)
    skips = torch.zeros_like(symbols, dtype=torch.bool)
    skips[:, 3::2] = symbols[:, 3::2] != symbols[:, 1:-2:2]
    return symbols.to(device), skips.to(device)


def _forward(
    logp: Tensor, lengths: Tensor, owner: Tensor, symbols: Tensor, skips: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores of the best paths into each state ``(H, S)``, and the steps ``(T + 1, H, S)`` that they took.

    In padding, of which there is a frame at least, a path can only be silent; that costs nothing.
    """
    blank, frames = logp.shape[-1] - 1, logp.shape[1]
    scores = torch.full(symbols.shape, -torch.inf, dtype=torch.double, device=logp.device)
    scores[:, 0] = 0.0
    steps = torch.zeros((frames + 1, *symbols.shape), dtype=torch.uint8, device=logp.device)
    silent = torch.full_like(scores, -torch.inf).masked_fill(symbols == blank, 0.0)
    for t in range(frames + 1):
        one = torch.nn.functional.pad(scores, (1, 0), value=-torch.inf)[:, :-1]
        two = torch.nn.functional.pad(scores, (2, 0), value=-torch.inf)[:, : scores.shape[1]]
        choices = torch.stack((scores, one, two.masked_fill(~skips, -torch.inf)))
        scores, taken = choices.max(0)
        steps[t] = taken
        if t < frames:
            heard = logp[owner, t].double().gather(1, symbols)
            scores = scores + torch.where((t < lengths)[owner, None], heard, silent)
        else:
            scores = scores + silent
    return scores, steps
