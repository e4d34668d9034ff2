"""Frame-synchronous beam search over utterances and beams at once, for any emitter and any stack of scorers.

At each frame a hypothesis either takes the blank and waits for the next frame, or takes a label, at most
``max_symbols_per_frame`` of them; behind the last one it moves on without a blank, so with one symbol per frame
this is the modified beam search of icefall, and a beam of one is greedy search. Hypotheses of equal tokens,
class history and place in a list are recombined by adding their probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

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
    extend_path,
    extend_surface,
    future_key,
    state_key,
)
from decoding.candidates import Candidates, class_candidates, plain_candidates
from decoding.class_status import END, EXITED, NORMAL, ClassGrammar, ClassLook
from decoding.emitter import FrameSynchronous
from decoding.entity_graph import EntityGraph
from decoding.fast_step import FastStep, Frames, Taken
from decoding.lattice import Lattice
from decoding.lattice_reading import read_lattices
from decoding.lookahead import Lookahead
from decoding.pruning import Pruning
from decoding.scorer import Scorer, weighted_parts
from decoding.steady import SteadySearch
from decoding.trace import BLANK, Progress, RawHypothesis, Standing, Step, Trace, quiet_step
from lm.config import Config
from lm.errors import ConfigError


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
    recombine: Literal["sum", "max"] = "sum"
    """What becomes of hypotheses that are found to be equal: their probabilities are added, or the best counts."""


class _View(NamedTuple):
    """What is heard of the next F frames, what classes allow, and ``best`` ``(B, K, F)``, a bound on any label."""

    heard: Frames
    look: ClassLook | None
    best: Tensor


class BeamSearch:
    """One search; make a new one for each batch.

    ``run`` searches all frames that the emitter has. For streams, ``feed`` goes on with further frames, ``partial``
    tells what was found so far, and ``finish`` ends the utterances.

    Every utterance goes through its frames at its own pace: the frames in which no label comes near enough to
    matter are passed in one go, up to ``emitter.lookahead`` of them, and a step is taken at the next frame that
    matters. That changes no answer, only how often the batch has to be worked on.

    Args:
        emitter: the model.
        config: settings.
        grammar: class transitions over a language model, which replaces the emitter's own.
        scorers: further knowledge sources; one of weight 0 is left out.
        reference: take every step in tensors, also on a CPU.
        lattices: remember what ``lattices`` needs.
        steady: search as ``decoding.steady`` does where that can be; None means on a GPU.
    """

    def __init__(
        self,
        emitter: FrameSynchronous,
        config: BeamConfig,
        grammar: ClassGrammar | None = None,
        scorers: Sequence[Scorer] = (),
        reference: bool = False,
        lattices: bool = False,
        steady: bool | None = None,
    ) -> None:
        if emitter.repeats and config.max_symbols_per_frame > 1:
            raise ConfigError(
                f"max_symbols_per_frame = {config.max_symbols_per_frame} with a CTC model",
                "1",
                "leave it out",
            )
        self._emitter = emitter
        self._config = config
        self._grammar = grammar
        self._scorers = [s for s in scorers if s.weight]
        ends = grammar is not None and grammar.contexts.ends
        self._names = [s.name for s in self._scorers] + ([END] if ends else [])
        self._lm_scale = emitter.lm_scale
        if grammar:
            own = grammar.lm_scale is None
            # Minus infinity must stay it under a scale of zero.
            self._lm_scale = max(emitter.lm_scale if own else grammar.lm_scale or 0.0, 1e-12)
        self._pruning = Pruning(
            config.beam,
            config.threshold,
            grammar is not None,
            emitter.repeats,
            emitter.lengths.device,
            config.recombine == "max",
        )
        self._trace = Trace(maximum=config.recombine == "max")
        utterances = len(emitter.lengths)
        self._row = torch.arange(utterances, device=emitter.lengths.device)
        self._heard = torch.zeros_like(self._row)  # frames of each utterance before those the emitter has
        self._at = torch.zeros_like(self._row)  # frame of each utterance, of those
        self._symbols = torch.zeros_like(self._row)  # label steps taken in it
        self._fast = self._fast_step(reference)
        self._lookahead = Lookahead(emitter, compiled=self._fast is not None)
        self._beam = self._first(utterances)
        self._steady = self._steady_search(steady, lattices)
        self._standing: list[Standing] | None = [] if lattices else None
        self._ended: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def run(self) -> list[list[RawHypothesis]]:
        """Search the whole batch: the n-best list of each utterance, best first."""
        self.advance()
        return self.finish()

    @torch.no_grad()
    def feed(self, encoded: Tensor, lengths: Tensor) -> None:
        """Go on with further frames; in whatever amounts they come, the hypotheses are those of the whole.

        (CTC hypotheses that differ only in whether the last label may be repeated are added up where frames are
        passed, so those near the threshold may differ.)

        Args:
            encoded: ``(B, T, D)`` encoder frames, as the emitter takes them.
            lengths: ``(B,)`` how many of them each utterance has.
        """
        self.advance()
        self._heard = self._heard + self._at
        self._at = torch.zeros_like(self._at)
        self._emitter.hear(encoded, lengths)
        self._lookahead.hear()
        if self._steady is not None:
            self._steady.hear()
        if self._grammar and self._fast is None:
            self._grammar.listen(self._emitter.tokens, self._emitter.evidence)
        self.advance()
        if self._standing is None:
            self._trace.settle(self._beam.score)

    @property
    def graph(self) -> EntityGraph | None:
        """The lists that entities of hypotheses are nodes of."""
        return self._grammar.graph if self._grammar else None

    def partial(self) -> list[Progress]:
        """The best hypothesis of each utterance so far, and how much of it stays.

        The tokens of an entity that is not finished stand in it as plain ones.
        """
        return self._trace.progress(self._beam.score, [s.name for s in self._scorers])

    @torch.no_grad()
    def finish(self) -> list[list[RawHypothesis]]:
        """End the utterances: the n-best list of each, best first."""
        return self._finish(self._beam)

    def lattices(self) -> list[Lattice | None]:
        """The lattice of each utterance, behind ``finish``; None where there is no hypothesis.

        Hypotheses share what follows where model, scorers and classes stood alike (``decoding.lattice_reading``).
        """
        if self._standing is None or self._ended is None:
            raise RuntimeError("BeamSearch(..., lattices=True), and finish before lattices")
        steps, maximum = self._trace.steps, self._trace.maximum
        return read_lattices(steps, *self._ended, self._names, self._standing, maximum)

    @torch.no_grad()
    def advance(self) -> None:
        """Take steps until every utterance has passed the frames that the emitter has."""
        if self._steady is not None:
            self._beam, self._at, steps = self._steady.advance(self._beam, self._at)
            self._trace.steps += [step._replace(frame=self._heard + step.frame) for step in steps]
            return
        lengths = self._emitter.lengths
        while bool((self._at < lengths).any()):
            self._step()
            if self._standing is not None:
                self._standing.append(Standing(future_key(self._beam.state), self._beam.score.clone()))

    def _fast_step(self, reference: bool) -> FastStep | None:
        """Compiled steps, where there are any: on a CPU, for one symbol a frame."""
        emitter, config = self._emitter, self._config
        if reference or config.max_symbols_per_frame > 1 or emitter.lengths.is_cuda:
            return None
        return FastStep(self._pruning, self._lm_scale, emitter.num_tokens, self._grammar)

    def _steady_search(self, wanted: bool | None, lattices: bool) -> SteadySearch | None:
        """Steps that wait for nothing, where model and settings allow them."""
        emitter, config = self._emitter, self._config
        able = emitter.steady and config.max_symbols_per_frame == 1 and not lattices
        if not able or self._grammar is not None or self._scorers:
            return None
        wanted = emitter.lengths.is_cuda if wanted is None else wanted
        return SteadySearch(emitter, self._pruning) if wanted else None

    def _first(self, utterances: int) -> Beam:
        state = self._emitter.start()
        columns = [torch.zeros_like(state)] * SCORERS + [s.start(utterances) for s in self._scorers]
        columns[MODEL] = state
        columns[NODE] = torch.full_like(state, NORMAL)
        if self._grammar:
            if self._fast is None:
                self._grammar.listen(self._emitter.tokens, self._emitter.evidence)
            columns[HISTORY], columns[NODE] = self._grammar.start(utterances)
        return Beam(torch.zeros(utterances, 1, device=state.device), torch.stack(columns, dim=-1)[:, None])

    def _step(self) -> None:
        """Pass quiet frames, and extend every hypothesis at the first frame of its utterance that is not quiet."""
        beam = self._beam
        heard = self._hear()
        if self._fast is not None:
            self._take(self._fast.take(beam, heard))
            return
        view = self._view(heard)
        skipped, stopped, waited = self._pass(beam, view)
        self._at = self._at + skipped
        moved = skipped > 0
        self._symbols = self._symbols.masked_fill(moved, 0)
        if self._emitter.repeats or self._config.max_symbols_per_frame > 1:
            beam.state[..., DONE].masked_fill_(moved[:, None], 0)
            model = beam.state[..., MODEL]
            beam.state[..., MODEL] = torch.where(moved[:, None], self._emitter.close(model), model)
        self._lookahead.passed(skipped)
        # Blanks alone make hypotheses equal only where they close what may be repeated.
        if self._emitter.repeats or bool(stopped.any()):
            self._extend(beam, view, skipped.clamp_max(view.heard.frames.shape[1] - 1), stopped, waited)
        else:
            self._trace.steps.append(quiet_step(self._heard + self._at, waited, len(self._scorers)))

    def _take(self, taken: Taken) -> None:
        """Go on from a step taken in compiled code."""
        frame = self._at = self._at + taken.skipped
        self._lookahead.passed(taken.skipped)
        self._trace.steps.append(Step(self._heard + frame, *taken.noted))
        _, token, node, _, ended, *_ = taken.noted
        self._advance(taken.beam, token, node, ended, taken.said)
        self._at = frame + taken.stopped
        self._beam = taken.beam

    def _hear(self) -> Frames:
        """Scores of the next frames of every utterance."""
        emitter, model = self._emitter, self._beam.state[..., MODEL]
        # Unused places look like the first: whatever they hold need not be scored.
        model = torch.where(self._beam.score.isneginf(), model[:, :1], model)
        frames, inside = self._lookahead.frames(self._at)
        tokens = emitter.tokens[self._row[:, None], frames]
        scores = emitter.score(frames, model)
        label, extra, lm = scores.label, None, None
        if self._scorers:
            extra = weighted_parts(self._scorers, self._beam.state, tokens)
            label = label + (extra[..., 0] if extra.shape[-1] == 1 else extra.sum(-1))
        if self._grammar is None:
            lm = emitter.lm_logp(model, tokens)
            lm = None if lm is None else emitter.lm_scale * lm
        return Frames(frames, inside, tokens, scores.blank_logp, scores.repeat_logp, label, lm, extra)

    def _view(self, heard: Frames) -> _View:
        """What classes allow in the frames heard, and a bound on the labels' scores."""
        state, look = self._beam.state, None
        if self._grammar is None:
            best = (heard.label if heard.lm is None else heard.label + heard.lm).amax(-1)
        else:
            look = self._grammar.look(heard.tokens, state[..., HISTORY], state[..., NODE])
            best = self._grammar.bound(heard.frames, look, heard.label, self._lm_scale, state[..., NODE])
        if heard.repeat is not None:
            best = best.maximum(heard.repeat)
        return _View(heard, look, best)

    def _pass(self, beam: Beam, view: _View) -> tuple[Tensor, Tensor, Tensor]:
        """How many frames each utterance passes with blanks, where it stops, and the blanks' score ``(B, K)``.

        A frame stops an utterance if some label would come within the threshold of the best that takes the blank.
        """
        outside = ~view.heard.inside[:, None]
        blank = view.heard.blank.masked_fill(outside, 0.0)
        best = view.best.masked_fill(outside, -torch.inf)
        if self._config.max_symbols_per_frame > 1:
            done = beam.state[..., DONE] > 0
            blank[..., 0].masked_fill_(done, 0.0)
            best[..., 0].masked_fill_(done, -torch.inf)
        after = beam.score.unsqueeze(-1) + blank.cumsum(-1)
        floor = self._pruning.floor(after.transpose(1, 2), (beam.state[..., NODE] >= 0)[:, None])  # (B, F)
        stops = ((after - blank + best).amax(1) >= floor) & view.heard.inside
        stopped = stops.any(-1)
        skipped = torch.where(stopped, stops.int().argmax(-1), view.heard.inside.sum(-1))
        passed = torch.arange(blank.shape[-1], device=skipped.device) < skipped[:, None]
        fell = ((after < floor[:, None]) & passed[:, None]).any(-1)
        waited = torch.nn.functional.pad(blank, (1, 0)).cumsum(-1)
        waited = waited.gather(-1, skipped[:, None, None].expand(-1, waited.shape[1], 1)).squeeze(-1)
        beam.score = (beam.score + waited).masked_fill(fell, -torch.inf)
        return skipped, stopped, waited

    def _extend(self, beam: Beam, view: _View, column: Tensor, stopped: Tensor, waited: Tensor) -> None:
        """Extend the hypotheses of the utterances that ``stopped`` at their ``column`` of the view."""
        last = self._symbols + 1 >= self._config.max_symbols_per_frame
        found, extra = self._candidates(beam, view, column, stopped)
        total = beam.score.unsqueeze(-1) + found.gain
        width = total.shape[-1]
        score, index, sizes = self._pruning.best(total.flatten(1), self._inside(found, beam))
        parent = index // width
        place = index - parent * width
        token = found.token.gather(1, place)
        node, ended = found.reached(index, place)
        state = self._follow(beam.select(parent), token, node, ended, stopped & ~last)
        if self._emitter.repeats:
            closes = (place == 0) & stopped[:, None]
            model = state[..., MODEL]
            # A label just said and the same one behind its blank must differ before they are recombined.
            said = self._emitter.advance(model, token.clamp_min(0))
            model = torch.where(closes, self._emitter.close(model), model)
            state[..., MODEL] = torch.where(token == BLANK, model, said)
        score, kept = self._pruning.keep(score, self._key(state), state, sizes)
        new = Beam(score, state)
        new.state = new.select(kept)
        parent, token, index, place, node, ended = (
            x.gather(1, kept) for x in (parent, token, index, place, node, ended)
        )
        gains = (found.gain.flatten(1).gather(1, index), found.lm_gain.flatten(1).gather(1, index))
        chosen = self._chosen(extra, parent, found.place.gather(1, place), token)
        entered = (node >= 0) & (beam.state[..., NODE].gather(1, parent) < 0)
        frame, waited = self._heard + self._at, waited.gather(1, parent)
        self._trace.steps.append(Step(frame, parent, token, node, entered, ended, *gains, chosen, waited))
        rows = ((token != BLANK) & ~new.score.isneginf()).nonzero(as_tuple=True)
        self._advance(new, token, node, ended, rows)
        self._move_on(new, last, stopped)
        self._beam = new

    def _move_on(self, beam: Beam, last: Tensor, stopped: Tensor) -> None:
        """Let the utterances whose hypotheses have all left the frame go to the next one."""
        if self._config.max_symbols_per_frame == 1:
            self._at = self._at + stopped
            return
        done = (beam.state[..., DONE] > 0) | beam.score.isneginf()
        leaves = stopped & (last | done.all(-1))
        beam.state[..., DONE].masked_fill_(leaves[:, None], 0)
        self._at = self._at + leaves
        self._symbols = torch.where(leaves, 0, self._symbols + stopped)

    def _candidates(
        self, beam: Beam, view: _View, column: Tensor, stopped: Tensor
    ) -> tuple[Candidates, Tensor | None]:
        """All extensions, and the weighted parts ``(B, K, k, S)`` of the scorers."""
        row, state = self._row, beam.state
        heard = view.heard
        tokens, label = heard.tokens[row, column], heard.label[row, :, column]
        stay = heard.blank[row, :, column].unsqueeze(-1)
        if heard.repeat is not None:
            stay = torch.cat((stay, heard.repeat[row, :, column].unsqueeze(-1)), dim=-1)
        if view.look is None:
            lm = None if heard.lm is None else heard.lm[row, :, column]
            found = plain_candidates(stay, label, tokens, lm)
        else:
            assert self._grammar is not None
            look = view.look._replace(normal=view.look.normal[row, :, column])
            arcs = self._grammar.arcs(heard.frames[row, column], tokens, look, state[..., NODE])
            found = class_candidates(stay, label, tokens, self._lm_scale, arcs)
        free = ~stopped[:, None]
        if self._config.max_symbols_per_frame > 1:
            free = free | (state[..., DONE] > 0)
        found.gain[..., 0].masked_fill_(free, 0.0)
        found.gain[..., 1:].masked_fill_(free.unsqueeze(-1), -torch.inf)
        return found, None if heard.extra is None else heard.extra[row, :, column]

    def _key(self, state: Tensor) -> Tensor:
        """Hash under which hypotheses are recombined; one that may repeat its label is not one that may not."""
        key = state_key(state)
        return key + state[..., MODEL] if self._emitter.repeats else key

    def _follow(self, state: Tensor, token: Tensor, node: Tensor, ended: Tensor, stays: Tensor) -> Tensor:
        """Bring hashes, node and done of the extended hypotheses up to date; ``stays`` ``(B,)`` in the frame."""
        blank = token == BLANK
        surface = state[..., SURFACE]
        state[..., SURFACE] = torch.where(blank, surface, extend_surface(surface, token))
        if self._config.max_symbols_per_frame > 1:
            state[..., DONE] = (state[..., DONE] | blank) & stays[:, None]
        if self._grammar is None:
            return state
        label = torch.where(ended, self._grammar.tag_of(node), token)
        grows = ~blank & (ended | (node < 0))
        path = state[..., PATH]
        state[..., PATH] = torch.where(grows, extend_path(path, label), path)
        state[..., NODE] = torch.where(blank, state[..., NODE], torch.where(ended, EXITED, node))
        return state

    def _inside(self, found: Candidates, beam: Beam) -> Tensor | None:
        """``(B, K W)`` extensions that are inside an entity after it; None without classes."""
        if found.node is None or found.ends is None:
            return None
        inside = (found.node >= 0) & ~found.ends
        stays = (found.token == BLANK)[:, None]
        return torch.where(stays, (beam.state[..., NODE] >= 0).unsqueeze(-1), inside).flatten(1)

    def _chosen(self, extra: Tensor | None, parent: Tensor, place: Tensor, token: Tensor) -> Tensor:
        """The scorers' parts of the labels taken, ``(B, K, S)``."""
        if extra is None:
            return torch.zeros((*parent.shape, 0), device=parent.device)
        taken = extra[self._row[:, None], parent, place.clamp_max(extra.shape[2] - 1)]
        return taken.masked_fill((token == BLANK).unsqueeze(-1), 0.0)

    def _advance(
        self, new: Beam, token: Tensor, node: Tensor, ended: Tensor, rows: tuple[Tensor, ...]
    ) -> None:
        """Advance model, history and scorers of the hypotheses that took a token: those in ``rows``."""
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
        """Advance model and history.

        Where they share a store, the model's language model remembers finished entities as their class too; inside
        one, what was said of it so far.
        """
        emitter, model, history = self._emitter, state[:, MODEL], state[:, HISTORY]
        grows = ended | (node < 0)
        if emitter.contexts is grammar.contexts:
            # Outside entities both remember the same; one context a hypothesis is new.
            last, written = emitter.context(model), labels
            if bool(ended.any()):
                last = torch.where(ended, history, last)
                written = torch.where(ended, grammar.tag_of(node), labels)
            after = grammar.advance(last, written)
            state[:, MODEL] = emitter.join(model, labels, after)
            state[:, HISTORY] = torch.where(grows, after, history)
            return
        state[:, MODEL] = emitter.advance(model, labels)
        rows = grows.nonzero().squeeze(1)
        written = torch.where(ended, grammar.tag_of(node), labels)[rows]
        state[rows, HISTORY] = grammar.advance(history[rows], written)

    def _finish(self, beam: Beam) -> list[list[RawHypothesis]]:
        score = beam.score
        finish = [
            s.weight * s.finish(beam.state[..., SCORERS + i].flatten()).view_as(score)
            for i, s in enumerate(self._scorers)
        ]
        if self._grammar and self._grammar.contexts.ends:
            history, node = beam.state[..., HISTORY], beam.state[..., NODE]
            finish.append(self._lm_scale * self._grammar.end_logp(history, node))
        added = torch.stack(finish, dim=-1) if finish else score.new_zeros((*score.shape, 0))
        score = score + added.sum(-1)
        # An entity that was not finished is none; only where nothing else is left do its tokens stand.
        whole = score.masked_fill(beam.state[..., NODE] >= 0, -torch.inf)
        score = torch.where(whole.isneginf().all(-1, keepdim=True), score, whole)
        self._ended = score, added
        return self._trace.read(score, added, self._names, self._config.nbest, self._worth)

    def _worth(self, node: int, tokens: Sequence[int]) -> float:
        """What the length of its list cost the entity of ``tokens`` that ends at ``node``."""
        share = self._grammar.graph.share_logp(node, tokens) if self._grammar else 0.0
        return -self._lm_scale * share
