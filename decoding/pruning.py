"""Which hypotheses of a frame-synchronous search go on.

Those outside entities and those inside one have places of their own. A hypothesis inside an entity has not yet
shown that it will ever get out: were the others measured against it, a list whose entries begin like what is said
could drop all that carry on when it does not, and nothing behind would be recognised.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decoding.beam import NODE, SURFACE, earlier, recombine, repeats, within_beam


class Pruning:
    """The limits of one search.

    Args:
        beam: distinct label sequences kept outside entities.
        threshold: in nats behind the best outside entities; inside, also behind the best there.
        classes: whether there are entity lists.
        doubled: whether a label sequence has two hypotheses, as in CTC.
        device: where the search runs.
        maximum: equal hypotheses are not added up; the best of them counts.

    Attributes:
        pool: extensions looked at before recombination, outside entities and again inside: as many with classes
            as without, so that an utterance without lists gives the same whatever shares its batch.
        outside: hypotheses kept outside entities: classes, and CTC, make several of one label sequence.
        inside: hypotheses kept inside entities.
        same: hypotheses kept at one place in the lists, or the ways that lead to one would take all places.
    """

    def __init__(
        self,
        beam: int,
        threshold: float,
        classes: bool,
        doubled: bool,
        device: torch.device,
        maximum: bool = False,
    ) -> None:
        self.beam = beam
        self.threshold = threshold
        self.maximum = maximum
        self.pool = 4 * beam
        self.outside = 2 * beam if doubled else beam + max(1, beam // 4) if classes else beam
        self.inside = beam if classes else 0
        self.same = max(1, beam // 2)
        self._several = classes or doubled
        self._before = earlier(self.pool, device)

    def floor(self, score: Tensor, inside: Tensor | None) -> Tensor:
        """Least score of what is kept, from ``score`` ``(..., M)`` and what of it is ``inside`` an entity."""
        if inside is None:
            return score.amax(-1) - self.threshold
        best = score.masked_fill(inside, -torch.inf).amax(-1)
        return torch.where(best.isneginf(), score.amax(-1), best) - self.threshold

    def before(self, size: int) -> Tensor:
        """``(M, M)`` true where the column comes before the row, for ``size`` extensions."""
        return self._before[:size, :size]

    def best(self, total: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor, list[int]]:
        """Scores and places of the best extensions: those outside entities, then those inside; how many each."""
        size = min(self.pool, total.shape[1])
        score, index = (total if inside is None else total.masked_fill(inside, -torch.inf)).topk(size, dim=-1)
        sizes = [size]
        if inside is not None:
            sizes.append(size)
            more, there = total.masked_fill(~inside, -torch.inf).topk(size, dim=-1)
            score, index = torch.cat((score, more), dim=-1), torch.cat((index, there), dim=-1)
        floor = self.floor(total, inside).unsqueeze(-1).expand_as(score).clone()
        if inside is not None:
            floor[:, size:] = floor[:, size:].maximum(score[:, size : size + 1] - self.threshold)
        return score.masked_fill(score < floor, -torch.inf), index, sizes

    def keep(self, score: Tensor, key: Tensor, state: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Recombine what `best` gave by ``key`` ``(B, M)``; scores and places of what goes on, best first."""
        scores, places, first = [], [], 0
        for size, width in zip(sizes, (self.outside, self.inside), strict=False):
            part = slice(first, first + size)
            new = recombine(score[:, part], key[:, part], self.before(size), self.maximum)
            new, order = new.sort(dim=-1, descending=True, stable=True)
            if first:
                again = repeats(state[:, part, NODE].gather(1, order))
                new = new.masked_fill(again >= self.same, -torch.inf)
            elif self._several:
                surface = state[:, part, SURFACE].gather(1, order)
                new = new.masked_fill(~within_beam(surface, self.beam), -torch.inf)
            new, place = new.topk(min(width, size), dim=-1)
            scores.append(new)
            places.append(first + order.gather(1, place))
            first += size
        score, order = torch.cat(scores, dim=-1).sort(dim=-1, descending=True, stable=True)
        live = max(1, int((~score.isneginf()).sum(-1).max()))  # what the threshold left is often much less
        return score[:, :live], torch.cat(places, dim=-1).gather(1, order[:, :live])
