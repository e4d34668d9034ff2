"""Frame-synchronous beam search over utterances and beams at once, for any emitter and any stack of scorers.

At each frame a hypothesis either takes the blank and waits for the next frame, or takes a label, at most
``max_symbols_per_frame`` of them; behind the last one it moves on without a blank, so with one symbol per frame
this is the modified beam search of icefall, and a beam of one is greedy search. Hypotheses of equal tokens,
class history and place in a list are recombined by adding their probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from decoding.beam import (
    DONE,
    HISTORY,
    MODEL,
    NODE,
    PATH,
    SCORERS,
    SURFACE,
    Beam,
    earlier,
    extend_path,
    extend_surface,
    recombine,
    state_key,
    within_beam,
)
from decoding.candidates import Candidates, class_candidates, plain_candidates
from decoding.class_status import EXITED, NORMAL, ClassGrammar
from decoding.emitter import FrameSynchronous
from decoding.scorer import Scorer
from decoding.trace import BLANK, RawHypothesis, Step, Trace
from lm.config import Config


class BeamConfig(Config):
    """Settings of the beam search."""

    beam: int = Field(8, ge=1)
    """Distinct label sequences kept for each utterance."""
    threshold: float = Field(8.0, gt=0)
    """Hypotheses this many nats behind the best are dropped."""
    max_symbols_per_frame: int = Field(1, ge=1)
    """Labels a hypothesis may emit in one frame."""
    nbest: int = Field(8, ge=1)
    """Hypotheses returned for each utterance."""


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
        self._before = earlier(self._pool, emitter.lengths.device)
        self._trace = Trace()

    @torch.no_grad()
    def run(self) -> list[list[RawHypothesis]]:
        """Search the whole batch: the n-best list of each utterance, best first."""
        lengths = self._emitter.lengths
        beam = self._first(len(lengths))
        for frame in range(int(lengths.max())):
            beam.state[..., DONE] = (frame >= lengths)[:, None]
            for symbol in range(self._config.max_symbols_per_frame):
                last = symbol + 1 == self._config.max_symbols_per_frame
                beam = self._step(frame, beam, last)
                if not last and bool(beam.state[..., DONE].all()):
                    break
        return self._finish(beam)

    def _first(self, utterances: int) -> Beam:
        state = self._emitter.start()
        columns = [torch.zeros_like(state)] * SCORERS + [s.start(utterances) for s in self._scorers]
        columns[MODEL] = state
        columns[NODE] = torch.full_like(state, NORMAL)
        if self._grammar:
            self._grammar.listen(self._emitter.tokens, self._emitter.evidence)
            columns[HISTORY], columns[NODE] = self._grammar.start(utterances)
        return Beam(torch.zeros(utterances, 1, device=state.device), torch.stack(columns, dim=-1)[:, None])

    def _step(self, frame: int, beam: Beam, last: bool) -> Beam:
        tokens = self._emitter.tokens[:, frame]
        found, extra = self._candidates(frame, beam, tokens)
        total = beam.score.unsqueeze(-1) + found.gain
        quiet = self._quiet(total)
        if quiet is not None:
            return self._wait(frame, beam, quiet, found, extra, last)
        columns = total.shape[-1]
        score, index = total.flatten(1).topk(min(self._pool, total[0].numel()), dim=-1)
        score = score.masked_fill(score < score[:, :1] - self._config.threshold, -torch.inf)
        parent = index // columns
        column = index - parent * columns
        token = found.token.gather(1, column)
        node, ended = self._nodes(found, index, column)
        state = self._follow(beam.select(parent), token, node, ended, last)
        score = recombine(score, state_key(state), self._before[: score.shape[1], : score.shape[1]])
        score, kept = self._keep(score, state[..., SURFACE])
        new = Beam(score, state)
        new.state = new.select(kept)
        parent, token, index, column, node, ended = (
            x.gather(1, kept) for x in (parent, token, index, column, node, ended)
        )
        gains = (found.gain.flatten(1).gather(1, index), found.lm_gain.flatten(1).gather(1, index))
        chosen = self._chosen(extra, parent, found.place.gather(1, column), token)
        entered = (node >= 0) & (beam.state[..., NODE].gather(1, parent) < 0)
        self._trace.steps.append(Step(frame, parent, token, node, entered, ended, *gains, chosen))
        self._advance(new, token, node, ended)
        return new

    def _quiet(self, total: Tensor) -> Tensor | None:
        """Scores after the blank if no label comes near enough to matter in any utterance; else None."""
        waiting = total[..., 0]
        best = waiting.amax(-1)
        if bool((total[..., 1:].amax((1, 2)) >= best - self._config.threshold).any()):
            return None
        return waiting.masked_fill(waiting < best[:, None] - self._config.threshold, -torch.inf)

    def _wait(
        self, frame: int, beam: Beam, score: Tensor, found: Candidates, extra: Tensor | None, last: bool
    ) -> Beam:
        """The step in which every hypothesis takes the blank: nothing is re-ordered."""
        parent = torch.arange(score.shape[1], device=score.device).expand_as(score)
        no, nothing = torch.zeros_like(parent, dtype=torch.bool), torch.full_like(parent, BLANK)
        chosen = self._chosen(extra, parent, parent, nothing)
        gain, lm_gain = found.gain[..., 0], found.lm_gain[..., 0]
        self._trace.steps.append(Step(frame, parent, nothing, nothing, no, no, gain, lm_gain, chosen))
        state = beam.state
        if not last:
            state[..., DONE] = 1
        return Beam(score, state)

    def _candidates(self, frame: int, beam: Beam, tokens: Tensor) -> tuple[Candidates, Tensor | None]:
        """All extensions, and the weighted parts ``(B, K, k, S)`` of the scorers."""
        emitter, extra = self._emitter, None
        scores = emitter.score(frame, beam.state[..., MODEL])
        label = scores.label
        if self._scorers:
            extra = self._extra(beam, tokens)
            label = label + extra.sum(-1)
        if self._grammar is None:
            lm = emitter.lm_logp(frame, beam.state[..., MODEL])
            found = plain_candidates(scores, label, tokens, None if lm is None else emitter.lm_scale * lm)
        else:
            arcs = self._grammar.arcs(frame, beam.state[..., HISTORY], beam.state[..., NODE])
            found = class_candidates(scores, label, tokens, emitter.lm_scale, arcs)
        done = beam.state[..., DONE, None] > 0
        found.gain[..., 0].masked_fill_(done[..., 0], 0.0)
        found.gain[..., 1:].masked_fill_(done, -torch.inf)
        return found, extra

    def _extra(self, beam: Beam, tokens: Tensor) -> Tensor:
        shape = (*beam.score.shape, tokens.shape[1])
        each = tokens[:, None].expand(shape).flatten(0, 1)
        scores = [
            s.weight * s.score(beam.state[..., SCORERS + i].flatten(), each).view(shape)
            for i, s in enumerate(self._scorers)
        ]
        return torch.stack(scores, dim=-1)

    def _nodes(self, found: Candidates, index: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Entity tree node each extension led to, and whether it ended an entity there."""
        if found.node is None or found.ends is None:
            return torch.full_like(index, NORMAL), torch.zeros_like(index, dtype=torch.bool)
        return found.node.flatten(1).gather(1, index), found.ends[column]

    def _follow(self, state: Tensor, token: Tensor, node: Tensor, ended: Tensor, last: bool) -> Tensor:
        """Bring hashes, node and done of the extended hypotheses up to date."""
        blank = token == BLANK
        surface = state[..., SURFACE]
        state[..., SURFACE] = torch.where(blank, surface, extend_surface(surface, token))
        state[..., DONE] = 0 if last else state[..., DONE] | blank
        if self._grammar is None:
            return state
        label = torch.where(ended, self._grammar.tag_of(node), token)
        grows = ~blank & (ended | (node < 0))
        path = state[..., PATH]
        state[..., PATH] = torch.where(grows, extend_path(path, label), path)
        state[..., NODE] = torch.where(blank, state[..., NODE], torch.where(ended, EXITED, node))
        return state

    def _keep(self, score: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and places of the hypotheses that go on, best first."""
        size = min(self._width, score.shape[1])
        if self._grammar is None:
            score, place = score.topk(size, dim=-1)
        else:
            score, order = score.sort(dim=-1, descending=True, stable=True)
            inside = within_beam(surface.gather(1, order), self._config.beam)
            score, place = score.masked_fill(~inside, -torch.inf).topk(size, dim=-1)
            place = order.gather(1, place)
        live = max(1, int((~score.isneginf()).sum(-1).max()))  # what the threshold left is often much less
        return score[:, :live], place[:, :live]

    def _chosen(self, extra: Tensor | None, parent: Tensor, place: Tensor, token: Tensor) -> Tensor:
        """The scorers' parts of the labels taken, ``(B, K, S)``."""
        if extra is None:
            return torch.zeros((*parent.shape, 0), device=parent.device)
        row = torch.arange(len(parent), device=parent.device)[:, None]
        taken = extra[row, parent, place.clamp_max(extra.shape[2] - 1)]
        return taken.masked_fill((token == BLANK).unsqueeze(-1), 0.0)

    def _advance(self, new: Beam, token: Tensor, node: Tensor, ended: Tensor) -> None:
        """Advance model, history and scorers of the hypotheses that took a token."""
        rows = ((token != BLANK) & ~new.score.isneginf()).nonzero(as_tuple=True)
        if not len(rows[0]):
            return
        labels, state = token[rows], new.state[rows]
        if self._grammar is None:
            state[:, MODEL] = self._emitter.advance(state[:, MODEL], labels)
        else:
            self._advance_both(self._grammar, state, labels, node[rows], ended[rows])
        for i, scorer in enumerate(self._scorers, start=SCORERS):
            state[:, i] = scorer.advance(state[:, i], labels)
        new.state[rows] = state

    def _advance_both(
        self, grammar: ClassGrammar, state: Tensor, labels: Tensor, node: Tensor, ended: Tensor
    ) -> None:
        """Advance model and history; contexts of one store are computed together."""
        grows = (ended | (node < 0)).nonzero().squeeze(1)
        written = torch.where(ended, grammar.tag_of(node), labels)[grows]
        model, history = state[:, MODEL], state[grows, HISTORY]
        if self._emitter.contexts is grammar.contexts:
            grammar.advance(torch.cat((model, history)), torch.cat((labels, written)))
        state[:, MODEL] = self._emitter.advance(model, labels)
        state[grows, HISTORY] = grammar.advance(history, written)

    def _finish(self, beam: Beam) -> list[list[RawHypothesis]]:
        score = beam.score
        finish = [
            s.weight * s.finish(beam.state[..., SCORERS + i].flatten()).view_as(score)
            for i, s in enumerate(self._scorers)
        ]
        added = torch.stack(finish, dim=-1) if finish else score.new_zeros((*score.shape, 0))
        score = score + added.sum(-1)
        # An entity that was not finished is none; only where nothing else is left do its tokens stand.
        whole = score.masked_fill(beam.state[..., NODE] >= 0, -torch.inf)
        score = torch.where(whole.isneginf().all(-1, keepdim=True), score, whole)
        names = [s.name for s in self._scorers]
        return self._trace.read(score, added, names, self._config.nbest, self._worth)

    def _worth(self, node: int) -> float:
        """What the length of its list cost the entity that ends at ``node``."""
        return -self._emitter.lm_scale * self._grammar.graph.share_logp(node) if self._grammar else 0.0
