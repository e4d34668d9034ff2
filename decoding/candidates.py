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


def plain_candidates(scores: FrameScores, label: Tensor, tokens: Tensor, lm_scale: float) -> Candidates:
    """Blank and labels with the emitter's own language model; ``label`` ``(B, K, k)`` may hold scorers' parts."""
    blank = scores.blank_logp.unsqueeze(-1)
    lm = torch.zeros_like(label) if scores.lm_logp is None else lm_scale * scores.lm_logp
    token = torch.nn.functional.pad(tokens, (1, 0), value=BLANK)
    place = torch.arange(-1, tokens.shape[1], device=tokens.device).clamp_min(0).expand_as(token)
    gain = torch.cat((blank, label + lm), dim=-1)
    return Candidates(gain, torch.nn.functional.pad(lm, (1, 0)), None, token, place, None)


def class_candidates(
    scores: FrameScores, label: Tensor, tokens: Tensor, lm_scale: float, arcs: ClassArcs
) -> Candidates:
    """Blank, tokens (normal or inside), last tokens, entries into entities, entities of one token."""
    beams, width = label.shape[1], tokens.shape[1]
    enter = arcs.enter_place
    entering = label.gather(-1, enter[:, None].expand(-1, beams, -1))
    lm = lm_scale * torch.cat((arcs.token_logp, arcs.last_logp, arcs.enter_logp, arcs.whole_logp), dim=-1)
    blank = scores.blank_logp.unsqueeze(-1)
    gain = torch.cat((blank, torch.cat((label, label, entering, entering), dim=-1) + lm), dim=-1)
    node = torch.cat((arcs.token_node, arcs.last_node, arcs.enter_node, arcs.whole_node), dim=-1)
    order = torch.arange(width, device=tokens.device).expand_as(tokens)
    place = torch.cat((order[:, :1], order, order, enter, enter), dim=-1)
    token = tokens.gather(1, place)
    token[:, 0] = BLANK
    ends = torch.zeros(place.shape[1], dtype=torch.bool, device=tokens.device)
    ends[1 + width : 1 + 2 * width] = True
    ends[1 + 2 * width + enter.shape[1] :] = True
    pad = torch.nn.functional.pad
    return Candidates(gain, pad(lm, (1, 0)), pad(node, (1, 0), value=NORMAL), token, place, ends)
