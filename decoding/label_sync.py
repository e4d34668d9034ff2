"""Label-synchronous beam search over utterances and beams at once, for any emitter and any stack of scorers.

At each step every live hypothesis takes a label or ends. Ends and labels compete for the places of the beam, so
a beam of one is greedy search; a hypothesis that ended leaves its place and is kept apart, with the best that
have ended so far. An utterance is done when no live hypothesis can still come near the best of these, or at its
greatest number of labels.

When that is: further labels and the end add at most the length bonus, as log probabilities do. So a live
hypothesis of u labels and score s can come to a final score of at most max over U >= u of
(s + bonus (U - u)) / (U + 1)^alpha, with U up to the greatest number of labels. It is dropped when this bound,
computed from s + ``threshold``, is below the best final score. The threshold keeps runners-up for the n-best
list, and it is the room for scorers that reward labels (phrase boosts, a subtracted language model): the
best hypothesis can be lost to this rule only if from there on they add more than ``threshold`` nats on balance.

A class grammar is one more language model here: its log probabilities are added to the model's own with
``class_weight``, that of the end too where its contexts score ends, and in an utterance without lists it is the
plain language model as the last scorer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from decoding.beam import (
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
from decoding.class_status import END, EXITED, NORMAL, ClassArcs, ClassGrammar
from decoding.entity_graph import EntityGraph
from decoding.label_emitter import Attending, LabelSynchronous, attended_frames
from decoding.lattice import Lattice
from decoding.length_bonus import LENGTH, LengthBonus
from decoding.scorer import Scorer
from decoding.trace import BLANK, RawHypothesis, Step, Trace
from lm.config import Config
from lm.errors import ConfigError

CLASS_LM, CLASSES = "lm", "classes"
"""Names of the class grammar's parts: outside and inside entities."""
Heard: TypeAlias = list[list[tuple[int, ...]]]
"""Tokens of some hypotheses of each utterance, or their frames."""
Locate: TypeAlias = Callable[[Heard], Heard]
"""From tokens to frames."""


class LabelBeamConfig(Config):
    """Settings of the label-synchronous search."""

    beam: int = Field(8, ge=1)
    """Distinct label sequences kept for each utterance."""
    threshold: float = Field(8.0, gt=0)
    """Hypotheses this many nats behind the best of their length, or of those that ended, are dropped."""
    nbest: int = Field(8, ge=1)
    """Hypotheses returned for each utterance."""
    length_normalisation: float = Field(0.0, ge=0, le=1)
    """Final scores are divided by (labels + 1) to this power (the end counts as one); 0 is off."""
    length_bonus: float = 0.0
    """Nats added for each label."""
    end_threshold: float | None = Field(None, gt=0)
    """A hypothesis may end only if the model's log P(end) is at least this times its best log P(label); 1.1 in
    Irie et al. 2019 (1905.04226). Against early ends where scorers make labels dearer."""
    class_weight: float = Field(0.3, gt=0)
    """Weight of the class grammar's language model."""
    recombine: Literal["sum", "max"] = "sum"
    """What becomes of class paths that are found to be equal: their probabilities are added, or the best counts."""


@dataclass
class Ended:
    """Hypotheses that have ended, best first, ``(B, F)`` each; a score of -inf marks an unused place.

    ``score`` is the sum of all parts, ``rank`` what it comes to with length normalisation, ``surface`` the hash
    of the tokens and the end.
    """

    score: Tensor
    rank: Tensor
    surface: Tensor


class LabelBeamSearch:
    """One search; make a new one for each batch.

    A scorer of weight 0 is left out. The hypotheses' ``frames`` are where ``locate`` says, without it where the
    emitter attended for each label, and empty if it is not ``Attending``. With length normalisation their
    ``score`` is the normalised one.

    Args:
        emitter: the model.
        config: settings.
        grammar: class language model.
        scorers: further knowledge sources; their ``finish`` is added with the end.
        locate: frame of each label of the hypotheses found, by utterance.

    Raises:
        ConfigError: two parts of the score have the same name.
    """

    def __init__(
        self,
        emitter: LabelSynchronous,
        config: LabelBeamConfig,
        grammar: ClassGrammar | None = None,
        scorers: Sequence[Scorer] = (),
        locate: Locate | None = None,
    ) -> None:
        self._emitter = emitter
        self._locate = locate or partial(_attended, emitter)
        self._config = config
        self._grammar = grammar
        bonus = [LengthBonus(config.length_bonus, emitter.max_labels.device)] if config.length_bonus else []
        self._scorers: list[Scorer] = [*bonus, *(s for s in scorers if s.weight)]
        self._ends = grammar is not None and grammar.contexts.ends
        self._names = [s.name for s in self._scorers] + ([END] if self._ends else [])
        self._names += [CLASS_LM, CLASSES] if grammar else []
        _check_names(self._names)
        # Classes make several hypotheses of one surface; room for each twice.
        self._room = 1 if grammar is None else 2
        # Extensions looked at before recombination: the same number with and without classes, so that an
        # utterance without lists gives the same whatever shares its batch.
        self._pool = 4 * config.beam
        self._most: Tensor = emitter.max_labels
        self._before = earlier(self._pool if grammar else 0, self._most.device)
        self._tokens = torch.arange(emitter.num_tokens, device=self._most.device).expand(len(self._most), -1)
        self._trace = Trace(maximum=config.recombine == "max")
        self._found: list[list[RawHypothesis]] = []

    @torch.no_grad()
    def run(self) -> list[list[RawHypothesis]]:
        """Search the whole batch: the n-best list of each utterance, best first."""
        live = self._first(len(self._most))
        nothing = live.score[:, :0]
        ended = Ended(nothing, nothing, live.state[:, :0, SURFACE])
        for labels in range(int(self._most.max()) + 1):
            live, ended = self._step(labels, live, ended)
            if bool(live.score.isneginf().all()):
                break
        return self._finish(live, ended)

    @property
    def graph(self) -> EntityGraph | None:
        """The lists' graph that nodes of hypotheses' entities belong to; None without lists."""
        return self._grammar.graph if self._grammar else None

    def advance(self) -> None:
        """Search; ``finish`` gives what was found (the interface of ``BeamSearch``)."""
        self._found = self.run()

    def finish(self) -> list[list[RawHypothesis]]:
        """The n-best lists that ``advance`` found."""
        return self._found

    def lattices(self) -> list[Lattice | None]:
        """None are kept: histories of an attention model never meet again, the n-best list holds as much.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a lattice of an attention model", "its n-best list", "use rescoring.over=nbest")

    def _first(self, utterances: int) -> Beam:
        state = self._emitter.start()
        columns = [torch.zeros_like(state)] * SCORERS + [s.start(utterances) for s in self._scorers]
        columns[MODEL] = state
        columns[NODE] = torch.full_like(state, NORMAL)
        if self._grammar:
            columns[HISTORY], columns[NODE] = self._grammar.start(utterances)
        return Beam(torch.zeros(utterances, 1, device=state.device), torch.stack(columns, dim=-1)[:, None])

    def _step(self, labels: int, live: Beam, ended: Ended) -> tuple[Beam, Ended]:
        """Extend the live hypotheses, of ``labels`` labels each, by a label or the end."""
        found, parts = self._candidates(labels, live, ended)
        total = live.score.unsqueeze(-1) + found.gain
        columns = total.shape[-1]
        score, index = total.flatten(1).topk(min(self._pool, total[0].numel()), dim=-1)
        score = score.masked_fill(score < score[:, :1] - self._config.threshold, -torch.inf)
        parent = index // columns
        column = index - parent * columns
        token = found.token.gather(1, column)
        node, closed = self._nodes(found, index, column)
        state = self._follow(live.select(parent), token, node, closed)
        if self._grammar:
            order = self._before[: score.shape[1], : score.shape[1]]
            score = recombine(score, state_key(state), order, self._config.recombine == "max")
        score, kept = best_surfaces(score, state[..., SURFACE], self._config.beam, self._room)
        new = Beam(score, state)
        new.state = new.select(kept)
        parent, token, index, column, node, closed = (
            x.gather(1, kept) for x in (parent, token, index, column, node, closed)
        )
        gain, lm_gain = (x.flatten(1).gather(1, index) for x in (found.gain, found.lm_gain))
        place = torch.where(token == BLANK, 0, found.place.gather(1, column) + 1)
        chosen = self._chosen(parts, parent, place, node, lm_gain)
        entered = (node >= 0) & (live.state[..., NODE].gather(1, parent) < 0)
        none = torch.zeros_like(gain)
        frame = torch.full_like(self._most, labels)
        step = Step(frame, parent, token, node, entered, closed, gain, none, chosen, none)
        over = token == BLANK
        before = live.score.shape[1], ended.score.shape[1]
        ended, stored = self._store(labels, new, over, ended)
        new, going = self._go_on(labels + 1, new, over, ended)
        self._record(step, before, going, stored)
        self._advance(new, *(x.gather(1, going) for x in (token, node, closed)))
        return new, ended

    def _candidates(self, labels: int, live: Beam, ended: Ended) -> tuple[Candidates, list[Tensor]]:
        """The end and all labels, and the weighted part ``(B, K, 1 + V)`` of each scorer in them.

        (And what the class grammar says of the end, where it does.)
        """
        scores = self._emitter.score(live.state[..., MODEL])
        label, end = scores.label_logp.float(), scores.end_logp.float()
        last = (labels >= self._most)[:, None]
        cannot = self._cannot_end(live, ended, last)
        if self._config.end_threshold is not None:
            cannot = cannot | (~last & (end < self._config.end_threshold * label.amax(-1)))
        parts = self._parts(live)
        for part in parts:
            end, label = end + part[..., 0], label + part[..., 1:]
        end = end.masked_fill(cannot, -torch.inf)
        label = label.masked_fill(last.unsqueeze(-1), -torch.inf)
        stay = end.unsqueeze(-1)
        if self._grammar is None:
            return plain_candidates(stay, label, self._tokens, None), parts
        arcs = self._arcs(self._grammar, live, label)
        return class_candidates(stay, label, self._tokens, self._config.class_weight, arcs), parts

    def _arcs(self, grammar: ClassGrammar, live: Beam, label: Tensor) -> ClassArcs:
        """What the class grammar allows next; to it the step is a recording of one frame."""
        history, node = live.state[..., HISTORY], live.state[..., NODE]
        tokens = self._tokens[:, None]
        # Arcs into entities are chosen by what the live hypotheses expect to hear next.
        grammar.listen(tokens, (live.score.unsqueeze(-1) + label).amax(1, keepdim=True))
        look = grammar.look(tokens, history, node)
        look = look._replace(normal=look.normal[:, :, 0])
        return grammar.arcs(torch.zeros_like(self._most), self._tokens, look, node)

    def _cannot_end(self, live: Beam, ended: Ended, last: Tensor) -> Tensor:
        """Hypotheses inside an entity, unless it is the last step and nothing else can end: ``(B, K)``."""
        inside = live.state[..., NODE] >= 0
        whole = (~inside & ~live.score.isneginf()).any(-1) | (~ended.score.isneginf()).any(-1)
        return inside & (whole[:, None] | ~last)

    def _parts(self, live: Beam) -> list[Tensor]:
        batch, beams = live.score.shape
        tokens = self._tokens[:, None].expand(-1, beams, -1).flatten(0, 1)
        parts = []
        for i, scorer in enumerate(self._scorers, start=SCORERS):
            state = live.state[..., i].flatten()
            part = torch.cat((scorer.finish(state)[:, None], scorer.score(state, tokens)), dim=-1)
            parts.append(scorer.weight * part.view(batch, beams, -1))
        if self._grammar and self._ends:
            end = self._grammar.end_logp(live.state[..., HISTORY], live.state[..., NODE])
            end = self._config.class_weight * end.unsqueeze(-1)
            parts.append(torch.nn.functional.pad(end, (0, tokens.shape[-1])))
        return parts

    def _nodes(self, found: Candidates, index: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Entity tree node each extension led to, and whether it closed an entity there."""
        if found.node is None or found.ends is None:
            return torch.full_like(index, NORMAL), torch.zeros_like(index, dtype=torch.bool)
        return found.node.flatten(1).gather(1, index), found.ends[column]

    def _follow(self, state: Tensor, token: Tensor, node: Tensor, closed: Tensor) -> Tensor:
        """Bring hashes and node of the extended hypotheses up to date."""
        over = token == BLANK
        written = torch.where(over, self._emitter.num_tokens, token)  # the end is a token of its own here
        state[..., SURFACE] = extend_surface(state[..., SURFACE], written)
        if self._grammar is None:
            return state
        label = torch.where(closed, self._grammar.tag_of(node), token)
        grows = ~over & (closed | (node < 0))
        path = state[..., PATH]
        state[..., PATH] = torch.where(grows, extend_path(path, label), path)
        state[..., NODE] = torch.where(over, state[..., NODE], torch.where(closed, EXITED, node))
        return state

    def _chosen(
        self, parts: list[Tensor], parent: Tensor, place: Tensor, node: Tensor, lm_gain: Tensor
    ) -> Tensor:
        """The parts of the extensions taken, ``(B, K, S)``, in the order of the names."""
        row = torch.arange(len(parent), device=parent.device)[:, None]
        chosen = [part[row, parent, place] for part in parts]
        if self._grammar:
            chosen += [lm_gain.masked_fill(node >= 0, 0.0), lm_gain.masked_fill(node < 0, 0.0)]
        return torch.stack(chosen, dim=-1) if chosen else lm_gain.new_zeros((*parent.shape, 0))

    def _store(self, labels: int, new: Beam, over: Tensor, ended: Ended) -> tuple[Ended, Tensor]:
        """The best of those that ended before and now; their places among ``new`` followed by ``ended``."""
        score = torch.cat((new.score.masked_fill(~over, -torch.inf), ended.score), dim=-1)
        rank = torch.cat((self._rank(score[:, : over.shape[1]], labels), ended.rank), dim=-1)
        surface = torch.cat((new.state[..., SURFACE], ended.surface), dim=-1)
        size = max(self._config.beam, self._config.nbest)
        rank, place = best_surfaces(rank, surface, size, self._room)
        score, surface = score.gather(1, place), surface.gather(1, place)
        return Ended(score.masked_fill(rank.isneginf(), -torch.inf), rank, surface), place

    def _go_on(self, labels: int, new: Beam, over: Tensor, ended: Ended) -> tuple[Beam, Tensor]:
        """The hypotheses that are still worth extending, and their places in ``new``."""
        bound = self._bound(new.score, labels)
        hopeless = over | (bound < ended.rank.amax(-1, keepdim=True))
        score, place = new.score.masked_fill(hopeless, -torch.inf).sort(dim=-1, descending=True, stable=True)
        size = used(score)
        place = place[:, :size]
        return Beam(score[:, :size], new.select(place)), place

    def _bound(self, score: Tensor, labels: int) -> Tensor:
        """Best final score that hypotheses of ``labels`` labels may come to (see the module's text).

        With an exponent of at most 1 and a bonus that is not negative, the score as a function of its final
        length falls and then rises, so that one of the two ends is its maximum.
        """
        most = self._most.clamp_min(labels)[:, None]
        score = score + self._config.threshold
        longest = score + max(0.0, self._config.length_bonus) * (most - labels)
        return torch.maximum(self._rank(score, labels), self._rank(longest, most))

    def _rank(self, score: Tensor, labels: int | Tensor) -> Tensor:
        """Final score of hypotheses that end after ``labels`` labels."""
        normaliser: float | Tensor = (labels + 1) ** self._config.length_normalisation
        return score / normaliser

    def _record(self, step: Step, before: tuple[int, int], going: Tensor, stored: Tensor) -> None:
        """Add the step to the trace: columns of the hypotheses that go on, then of those that have ended.

        ``before`` counts both columns before the step; ``stored`` points into the step's, then the ended ones.
        """
        live, kept = before
        same = torch.arange(live, live + kept, device=going.device).expand(len(going), -1)
        row = torch.arange(len(going), device=going.device)[:, None]
        take = torch.cat((going, stored), dim=-1)

        def join(columns: Tensor, fill: int) -> Tensor:
            carried = columns.new_full((len(going), kept, *columns.shape[2:]), fill)
            return torch.cat((columns, carried), dim=1)[row, take]

        self._trace.steps.append(
            Step(
                frame=step.frame,
                parent=torch.cat((step.parent, same), dim=1)[row, take],
                token=join(step.token, BLANK),
                node=join(step.node, NORMAL),
                entered=join(step.entered, 0),
                ended=join(step.ended, 0),
                gain=join(step.gain, 0),
                lm_gain=join(step.lm_gain, 0),
                extra=join(step.extra, 0),
                waited=join(step.waited, 0),
            )
        )

    def _advance(self, new: Beam, token: Tensor, node: Tensor, closed: Tensor) -> None:
        """Advance model, history and scorers of the live hypotheses."""
        rows = (~new.score.isneginf()).nonzero(as_tuple=True)
        if not len(rows[0]):
            return
        labels, state = token[rows], new.state[rows]
        state[:, MODEL] = self._emitter.advance(state[:, MODEL], labels)
        if self._grammar:
            tags = self._grammar.tag_of(node[rows])
            grows = (closed[rows] | (node[rows] < 0)).nonzero().squeeze(1)
            written = torch.where(closed[rows], tags, labels)[grows]
            state[grows, HISTORY] = self._grammar.advance(state[grows, HISTORY], written)
        for i, scorer in enumerate(self._scorers, start=SCORERS):
            state[:, i] = scorer.advance(state[:, i], labels)
        new.state[rows] = state

    def _finish(self, live: Beam, ended: Ended) -> list[list[RawHypothesis]]:
        score = torch.cat((torch.full_like(live.score, -torch.inf), ended.score), dim=-1)
        added = score.new_zeros((*score.shape, len(self._names)))
        lists = self._trace.read(score, added, self._names, score.shape[1], self._worth)
        ranked = [sorted(map(self._ranked, found), key=lambda h: -h.score) for found in lists]
        return self._located([found[: self._config.nbest] for found in ranked])

    def _ranked(self, raw: RawHypothesis) -> RawHypothesis:
        """The hypothesis with its final score; parts still add up to it."""
        parts = dict(raw.parts)
        if self._grammar and not parts[CLASSES]:
            del parts[CLASSES]
        if not self._config.length_normalisation:
            return replace(raw, parts=parts)
        score = raw.score / (len(raw.tokens) + 1) ** self._config.length_normalisation
        parts[LENGTH] = parts.get(LENGTH, 0.0) + score - raw.score
        return replace(raw, score=score, parts=parts)

    def _located(self, lists: list[list[RawHypothesis]]) -> list[list[RawHypothesis]]:
        """The lists with the frames in which their labels were heard."""
        frames = self._locate([[raw.tokens for raw in found] for found in lists])
        return [
            [replace(raw, frames=where) for raw, where in zip(found, places, strict=True)]
            for found, places in zip(lists, frames, strict=True)
        ]

    def _worth(self, node: int, tokens: Sequence[int]) -> float:
        """What the length of its list cost the entity of ``tokens`` that ends at ``node``."""
        share = self._grammar.graph.share_logp(node, tokens) if self._grammar else 0.0
        return -self._config.class_weight * share


def _attended(emitter: LabelSynchronous, tokens: Heard) -> Heard:
    """The frames that the emitter attended to; none if it does not tell."""
    if isinstance(emitter, Attending):
        return attended_frames(emitter, tokens)
    return [[() for _ in found] for found in tokens]


def best_surfaces(score: Tensor, surface: Tensor, size: int, room: int) -> tuple[Tensor, Tensor]:
    """Scores and places ``(B, M')`` of the hypotheses of the ``size`` best surfaces, best first.

    At most ``room * size`` hypotheses are kept; unused places stay only as far as another utterance needs them.

    Args:
        score: ``(B, M)`` with -inf for unused places.
        surface: ``(B, M)`` hashes.
        size: distinct surfaces.
        room: 1 if no two hypotheses share a surface; else the hypotheses kept per surface, on average.
    """
    score, place = score.sort(dim=-1, descending=True, stable=True)
    if room > 1:
        score = score.masked_fill(~within_beam(surface.gather(1, place), size), -torch.inf)
        score, order = score.sort(dim=-1, descending=True, stable=True)
        place = place.gather(1, order)
    kept = min(room * size, used(score))
    return score[:, :kept], place[:, :kept]


def used(score: Tensor) -> int:
    """Places that the fullest utterance uses, at least 1, of scores ``(B, M)`` in descending order."""
    return max(1, int((~score.isneginf()).sum(-1).max()))


def _check_names(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"two parts of the score are called {twice[0]!r}",
            "a name for each scorer",
            f"rename one; {LENGTH!r}, {END!r}, {CLASS_LM!r} and {CLASSES!r} are the search's own, where used",
        )
