"""The way back through a search: what each hypothesis did at each step, and the n-best list read from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLANK = -1
"""Token of a step that emits nothing."""

Worth: TypeAlias = Callable[[int, Sequence[int]], float]
"""Nats given back to an entity, by the node it ends at and its tokens."""


class Step(NamedTuple):
    """One search step for every hypothesis, ``(B, K)`` each.

    ``frame`` ``(B,)`` is where each utterance stood; ``waited`` the score of the blanks that led there from the
    step before. ``token`` is BLANK or the token emitted; ``node`` the entity tree node the token led to, negative
    outside entities; ``entered`` and ``ended`` say that the token opened or closed an entity. ``gain`` is what the
    step added to the score then, ``lm_gain`` the language model's part of it, ``extra`` ``(B, K, S)`` the scorers'.
    """

    frame: Tensor
    parent: Tensor
    token: Tensor
    node: Tensor
    entered: Tensor
    ended: Tensor
    gain: Tensor
    lm_gain: Tensor
    extra: Tensor
    waited: Tensor


def quiet_step(frame: Tensor, waited: Tensor, sources: int) -> Step:
    """A step in which every hypothesis took nothing but blanks, of score ``waited`` ``(B, K)``."""
    parent = torch.arange(waited.shape[1], device=waited.device).expand_as(waited)
    no, nothing = torch.zeros_like(parent, dtype=torch.bool), torch.full_like(parent, BLANK)
    none = torch.zeros_like(waited)
    parts = none.new_zeros((*none.shape, sources))
    return Step(frame, parent, nothing, nothing, no, no, none, none, parts, waited)


class Standing(NamedTuple):
    """Where each hypothesis stood after a step, ``(B, K)`` each.

    ``key`` is a hash of all that decides what its labels cost from there on: hypotheses of equal key have the same
    future. ``score`` is what they had gained.
    """

    key: Tensor
    score: Tensor


ALONG = tuple(name for name in Step._fields if name not in ("frame", "parent"))
"""What a step says of each hypothesis."""


@dataclass(frozen=True)
class TokenSpan:
    """An entity in a hypothesis: tokens ``start`` to ``end`` (exclusive) reached the list entries of ``node``."""

    node: int
    start: int
    end: int


@dataclass(frozen=True)
class RawHypothesis:
    """A hypothesis in tokens; times are frame numbers, scores natural logs.

    ``token_logp`` is each token's own log probability given what came before; ``parts`` the total by source.
    """

    tokens: tuple[int, ...]
    frames: tuple[int, ...]
    token_logp: tuple[float, ...]
    score: float
    parts: dict[str, float]
    spans: tuple[TokenSpan, ...]


class Progress(NamedTuple):
    """A search on its way: its best hypothesis, and how much of it stays whatever is heard next.

    The first ``common`` tokens stay with their frames: all hypotheses have them. The first ``settled`` of these are
    one path, so that their scores and entities stay too.
    """

    best: RawHypothesis
    common: int
    settled: int


Path: TypeAlias = dict[str, NDArray[np.float64]]
"""Every field of ``Step`` but the parent along the path of one hypothesis, ``(steps, ...)``."""


@dataclass
class Trace:
    """All steps of a search, but for those that were settled.

    ``past`` holds, for each utterance, what all hypotheses went through before ``steps``: a row for each token, and
    one for all the blanks.
    """

    steps: list[Step] = field(default_factory=list)
    past: list[Path] = field(default_factory=list)
    maximum: bool = False

    def settle(self, score: Tensor) -> None:
        """Fold into ``past`` the steps up to the last at which each utterance had one hypothesis left.

        ``score`` ``(B, K)`` is that of the last step's hypotheses, -inf for those that are no more.
        """
        count, places = self._shared(~score.isneginf())
        if not count:
            return
        columns = self._columns(places, self.steps[:count])
        for b in range(len(score)):
            path = {name: values[:, b, 0] for name, values in columns.items()}
            if len(self.past) == b:
                self.past.append(_folded(path))
            else:
                self.past[b] = _folded(_joined(self.past[b], path))
        del self.steps[:count]

    def progress(self, score: Tensor, names: list[str]) -> list[Progress]:
        """The best hypothesis of each utterance, and what all of ``score`` ``(B, K)`` have in common with it."""
        best = score.argmax(-1, keepdim=True)
        columns = self._columns(best, self.steps)
        nothing, found = dict.fromkeys(names, 0.0), []
        for b, (total, agreed) in enumerate(
            zip(score.gather(1, best).tolist(), self._agreed(score), strict=True)
        ):
            settled = int((self.past[b]["token"] != BLANK).sum()) if self.past else 0
            hypothesis = self._hypothesis(columns, b, 0, total[0], nothing)
            found.append(Progress(hypothesis, settled + agreed, settled))
        return found

    def _agreed(self, score: Tensor) -> list[int]:
        """How many tokens of ``steps`` all live hypotheses of an utterance have at the same frames."""
        every, live = self._columns(_places(score), self.steps, ("token",)), (~score.isneginf()).cpu().numpy()
        found = []
        for b, row in enumerate(live):
            paths = []
            for k in np.nonzero(row)[0] if every else ():
                token, frame = every["token"][:, b, k], every["frame"][:, b, k]
                said = token != BLANK
                paths.append(list(zip(token[said].tolist(), frame[said].tolist(), strict=True)))
            same = takewhile(lambda at: len(set(at)) == 1, zip(*paths, strict=False))
            found.append(sum(1 for _ in same))
        return found

    def _shared(self, live: Tensor) -> tuple[int, Tensor]:
        """How many steps the live hypotheses share, and the places ``(B, 1)`` they all came from in the last."""
        index = _places(live)
        one = live.int().argmax(-1, keepdim=True)
        for count in range(len(self.steps), 0, -1):
            same = index.gather(1, one)
            if bool(((index == same) | ~live).all()):
                return count, same
            index = self.steps[count - 1].parent.gather(1, index)
        return 0, one

    def read(
        self, score: Tensor, finish: Tensor, names: list[str], size: int, worth: Worth
    ) -> list[list[RawHypothesis]]:
        """The n-best lists.

        Hypotheses of the same tokens become one, with their probabilities added. Shown is the reading whose
        score is best when every entity is taken back what its list's length cost it: once the words are an
        entry, the question is only whether this was a place for its class.

        Args:
            score: ``(B, K)`` final scores, -inf for hypotheses that do not count.
            finish: ``(B, K, S)`` what was added at the end; last come sources that speak only there.
            names: names of the sources.
            size: hypotheses wanted for each utterance.
            worth: what is given back to an entity of some tokens that ends at a node.
        """
        columns = self._columns(_places(score), self.steps)
        finals, last = score.tolist(), finish.tolist()
        lists = []
        for b, row in enumerate(finals):
            order = sorted((k for k, s in enumerate(row) if math.isfinite(s)), key=lambda k: -row[k])
            found = [
                self._hypothesis(columns, b, k, row[k], dict(zip(names, last[b][k], strict=True)))
                for k in order
            ]
            lists.append(_merge(found, worth, self.maximum)[:size])
        return lists

    def _columns(self, places: Tensor, steps: Sequence[Step], names: Sequence[str] = ALONG) -> Path:
        """Frame and fields along the paths to ``places`` ``(B, J)`` of the last step: ``(steps, B, J, ...)``."""
        if not steps:
            return {}
        utterances, indices = torch.arange(len(places), device=places.device)[:, None], [places]
        for step in reversed(steps[1:]):
            indices.append(step.parent[utterances, indices[-1]])
        # All steps side by side: a field is then gathered at once.
        flat, before = [], 0
        for step, index in zip(steps, reversed(indices), strict=True):
            flat.append(utterances * step.parent.shape[1] + index + before)
            before += step.parent.numel()
        rows, columns = torch.stack(flat), {}
        for name in names:
            values = torch.cat([getattr(step, name).flatten(0, 1) for step in steps])
            columns[name] = values[rows].cpu().double().numpy()
        frames = torch.stack([step.frame for step in steps]).unsqueeze(-1)  # the same for a whole beam
        return columns | {"frame": frames.expand(-1, -1, places.shape[1]).cpu().double().numpy()}

    def _hypothesis(
        self, columns: Path, b: int, k: int, score: float, finish: dict[str, float]
    ) -> RawHypothesis:
        path = {name: values[:, b, k] for name, values in columns.items()}
        if self.past:
            path = _joined(self.past[b], path)
        if not path:
            return EMPTY
        emitted = np.flatnonzero(path["token"] != BLANK)
        in_entity, scored = path["node"] >= 0, path["extra"]
        entered = bool(in_entity.any())
        extra, lm_gain = scored.sum(0).tolist(), path["lm_gain"]
        classes = float(lm_gain[in_entity].sum()) if entered else 0.0
        lm = float(lm_gain[~in_entity].sum()) if entered else float(lm_gain.sum())
        model = float(path["gain"].sum() + path["waited"].sum()) - sum(extra) - lm - classes
        parts = {"model": model, "lm": lm} | ({"classes": classes} if entered else {})
        extra += [0.0] * (len(finish) - len(extra))
        parts |= {name: extra[i] + last for i, (name, last) in enumerate(finish.items())}
        spans, start = [], 0
        for place, step in enumerate(emitted if entered else ()):
            start = place if path["entered"][step] else start
            if path["ended"][step]:
                spans.append(TokenSpan(int(path["node"][step]), start, place + 1))
        return RawHypothesis(
            tokens=tuple(path["token"][emitted].astype(np.int64).tolist()),
            frames=tuple(path["frame"][emitted].astype(np.int64).tolist()),
            token_logp=tuple((path["gain"] - scored.sum(-1))[emitted].tolist()),
            score=score,
            parts=parts,
            spans=tuple(spans),
        )


EMPTY = RawHypothesis((), (), (), 0.0, {}, ())
"""Nothing was heard yet."""


def _places(score: Tensor) -> Tensor:
    """``(B, K)`` every place of a beam."""
    return torch.arange(score.shape[1], device=score.device).expand(len(score), -1)


def _joined(past: Path, path: Path) -> Path:
    return {name: np.concatenate((past[name], values)) for name, values in path.items()} or past


def _folded(path: Path) -> Path:
    """The same path with all its blanks in one row."""
    said = path["token"] != BLANK
    waited = {name: values[~said].sum(0, keepdims=True) for name, values in path.items()}
    waited["token"][:] = waited["node"][:] = BLANK
    return {name: np.concatenate((waited[name], values[said])) for name, values in path.items()}


def _merge(found: list[RawHypothesis], worth: Worth, maximum: bool) -> list[RawHypothesis]:
    groups: dict[tuple[int, ...], list[RawHypothesis]] = {}
    for hypothesis in found:
        groups.setdefault(hypothesis.tokens, []).append(hypothesis)
    merged = []
    for group in groups.values():
        top = group[0].score
        score = top if maximum else top + math.log(sum(math.exp(h.score - top) for h in group))
        shown = max(
            group,
            key=lambda h: h.score + sum(worth(s.node, h.tokens[s.start : s.end]) for s in h.spans),
        )
        merged.append(replace(shown, score=score) if len(group) > 1 else shown)
    return sorted(merged, key=lambda h: -h.score)
