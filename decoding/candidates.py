"""All extensions of the hypotheses of a beam by one frame: blank, label, and the class transitions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from decoding.class_status import NORMAL, ClassArcs
from decoding.emitter import FrameScores
from decoding.trace import BLANK


class Candidates(NamedTuple):
    """W extensions of every hypothesis; the first column is the blank.

    Attributes:
        gain: ``(B, K, W)`` log score of the extension, -inf where it cannot be.
        lm_gain: ``(B, K, W)`` the language model's part of it.
        node: ``(B, K, W)`` entity tree node a label leads to, NORMAL outside entities; None without classes.
        token: ``(B, W)`` label of each column, BLANK in the first.
        place: ``(B, W)`` its place among the frame's candidate tokens; anything in the first.
        ends: ``(W,)`` whether the column's label ends an entity; None without classes.
    """

    gain: Tensor
    lm_gain: Tensor
    node: Tensor | None
    token: Tensor
    place: Tensor
    ends: Tensor | None


def plain_candidates(scores: FrameScores, label: Tensor, tokens: Tensor, own_lm: Tensor | None) -> Candidates:
    """Blank and labels with the emitter's own language model.

    ``label`` ``(B, K, k)`` may hold scorers' parts; ``own_lm`` ``(B, K, k)`` is scaled.
    """
    blank = scores.blank_logp.unsqueeze(-1)
    lm = torch.zeros_like(label) if own_lm is None else own_lm
    token = torch.nn.functional.pad(tokens, (1, 0), value=BLANK)
    place = torch.arange(-1, tokens.shape[1], device=tokens.device).clamp_min(0).expand_as(token)
    gain = torch.cat((blank, label + lm), dim=-1)
    return Candidates(gain, torch.nn.functional.pad(lm, (1, 0)), None, token, place, None)


def class_candidates(
    scores: FrameScores, label: Tensor, tokens: Tensor, lm_scale: float, arcs: ClassArcs
) -> Candidates:
    """Blank, and the labels that the class grammar allows."""
    pad = torch.nn.functional.pad
    lm = lm_scale * arcs.lm_logp
    labels = label.gather(-1, arcs.place[:, None].expand(-1, label.shape[1], -1)) + lm
    return Candidates(
        torch.cat((scores.blank_logp.unsqueeze(-1), labels), dim=-1),
        pad(lm, (1, 0)),
        pad(arcs.node, (1, 0), value=NORMAL),
        pad(tokens.gather(1, arcs.place), (1, 0), value=BLANK),
        pad(arcs.place, (1, 0)),
        pad(arcs.ends, (1, 0)),
    )
