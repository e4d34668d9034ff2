"""The way back through a search: what each hypothesis did at each step, and the n-best list read from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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


@dataclass
class Trace:
    """All steps of a search."""

    steps: list[Step] = field(default_factory=list)

    def read(
        self, score: Tensor, finish: Tensor, names: list[str], size: int, worth: Worth
    ) -> list[list[RawHypothesis]]:
        """The n-best lists.

        Hypotheses of the same tokens become one, with their probabilities added. Shown is the reading whose
        score is best when every entity is taken back what its list's length cost it: once the words are an
        entry, the question is only whether this was a place for its class.

        Args:
            score: ``(B, K)`` final scores, -inf for hypotheses that do not count.
            finish: ``(B, K, S)`` what the scorers added at the end.
            names: names of the scorers.
            size: hypotheses wanted for each utterance.
            worth: what is given back to an entity of some tokens that ends at a node.
        """
        columns = self._columns()
        finals, last = score.tolist(), finish.tolist()
        lists = []
        for b, row in enumerate(finals):
            order = sorted((k for k, s in enumerate(row) if math.isfinite(s)), key=lambda k: -row[k])
            found = [
                self._hypothesis(columns, b, k, row[k], dict(zip(names, last[b][k], strict=True)))
                for k in order
            ]
            lists.append(_merge(found, worth)[:size])
        return lists

    def _columns(self) -> dict[str, NDArray[np.float64]]:
        """Every field along the path of every final hypothesis, ``(steps, B, K, ...)``."""
        first = self.steps[-1].parent
        index = torch.arange(first.shape[1], device=first.device).expand_as(first)
        rows: dict[str, list[Tensor]] = {name: [] for name in Step._fields if name not in ("frame", "parent")}
        for step in reversed(self.steps):
            for name, found in rows.items():
                value: Tensor = getattr(step, name)
                wide = index if value.dim() == 2 else index.unsqueeze(-1).expand(-1, -1, value.shape[-1])
                found.append(value.gather(1, wide))
            index = step.parent.gather(1, index)
        columns = {name: torch.stack(found[::-1]).cpu().double().numpy() for name, found in rows.items()}
        frames = torch.stack([step.frame for step in self.steps]).unsqueeze(-1)  # the same for a whole beam
        return columns | {"frame": frames.expand(-1, -1, first.shape[1]).cpu().double().numpy()}

    def _hypothesis(
        self, columns: dict[str, NDArray[np.float64]], b: int, k: int, score: float, finish: dict[str, float]
    ) -> RawHypothesis:
        path = {name: values[:, b, k] for name, values in columns.items()}
        emitted = np.nonzero(path["token"] != BLANK)[0]
        in_entity = path["node"] >= 0
        extra = path["extra"].sum(0)
        lm = float(path["lm_gain"][~in_entity].sum())
        classes = float(path["lm_gain"][in_entity].sum())
        parts = {
            "model": float(path["gain"].sum() + path["waited"].sum() - extra.sum()) - lm - classes,
            "lm": lm,
        }
        if in_entity.any():
            parts["classes"] = classes
        parts |= {name: float(extra[i]) + last for i, (name, last) in enumerate(finish.items())}
        spans, start = [], 0
        for place, step in enumerate(emitted):
            start = place if path["entered"][step] else start
            if path["ended"][step]:
                spans.append(TokenSpan(int(path["node"][step]), start, place + 1))
        return RawHypothesis(
            tokens=tuple(int(t) for t in path["token"][emitted]),
            frames=tuple(int(f) for f in path["frame"][emitted]),
            token_logp=tuple(
                float(g - e)
                for g, e in zip(path["gain"][emitted], path["extra"][emitted].sum(-1), strict=True)
            ),
            score=score,
            parts=parts,
            spans=tuple(spans),
        )


def _merge(found: list[RawHypothesis], worth: Worth) -> list[RawHypothesis]:
    groups: dict[tuple[int, ...], list[RawHypothesis]] = {}
    for hypothesis in found:
        groups.setdefault(hypothesis.tokens, []).append(hypothesis)
    merged = []
    for group in groups.values():
        top = group[0].score
        score = top + math.log(sum(math.exp(h.score - top) for h in group))
        shown = max(
            group,
            key=lambda h: h.score + sum(worth(s.node, h.tokens[s.start : s.end]) for s in h.spans),
        )
        merged.append(replace(shown, score=score) if len(group) > 1 else shown)
    return sorted(merged, key=lambda h: -h.score)
