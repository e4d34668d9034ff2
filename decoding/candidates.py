"""All extensions of the hypotheses of a beam by one frame: blank, label, and the class transitions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from decoding.class_status import NORMAL, ClassArcs
from decoding.trace import BLANK


class Candidates(NamedTuple):
    """W extensions of every hypothesis; the first column is the blank, the second, for CTC, the repeat.

    Attributes:
        gain: ``(B, K, W)`` log score of the extension, -inf where it cannot be.
        lm_gain: ``(B, K, W)`` the language model's part of it.
        node: ``(B, K, W)`` entity tree node a label leads to, NORMAL outside entities; None without classes.
        token: ``(B, W)`` label of each column, BLANK where it emits nothing.
        place: ``(B, W)`` its place among the frame's candidate tokens; anything where it emits nothing.
        ends: ``(W,)`` whether the column's label ends an entity; None without classes.
    """

    gain: Tensor
    lm_gain: Tensor
    node: Tensor | None
    token: Tensor
    place: Tensor
    ends: Tensor | None

    def reached(self, index: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Node that extensions ``index`` (over K and W) led to; whether, in ``column``, they ended an entity."""
        if self.node is None or self.ends is None:
            return torch.full_like(index, NORMAL), torch.zeros_like(index, dtype=torch.bool)
        return self.node.flatten(1).gather(1, index), self.ends[column]


def plain_candidates(stay: Tensor, label: Tensor, tokens: Tensor, own_lm: Tensor | None) -> Candidates:
    """Staying, and labels with the emitter's own language model.

    ``stay`` is ``(B, K, 1 or 2)``; ``label`` ``(B, K, k)`` may hold scorers' parts; ``own_lm`` ``(B, K, k)`` is
    scaled.
    """
    quiet = stay.shape[-1]
    if own_lm is None:
        gain, lm = torch.cat((stay, label), dim=-1), torch.zeros((), device=label.device)
        lm = lm.expand(gain.shape)
    else:
        gain = torch.cat((stay, label + own_lm), dim=-1)
        lm = torch.nn.functional.pad(own_lm, (quiet, 0))
    token = torch.nn.functional.pad(tokens, (quiet, 0), value=BLANK)
    place = torch.arange(-quiet, tokens.shape[1], device=tokens.device).clamp_min(0).expand_as(token)
    return Candidates(gain, lm, None, token, place, None)


def class_candidates(
    stay: Tensor, label: Tensor, tokens: Tensor, lm_scale: float, arcs: ClassArcs
) -> Candidates:
    """Staying, and the labels that the class grammar allows."""
    pad, quiet = torch.nn.functional.pad, stay.shape[-1]
    lm = lm_scale * arcs.lm_logp
    labels = label.gather(-1, arcs.place[:, None].expand(-1, label.shape[1], -1)) + lm
    return Candidates(
        torch.cat((stay, labels), dim=-1),
        pad(lm, (quiet, 0)),
        pad(arcs.node, (quiet, 0), value=NORMAL),
        pad(tokens.gather(1, arcs.place), (quiet, 0), value=BLANK),
        pad(arcs.place, (quiet, 0)),
        pad(arcs.ends, (quiet, 0)),
    )
