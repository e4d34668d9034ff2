"""Lattices read from a finished search, or from its n-best list.

A search that recombines only equal token sequences leaves a tree: whatever was merged had the same tokens. One
that also merges hypotheses of a common short history (Prabhavalkar et al. 2021, arXiv 2012.06749) leaves a graph
with far more sequences than its beam; ``Merged`` is what it has to record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoding.lattice import RECOMBINED, UNKNOWN, Draft, Floats, Ints, Label, Lattice
from decoding.trace import BLANK, RawHypothesis, Step
from lm.errors import DataError


class Merged(NamedTuple):
    """All M extensions that one search step merged into the K hypotheses it kept.

    Attributes:
        step: the extensions, as a ``Step`` of ``(B, M)`` columns.
        slot: ``(B, M)`` place of the hypothesis that an extension was merged into, -1 if it was dropped.
        score: ``(B, M)`` log probability of an extension before recombination.
        surface: ``(B, M)`` hash of its tokens. Extensions of one slot and one surface are added up; others of the
            slot stand beside each other.
    """

    step: Step
    slot: Tensor
    score: Tensor
    surface: Tensor


def lattice_of_nbest(hypotheses: Sequence[RawHypothesis]) -> Lattice:
    """The prefix tree of an n-best list, in which every hypothesis keeps its score, its parts and its times.

    Hypotheses share the tokens of a common beginning as far as they were heard at the same time. Only the totals
    of a hypothesis are known, so its parts stand at its end.
    """
    if not hypotheses:
        raise DataError("an empty n-best list", "at least one hypothesis", "leave the utterance out")
    names = tuple(dict.fromkeys([name for h in hypotheses for name in h.parts] + [RECOMBINED]))
    graph, known = Draft(), dict[tuple[int, int, int, bool, int], int]()
    finals: dict[int, Floats] = {}
    for hypothesis in sorted(hypotheses, key=lambda h: -h.score):
        opened = {span.start for span in hypothesis.spans}
        ended = {span.end - 1: span.node for span in hypothesis.spans}
        at = 0
        for place, token in enumerate(hypothesis.tokens):
            frame = hypothesis.frames[place] if hypothesis.frames else UNKNOWN
            entity = (place in opened, ended.get(place, -1))
            if (child := known.get((at, token, frame, *entity))) is None:
                child = known[at, token, frame, *entity] = graph.add_node()
                label = (token, frame, hypothesis.token_logp[place], *entity)
                graph.add(at, child, label, np.zeros(len(names)))
            at = child
        parts = hypothesis.parts | {RECOMBINED: hypothesis.score - sum(hypothesis.parts.values())}
        finals.setdefault(at, np.array([parts.get(name, 0.0) for name in names]))
    return graph.finish(names, finals)


def read_lattices(
    steps: Sequence[Step],
    score: Tensor,
    finish: Tensor,
    names: Sequence[str],
    merged: Sequence[Merged | None] | None = None,
) -> list[Lattice]:
    """The lattice of each utterance of a finished search.

    Without ``merged`` it holds the hypotheses of the search with their scores, those of equal tokens added up as in
    the n-best list. With it, paths of equal tokens compete.

    Args:
        steps: ``Trace.steps``.
        score: ``(B, K)`` final scores, -inf for hypotheses that do not count.
        finish: ``(B, K, S)`` what the scorers added at the end.
        names: names of the scorers.
        merged: what each step merged; None, as a whole or for a step, where each hypothesis has one past.

    Raises:
        DataError: an utterance has no finite final score.
    """
    pasts = merged or [None] * len(steps)
    sources = ("model", "lm", "classes", *names, RECOMBINED)
    # A scorer may be called like a part of the model: the label-synchronous search's class language model is.
    parts = tuple(dict.fromkeys(sources))
    columns = [parts.index(name) for name in sources]
    records = [_record(step, past, columns) for step, past in zip(steps, pasts, strict=True)]
    wide = np.zeros((*score.shape, len(parts)))
    for i, column in enumerate(columns[3:-1]):
        wide[..., column] += finish[..., i].cpu().double().numpy()
    final = score.cpu().double().numpy()
    return [_read(records, b, final[b], wide[b], parts, merged is None) for b in range(len(final))]


class _Record(NamedTuple):
    """A step in numpy: frame ``(B,)``; slot, parent and label of each extension ``(B, M)``; parts ``(B, M, P)``."""

    frame: Ints
    slot: Ints
    parent: Ints
    surface: Ints
    score: Floats
    token: Ints
    logp: Floats
    entered: NDArray[np.bool_]
    node: Ints
    parts: Floats

    def label(self, b: int, place: int) -> Label:
        """Label of the arc that an extension makes."""
        token, logp = int(self.token[b, place]), float(self.logp[b, place])
        return token, int(self.frame[b]), logp, bool(self.entered[b, place]), int(self.node[b, place])

    def pasts(self, b: int, live: set[int]) -> dict[int, list[tuple[int, float]]]:
        """For each live slot the extensions to keep, with what others of the same tokens add to each."""
        groups: dict[int, dict[int, list[int]]] = {}
        for place, (slot, surface) in enumerate(
            zip(self.slot[b].tolist(), self.surface[b].tolist(), strict=True)
        ):
            if slot in live and self.score[b, place] > -np.inf:
                groups.setdefault(slot, {}).setdefault(surface, []).append(place)
        kept: dict[int, list[tuple[int, float]]] = {}
        for slot, surfaces in sorted(groups.items()):
            for places in surfaces.values():
                scores = self.score[b, places]
                best = int(scores.argmax())
                added = float(np.logaddexp.reduce(scores) - scores[best])
                kept.setdefault(slot, []).append((places[best], added))
        return kept


def _record(step: Step, merged: Merged | None, columns: Sequence[int]) -> _Record:
    if merged is None:
        slot = torch.arange(step.parent.shape[1], device=step.parent.device).expand_as(step.parent)
        merged = Merged(step, slot, torch.zeros_like(step.gain), slot)
    step = merged.step
    lm, outside = step.lm_gain, step.node < 0
    own = step.gain - step.extra.sum(-1)
    parts = (own + step.waited - lm, torch.where(outside, lm, 0.0), torch.where(outside, 0.0, lm))
    wide = torch.cat((torch.stack(parts, dim=-1), step.extra), dim=-1).cpu().double()
    total = torch.zeros(*wide.shape[:2], max(columns, default=0) + 1, dtype=torch.float64)
    return _Record(
        frame=step.frame.cpu().numpy(),
        slot=merged.slot.cpu().numpy(),
        parent=step.parent.cpu().numpy(),
        surface=merged.surface.cpu().numpy(),
        score=merged.score.cpu().double().numpy(),
        token=step.token.cpu().numpy(),
        logp=own.cpu().double().numpy(),
        entered=step.entered.cpu().numpy(),
        node=torch.where(step.ended, step.node, -1).cpu().numpy(),
        parts=total.index_add_(-1, torch.tensor(columns[:-1]), wide).numpy(),
    )


class _Place(NamedTuple):
    """Where a hypothesis stands: its last node, the blanks' parts since then, score and tokens of its best path."""

    node: int
    waiting: Floats
    best: float
    tokens: tuple[int, ...]


def _read(
    records: Sequence[_Record], b: int, score: Floats, finish: Floats, parts: tuple[str, ...], tree: bool
) -> Lattice:
    ends = np.flatnonzero(np.isfinite(score)).tolist()
    if not ends:
        raise DataError(
            f"utterance {b} of the search has no hypothesis",
            "a finite final score",
            "widen the beam or leave the utterance out",
        )
    live, pasts = set(ends), []
    for record in reversed(records):
        pasts.append(record.pasts(b, live))
        live = {int(record.parent[b, place]) for ways in pasts[-1].values() for place, _ in ways}
    graph = Draft()
    places = {0: _Place(0, np.zeros(len(parts)), 0.0, ())}
    for record, kept in zip(records, reversed(pasts), strict=True):
        places = _extend(graph, record, b, kept, places)
    groups: dict[tuple[int, ...], list[int]] = {}
    ends.sort(key=lambda slot: -score[slot])
    for slot in ends:
        groups.setdefault(places[slot].tokens, []).append(slot)
    finals: dict[int, Floats] = {}
    for slot in ends:
        node, waiting, best, tokens = places[slot]
        alike = groups[tokens]
        whole = np.logaddexp.reduce(score[alike]) if tree and slot == alike[0] else score[slot]
        ending = waiting + finish[slot]
        ending[-1] += whole - finish[slot].sum() - best
        finals.setdefault(node, ending)  # CTC has two ways to wait behind a node
    return graph.finish(parts, finals)


def _extend(
    graph: Draft,
    record: _Record,
    b: int,
    kept: Mapping[int, list[tuple[int, float]]],
    places: Mapping[int, _Place],
) -> dict[int, _Place]:
    """Add one step to the graph; a hypothesis that only waits makes no node."""
    after: dict[int, _Place] = {}
    for slot, ways in kept.items():
        alone = len(ways) == 1 and record.token[b, ways[0][0]] == BLANK
        target = -1 if alone else graph.add_node()
        for place, added in ways:
            node, waiting, best, tokens = places[int(record.parent[b, place])]
            gained = record.parts[b, place].copy()
            gained[-1] += added
            best += float(gained.sum())
            if alone:
                after[slot] = _Place(node, waiting + gained, best, tokens)
                continue
            label = record.label(b, place)
            graph.add(node, target, label, waiting + gained)
            if slot not in after or best > after[slot].best:
                grown = tokens if label[0] == BLANK else (*tokens, label[0])
                after[slot] = _Place(target, np.zeros(len(gained)), best, grown)
    return after
