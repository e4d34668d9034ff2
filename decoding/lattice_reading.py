"""Lattices read from a finished search, or from its n-best list.

What a search keeps at its end is a tree: paths that meet had the same tokens. But on its way hypotheses of other
tokens stood where model, language models and lists could not tell them apart (an n-gram forgets what was said
before; so does a predictor of two tokens), and only the better one was followed further. With ``Standing``, which
says where each hypothesis stood, such hypotheses are nodes of one graph: what was heard behind the one is heard
behind the other with the same scores, and the graph holds far more sequences than the beam.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoding.lattice import RECOMBINED, UNKNOWN, Draft, Floats, Ints, Label, Lattice
from decoding.trace import BLANK, RawHypothesis, Standing, Step
from lm.errors import DataError


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
    standing: Sequence[Standing] | None = None,
    maximum: bool = False,
) -> list[Lattice | None]:
    """The lattice of each utterance of a finished search; None where no hypothesis has a finite final score.

    Without ``standing`` it holds the hypotheses of the search with their scores, those of equal tokens added up as
    in the n-best list. With it, hypotheses that stood alike share what follows; the best path is still that of the
    search, with its score.

    Args:
        steps: ``Trace.steps``.
        score: ``(B, K)`` final scores, -inf for hypotheses that do not count.
        finish: ``(B, K, S)`` what was added at the end; last come sources that speak only there.
        names: names of the sources.
        standing: where the hypotheses stood after each step.
        maximum: of hypotheses of equal tokens the best counts, they are not added up.
    """
    sources = ("model", "lm", "classes", *names, RECOMBINED)
    # A scorer may be called like a part of the model: the label-synchronous search's class language model is.
    parts = tuple(dict.fromkeys(sources))
    columns = [parts.index(name) for name in sources]
    stood: Sequence[Standing | None] = standing or [None] * len(steps)
    records = [_record(step, one, columns) for step, one in zip(steps, stood, strict=True)]
    wide = np.zeros((*score.shape, len(parts)))
    for i, column in enumerate(columns[3:-1]):
        wide[..., column] += finish[..., i].cpu().double().numpy()
    final = score.cpu().double().numpy()
    return [_read(records, b, final[b], wide[b], parts, maximum) for b in range(len(final))]


class _Record(NamedTuple):
    """A step in numpy: frame ``(B,)``; parent and label of each hypothesis ``(B, K)``; parts ``(B, K, P)``.

    ``key`` and ``score`` ``(B, K)`` are those of ``Standing``, None without.
    """

    frame: Ints
    parent: Ints
    token: Ints
    logp: Floats
    entered: NDArray[np.bool_]
    node: Ints
    parts: Floats
    key: Ints | None
    score: Floats | None

    def label(self, b: int, slot: int) -> Label:
        """Label of the arc that a hypothesis took."""
        token, logp = int(self.token[b, slot]), float(self.logp[b, slot])
        return token, int(self.frame[b]), logp, bool(self.entered[b, slot]), int(self.node[b, slot])

    def alike(self, b: int, live: set[int]) -> dict[int, list[int]]:
        """For each live hypothesis, by the first of them, all that stood alike, best first."""
        if self.key is None or self.score is None:
            return {slot: [slot] for slot in sorted(live)}
        wanted = {int(self.key[b, slot]) for slot in live}
        groups: dict[int, list[int]] = {}
        for slot in np.argsort(-self.score[b], kind="stable").tolist():
            if self.score[b, slot] > -np.inf and int(self.key[b, slot]) in wanted:
                groups.setdefault(int(self.key[b, slot]), []).append(slot)
        return {slots[0]: slots for slots in groups.values()}


def _record(step: Step, standing: Standing | None, columns: Sequence[int]) -> _Record:
    lm, outside = step.lm_gain, step.node < 0
    own = step.gain - step.extra.sum(-1)
    parts = (own + step.waited - lm, torch.where(outside, lm, 0.0), torch.where(outside, 0.0, lm))
    wide = torch.cat((torch.stack(parts, dim=-1), step.extra), dim=-1).cpu().double()
    total = torch.zeros(*wide.shape[:2], max(columns, default=0) + 1, dtype=torch.float64)
    return _Record(
        frame=step.frame.cpu().numpy(),
        parent=step.parent.cpu().numpy(),
        token=step.token.cpu().numpy(),
        logp=own.cpu().double().numpy(),
        entered=step.entered.cpu().numpy(),
        node=torch.where(step.ended, step.node, -1).cpu().numpy(),
        parts=total.index_add_(-1, torch.tensor(columns[: wide.shape[-1]]), wide).numpy(),
        key=None if standing is None else standing.key.cpu().numpy(),
        score=None if standing is None else standing.score.cpu().double().numpy(),
    )


class _Place(NamedTuple):
    """Where a hypothesis stands: its last node, the blanks' parts since then, score and tokens of its path."""

    node: int
    waiting: Floats
    best: float
    tokens: tuple[int, ...]


def _read(
    records: Sequence[_Record], b: int, score: Floats, finish: Floats, parts: tuple[str, ...], maximum: bool
) -> Lattice | None:
    ends = np.flatnonzero(np.isfinite(score)).tolist()
    if not ends:
        return None
    live, groups = set(ends), []
    for record in reversed(records):
        groups.append(record.alike(b, live))
        live = {int(record.parent[b, slot]) for slots in groups[-1].values() for slot in slots}
    graph = Draft()
    places = {0: _Place(0, np.zeros(len(parts)), 0.0, ())}
    before: Floats | None = np.zeros(1)
    for record, alike in zip(records, reversed(groups), strict=True):
        places = _extend(graph, record, b, alike, places, before)
        before = None if record.score is None else record.score[b]
    ends.sort(key=lambda slot: -score[slot])
    return graph.finish(parts, _finals(places, score, finish, ends, maximum))


def _finals(
    places: Mapping[int, _Place], score: Floats, finish: Floats, ends: Sequence[int], maximum: bool
) -> dict[int, Floats]:
    """What ending at each final node adds; hypotheses of equal tokens are added up in the best of them."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for slot in ends:
        groups.setdefault(places[slot].tokens, []).append(slot)
    finals: dict[int, Floats] = {}
    for slot in ends:
        node, waiting, best, tokens = places[slot]
        alike = groups[tokens]
        added = slot == alike[0] and not maximum
        whole = np.logaddexp.reduce(score[alike]) if added else score[slot]
        ending = waiting + finish[slot]
        ending[-1] += whole - finish[slot].sum() - best
        finals.setdefault(node, ending)  # CTC has two ways to wait behind a node
    return finals


def _extend(
    graph: Draft,
    record: _Record,
    b: int,
    alike: Mapping[int, Sequence[int]],
    places: Mapping[int, _Place],
    before: Floats | None,
) -> dict[int, _Place]:
    """Add one step to the graph; hypotheses that only wait, from one node, make no node."""
    after: dict[int, _Place] = {}
    for slots in alike.values():
        came = [places[int(record.parent[b, slot])] for slot in slots]
        gains = [_gained(record, b, slot, before) for slot in slots]
        waits = all(record.token[b, slot] == BLANK for slot in slots) and len({p.node for p in came}) == 1
        target = came[0].node if waits else graph.add_node()
        waiting = came[0].waiting + gains[0] if waits else np.zeros(len(gains[0]))
        known = set[tuple[int, tuple[int, int]]]()
        for slot, place, gained in zip(slots, came, gains, strict=True):
            label = record.label(b, slot)
            grown = place.tokens if label[0] == BLANK else (*place.tokens, label[0])
            after[slot] = _Place(target, waiting, place.best + float(gained.sum()), grown)
            # Hypotheses that came from one node had the same scores; what they recombined is that of the best.
            if not waits and (place.node, (label[0], label[4])) not in known:
                known.add((place.node, (label[0], label[4])))
                graph.add(place.node, target, label, place.waiting + gained)
    return after


def _gained(record: _Record, b: int, slot: int, before: Floats | None) -> Floats:
    """Parts that a step added to a hypothesis; what it gained by recombination too, where scores are known."""
    gained: Floats = record.parts[b, slot].copy()
    if record.score is not None and before is not None:
        gained[-1] += record.score[b, slot] - before[record.parent[b, slot]] - gained.sum()
    return gained
