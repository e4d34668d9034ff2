"""Frame-synchronous beam search over utterances and beams at once, for any emitter and any stack of scorers.

At each frame a hypothesis either takes the blank and waits for the next frame, or takes a label, at most
``max_symbols_per_frame`` of them; behind the last one it moves on without a blank, so with one symbol per frame
this is the modified beam search of icefall, and a beam of one is greedy search. Hypotheses of equal tokens,
class history and place in a list are recombined by adding their probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from decoding.beam import Beam, extend_path, extend_surface, recombine, state_key, within_beam
from decoding.class_status import EXITED, NORMAL, ClassGrammar
from decoding.emitter import FrameSynchronous
from decoding.scorer import Scorer
from decoding.trace import BLANK, RawHypothesis, Step, Trace
from lm.config import Config


class BeamConfig(Config):
    """Settings of the beam search."""

    beam: int = Field(8, ge=1)
    """Distinct label sequences kept for each utterance."""
    threshold: float = Field(12.0, gt=0)
    """Hypotheses this many nats behind the best are dropped."""
    max_symbols_per_frame: int = Field(1, ge=1)
    """Labels a hypothesis may emit in one frame."""
    nbest: int = Field(8, ge=1)
    """Hypotheses returned for each utterance."""


class _Candidates(NamedTuple):
    """All extensions of a beam, W columns each: blank, then labels (``(B, K, W)``; ``place`` is ``(B, W)``).

    ``kind`` ``(W,)`` names a column: 0 blank, 1 token, 2 last token of an entity, 3 first, 4 only one.
    """

    gain: Tensor
    lm_gain: Tensor
    node: Tensor
    place: Tensor
    kind: Tensor


class BeamSearch:
    """One search; make a new one for each batch.

    Args:
        emitter: the model.
        config: settings.
        grammar: class transitions; they replace the emitter's own language model.
        scorers: further knowledge sources.
    """

    def __init__(
        self,
        emitter: FrameSynchronous,
        config: BeamConfig,
        grammar: ClassGrammar | None = None,
        scorers: Sequence[Scorer] = (),
    ) -> None:
        self._emitter = emitter
        self._config = config
        self._grammar = grammar
        self._scorers = scorers
        # Classes make several hypotheses of one surface; room for each twice.
        self._width = config.beam if grammar is None else 2 * config.beam
        # Extensions looked at before recombination: the same number with and without classes, so that an
        # utterance without lists gives the same whatever shares its batch.
        self._pool = 4 * config.beam
        self._trace = Trace()

    @torch.no_grad()
    def run(self) -> list[list[RawHypothesis]]:
        """Search the whole batch: the n-best list of each utterance, best first."""
        lengths = self._emitter.lengths
        beam = self._first(len(lengths))
        for frame in range(int(lengths.max())):
            beam.done = (frame >= lengths)[:, None].expand_as(beam.score)
            for symbol in range(self._config.max_symbols_per_frame):
                last = symbol + 1 == self._config.max_symbols_per_frame
                beam = self._step(frame, beam, last)
                if not last and bool(beam.done.all()):
                    break
        return self._finish(beam)

    def _first(self, utterances: int) -> Beam:
        state = self._emitter.start()[:, None]
        zero = torch.zeros_like(state)
        history, node = (zero, zero + NORMAL)
        if self._grammar:
            history, node = (x[:, None] for x in self._grammar.start(utterances))
        scorers = [s.start(utterances)[:, None] for s in self._scorers]
        return Beam(
            score=torch.zeros(zero.shape, device=zero.device),
            emitter=state,
            history=history,
            node=node,
            surface=zero,
            path=zero,
            scorers=torch.stack(scorers, dim=-1) if scorers else zero.new_zeros((*zero.shape, 0)),
            done=zero.bool(),
        )

    def _step(self, frame: int, beam: Beam, last: bool) -> Beam:
        tokens = self._emitter.tokens[:, frame]
        extra = self._extra(beam, tokens)
        found = self._candidates(frame, beam, tokens, extra)
        width = found.gain.shape[-1]
        total = (beam.score.unsqueeze(-1) + found.gain).flatten(1)
        score, index = total.topk(min(self._pool, total.shape[1]), dim=-1)
        score = score.masked_fill(score < score[:, :1] - self._config.threshold, -torch.inf)
        parent, column = index // width, index % width
        kind = found.kind[column]
        place = found.place.gather(1, column)
        token = torch.where(kind == 0, BLANK, tokens.gather(1, place))
        new = beam.select(parent)
        before = new.node
        node = found.node.flatten(1).gather(1, index)
        new.done = new.done | (kind == 0) if not last else torch.zeros_like(new.done)
        ended = (kind == 2) | (kind == 4)
        self._rehash(new, kind, token, node, ended)
        new.score = recombine(score, state_key(new.surface, new.path, new.node, new.done))
        kept = self._keep(new)
        new = new.select(kept)
        token, node, ended, index, place, parent, before = (
            x.gather(1, kept) for x in (token, node, ended, index, place, parent, before)
        )
        step_gain = found.gain.flatten(1).gather(1, index)
        lm_gain = found.lm_gain.flatten(1).gather(1, index)
        chosen = torch.zeros((*parent.shape, 0), device=parent.device)
        if self._scorers:
            chosen = extra[torch.arange(len(parent), device=parent.device)[:, None], parent, place]
            chosen = chosen.masked_fill((token == BLANK).unsqueeze(-1), 0.0)
        node = torch.where(token == BLANK, NORMAL, node)
        entered = (before < 0) & (node >= 0)
        self._trace.steps.append(Step(frame, parent, token, node, entered, ended, step_gain, lm_gain, chosen))
        self._advance(new, token, node, ended)
        return new

    def _extra(self, beam: Beam, tokens: Tensor) -> Tensor:
        """Weighted scores ``(B, K, k, S)`` of the scorers."""
        shape = (*beam.score.shape, tokens.shape[1])
        each = tokens[:, None].expand(shape).flatten(0, 1)
        scores = [
            s.weight * s.score(beam.scorers[..., i].flatten(), each).view(shape)
            for i, s in enumerate(self._scorers)
        ]
        return torch.stack(scores, dim=-1) if scores else torch.zeros((*shape, 0), device=tokens.device)

    def _candidates(self, frame: int, beam: Beam, tokens: Tensor, extra: Tensor) -> _Candidates:
        emitter = self._emitter
        scores = emitter.score(frame, beam.emitter)
        closed = beam.done.unsqueeze(-1)
        blank = scores.blank_logp.masked_fill(beam.done, 0.0).unsqueeze(-1)
        label = scores.label + extra.sum(-1) if self._scorers else scores.label
        label = label.masked_fill(closed, -torch.inf)
        candidates = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        zero = torch.zeros_like(blank)
        if self._grammar is None:
            lm = emitter.lm_scale * scores.lm_logp if scores.lm_logp is not None else torch.zeros_like(label)
            nodes = torch.full_like(label, NORMAL, dtype=torch.long)
            return _join([blank, label + lm], [zero, lm], [beam.node[..., None], nodes], [candidates], [1])
        arcs = self._grammar.arcs(beam.history, beam.node, tokens, emitter.evidence[:, frame])
        entering = label.gather(-1, arcs.enter_place[:, None].expand(-1, label.shape[1], -1))
        lms = [
            emitter.lm_scale * x for x in (arcs.token_logp, arcs.last_logp, arcs.enter_logp, arcs.whole_logp)
        ]
        bases = [label, label, entering, entering]
        nodes_by_kind = [arcs.token_node, arcs.last_node, arcs.enter_node, arcs.whole_node]
        return _join(
            [blank, *(base + lm for base, lm in zip(bases, lms, strict=True))],
            [zero, *lms],
            [beam.node[..., None], *nodes_by_kind],
            [candidates, candidates, arcs.enter_place, arcs.enter_place],
            [1, 2, 3, 4],
        )

    def _rehash(self, new: Beam, kind: Tensor, token: Tensor, node: Tensor, ended: Tensor) -> None:
        """Bring node and hashes of ``new`` up to date with the tokens taken."""
        blank = kind == 0
        new.surface = torch.where(blank, new.surface, extend_surface(new.surface, token))
        if self._grammar is None:
            return
        new.node = torch.where(blank, new.node, torch.where(ended, EXITED, node))
        label = torch.where(ended, self._grammar.tag_of(node), token)
        grows = ~blank & (ended | (node < 0))
        new.path = torch.where(grows, extend_path(new.path, label), new.path)

    def _keep(self, new: Beam) -> Tensor:
        """Places ``(B, K)`` of the hypotheses that go on, best first."""
        size = min(self._width, new.score.shape[1])
        if self._grammar is None:
            return new.score.topk(size, dim=-1).indices
        score, order = new.score.sort(dim=-1, descending=True)
        inside = within_beam(score, new.surface.gather(1, order), self._config.beam)
        kept, place = score.masked_fill(~inside, -torch.inf).topk(size, dim=-1)
        place = order.gather(1, place)
        new.score = torch.full_like(new.score, -torch.inf).scatter(1, place, kept)
        return place

    def _advance(self, new: Beam, token: Tensor, node: Tensor, ended: Tensor) -> None:
        """Advance model, history and scorers of the hypotheses that took a token."""
        rows = ((token != BLANK) & ~new.score.isneginf()).nonzero(as_tuple=True)
        if not len(rows[0]):
            return
        labels = token[rows]
        new.emitter[rows] = self._emitter.advance(new.emitter[rows], labels)
        for i, scorer in enumerate(self._scorers):
            new.scorers[rows[0], rows[1], i] = scorer.advance(new.scorers[rows[0], rows[1], i], labels)
        if self._grammar:
            written = torch.where(ended[rows], self._grammar.tag_of(node[rows]), labels)
            grows = (ended[rows] | (node[rows] < 0)).nonzero().squeeze(1)
            where = rows[0][grows], rows[1][grows]
            new.history[where] = self._grammar.advance(new.history[where], written[grows])

    def _finish(self, beam: Beam) -> list[list[RawHypothesis]]:
        score = beam.score
        finish = [
            s.weight * s.finish(beam.scorers[..., i].flatten()).view_as(score)
            for i, s in enumerate(self._scorers)
        ]
        added = torch.stack(finish, dim=-1) if finish else score.new_zeros((*score.shape, 0))
        score = score + added.sum(-1)
        # An entity that was not finished is none; only where nothing else is left do its tokens stand.
        whole = score.masked_fill(beam.node >= 0, -torch.inf)
        score = torch.where(whole.isneginf().all(-1, keepdim=True), score, whole)
        return self._trace.read(score, added, [s.name for s in self._scorers], self._config.nbest)


def _join(
    gains: list[Tensor], lm_gains: list[Tensor], nodes: list[Tensor], places: list[Tensor], kinds: list[int]
) -> _Candidates:
    """Columns of the candidates; the first group is the blank, whose place is unused."""
    first = torch.zeros_like(places[0][:, :1])
    kind = [torch.zeros(1, dtype=torch.long)] + [
        torch.full((p.shape[1],), k, dtype=torch.long) for k, p in zip(kinds, places, strict=True)
    ]
    return _Candidates(
        torch.cat(gains, dim=-1),
        torch.cat(lm_gains, dim=-1),
        torch.cat(nodes, dim=-1),
        torch.cat([first, *places], dim=-1),
        torch.cat(kind).to(first.device),
    )
