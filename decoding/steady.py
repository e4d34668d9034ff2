"""A frame-synchronous search that never waits for its device, a GPU: no lists, no scorers, one symbol a frame.

Launching the small kernels of a step takes a GPU's host several times as long as running them takes the GPU. Where
the states of hypotheses are numbers made from numbers alone (``FrameSynchronous.steady``), all steps are the same
work on tensors of one shape, so one is recorded as a CUDA graph and replayed. Steps are those of ``frame_sync``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from decoding.beam import MODEL, SURFACE, Beam, extend_surface, recombine, within_beam
from decoding.class_status import NORMAL
from decoding.emitter import FrameSynchronous
from decoding.lookahead import next_loud
from decoding.pruning import Pruning
from decoding.trace import BLANK, Step

RECORD = 64
"""With so many frames ahead a step is worth recording."""


class _At(NamedTuple):
    """Where a search is: ``score``, ``model``, ``surface`` ``(B, K)``, and ``frame`` ``(B,)`` to look at next."""

    score: Tensor
    model: Tensor
    surface: Tensor
    frame: Tensor


class _Did(NamedTuple):
    """What a step did: the fields of ``trace.Step`` that are not the same in all steps."""

    frame: Tensor
    parent: Tensor
    token: Tensor
    gain: Tensor
    waited: Tensor


class _Pass(NamedTuple):
    """Frames passed and whether one is worked on then, ``(B,)``; score of the blanks, ``waited`` ``(B, K)``."""

    skipped: Tensor
    stopped: Tensor
    waited: Tensor


class SteadySearch:
    """Takes the steps of one search.

    Args:
        emitter: a model whose ``steady`` is true.
        pruning: what is kept, without classes.
    """

    def __init__(self, emitter: FrameSynchronous, pruning: Pruning) -> None:
        device = emitter.lengths.device
        self._emitter, self._pruning = emitter, pruning
        self._row = torch.arange(len(emitter.lengths), device=device)
        self._ahead = torch.arange(emitter.lookahead, device=device)
        self.hear()

    def hear(self) -> None:
        """Go on to the frames that the emitter has now."""
        # The last frame of those heard at once, for each frame that an utterance may be at.
        emitter = self._emitter
        frame = torch.arange(max(1, emitter.tokens.shape[1]), device=self._row.device)
        last = torch.minimum((frame + emitter.lookahead - 1)[None], emitter.lengths[:, None] - 1)
        loud = next_loud(emitter)
        self._last = last if loud is None else torch.minimum(last, loud)

    def advance(self, beam: Beam, at: Tensor) -> tuple[Beam, Tensor, list[Step]]:
        """Take steps until every utterance has passed the frames that the emitter has.

        Args:
            beam: the hypotheses.
            at: ``(B,)`` the frame of each utterance.

        Returns:
            The hypotheses and frames then, and the steps.
        """
        wide = self._pruning.outside - beam.score.shape[1]
        score = torch.nn.functional.pad(beam.score, (0, wide), value=-torch.inf)
        state = torch.cat((beam.state, beam.state[:, :1].expand(-1, wide, -1)), dim=1)
        where = _At(score, state[..., MODEL].clone(), state[..., SURFACE].clone(), at)
        took = self._steps(where, self._left(where))
        state[..., MODEL], state[..., SURFACE] = took[0].model, took[0].surface
        return Beam(took[0].score, state), took[0].frame, self._noted(took[1])

    def _left(self, where: _At) -> int:
        """Frames that the utterance furthest behind has before it."""
        return int((self._emitter.lengths - where.frame).max())

    def _steps(self, where: _At, left: int) -> tuple[_At, list[_Did]]:
        done: list[_Did] = []
        if where.score.is_cuda and left >= RECORD:
            where, did = self._step(where)  # what is set up at first use must not be recorded
            recorded = _Recorded(self._step, where, left)
            while (left := self._left(recorded.where)) > 0:
                recorded.replay(self._sure(left))
            return recorded.where, [did, *recorded.done()]
        while left > 0:
            for _ in range(self._sure(left)):
                where, did = self._step(where)
                done.append(did)
            left = self._left(where)
        return where, done

    def _sure(self, left: int) -> int:
        """Steps that are needed in any case: none passes more frames than are heard at once."""
        return -(-left // self._emitter.lookahead)

    def _noted(self, done: list[_Did]) -> list[Step]:
        """The steps as a trace has them."""
        if not done:
            return []
        parent, gain = done[0].parent, done[0].gain
        node, no = torch.full_like(parent, NORMAL), torch.zeros_like(parent, dtype=torch.bool)
        none, parts = torch.zeros_like(gain), gain.new_zeros((*gain.shape, 0))
        return [Step(d.frame, d.parent, d.token, node, no, no, d.gain, none, parts, d.waited) for d in done]

    def _step(self, where: _At) -> tuple[_At, _Did]:
        """Pass quiet frames, and extend every hypothesis at the first that is not, without a look at any number."""
        emitter = self._emitter
        last = self._last.gather(1, where.frame.clamp_max(self._last.shape[1] - 1)[:, None])
        columns = where.frame[:, None] + self._ahead
        frames, inside = torch.minimum(columns, last).clamp_min(0), columns <= last
        heard = emitter.score(frames, where.model)
        stays = [heard.blank_logp] if heard.repeat_logp is None else [heard.blank_logp, heard.repeat_logp]
        score, passed = self._pass(where.score, stays, heard.label, inside)
        model = where.model
        if emitter.repeats:
            model = torch.where((passed.skipped > 0)[:, None], emitter.close(model), model)
        column = passed.skipped.clamp_max(len(self._ahead) - 1)
        stay = torch.stack([each[self._row, :, column] for each in stays], dim=-1)
        gain = torch.cat((stay, heard.label[self._row, :, column]), dim=-1)
        free = ~passed.stopped[:, None]
        gain[..., 0].masked_fill_(free, 0.0)
        gain[..., 1:].masked_fill_(free.unsqueeze(-1), -torch.inf)
        tokens = emitter.tokens[self._row, frames[self._row, column]]
        here = where._replace(score=score, model=model)
        return self._extend(here, passed, gain, torch.nn.functional.pad(tokens, (len(stays), 0), value=BLANK))

    def _pass(
        self, score: Tensor, stays: list[Tensor], label: Tensor, inside: Tensor
    ) -> tuple[Tensor, _Pass]:
        """The scores behind the frames that are passed with blanks (``frame_sync.BeamSearch._pass``)."""
        best = label.amax(-1)
        for each in stays[1:]:
            best = best.maximum(each)
        blank = stays[0].masked_fill(~inside[:, None], 0.0)
        waited = blank.cumsum(-1)
        after = score.unsqueeze(-1) + waited
        floor = after.amax(1) - self._pruning.threshold  # (B, F)
        stops = ((after - blank + best).amax(1) >= floor) & inside
        stopped = stops.any(-1)
        skipped = torch.where(stopped, stops.int().argmax(-1), inside.sum(-1))
        passed = self._ahead < skipped[:, None]
        fell = ((after < floor[:, None]) & passed[:, None]).any(-1)
        waited = waited.masked_fill(~passed[:, None], 0.0).gather(
            -1, (skipped - 1).clamp_min(0)[:, None, None].expand(-1, score.shape[1], 1)
        )
        waited = waited.squeeze(-1)
        return (score + waited).masked_fill(fell, -torch.inf), _Pass(skipped, stopped, waited)

    def _extend(self, here: _At, passed: _Pass, gain: Tensor, token: Tensor) -> tuple[_At, _Did]:
        """The best extensions by ``gain`` ``(B, K, W)`` with ``token`` ``(B, W)``."""
        emitter, width = self._emitter, gain.shape[-1]
        total = (here.score.unsqueeze(-1) + gain).flatten(1)
        score, index = total.topk(min(self._pruning.pool, total.shape[1]), dim=-1)
        score = score.masked_fill(score < score[:, :1] - self._pruning.threshold, -torch.inf)
        parent = index // width
        place = index - parent * width
        token = token.gather(1, place)
        blank = token == BLANK
        before, surface = here.model.gather(1, parent), here.surface.gather(1, parent)
        surface = torch.where(blank, surface, extend_surface(surface, token))
        said = emitter.advance(before, token.clamp_min(0))
        if emitter.repeats:
            before = torch.where((place == 0) & passed.stopped[:, None], emitter.close(before), before)
        model = torch.where(blank, before, said)
        score, kept = self._keep(score, surface + model if emitter.repeats else surface, surface)
        parent = parent.gather(1, kept)
        frame = here.frame + passed.skipped
        after = _At(score, model.gather(1, kept), surface.gather(1, kept), frame + passed.stopped)
        gained = gain.flatten(1).gather(1, index.gather(1, kept))
        did = _Did(frame, parent, token.gather(1, kept), gained, passed.waited.gather(1, parent))
        return after, did

    def _keep(self, score: Tensor, key: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and places of the hypotheses that go on, recombined by ``key`` ``(B, M)``, best first."""
        size, pruning = score.shape[1], self._pruning
        score = recombine(score, key, pruning.before(size), pruning.maximum)
        score, order = score.sort(dim=-1, descending=True, stable=True)
        if self._emitter.repeats:
            score = score.masked_fill(~within_beam(surface.gather(1, order), pruning.beam), -torch.inf)
            score, again = score.sort(dim=-1, descending=True, stable=True)
            order = order.gather(1, again)
        wide = pruning.outside - size
        if wide > 0:
            score = torch.nn.functional.pad(score, (0, wide), value=-torch.inf)
            order = torch.nn.functional.pad(order, (0, wide))
        return score[:, : pruning.outside], order[:, : pruning.outside]


class _Recorded:
    """A step as a CUDA graph, and room for what the replays note.

    Args:
        step: the step.
        where: where the first replay goes on from.
        most: replays at most.
    """

    def __init__(self, step: Callable[[_At], tuple[_At, _Did]], where: _At, most: int) -> None:
        self.where = _At(*(each.clone() for each in where))
        self._count = 0
        self._place = torch.zeros(1, dtype=torch.long, device=where.frame.device)
        batch, wide = where.frame, where.score
        shapes = (batch, where.model, where.model, wide, wide)
        self._room = _Did(*(each.new_empty((most, *each.shape)) for each in shapes))
        stream, self._graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step(self.where)  # the stream's own workspaces
            self._graph.capture_begin()
            after, did = step(self.where)
            for old, new in zip(self.where, after, strict=True):
                old.copy_(new)
            for room, each in zip(self._room, did, strict=True):
                room.index_copy_(0, self._place, each[None])
            self._place += 1
            self._graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)

    def replay(self, count: int) -> None:
        """Take ``count`` steps."""
        for _ in range(count):
            self._graph.replay()
        self._count += count

    def done(self) -> list[_Did]:
        """What the steps did."""
        columns = (each[: self._count].unbind(0) for each in self._room)
        return [_Did(*each) for each in zip(*columns, strict=True)]
