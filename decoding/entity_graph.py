"""The entity lists of a batch as one flat graph: each utterance may have its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lm.prefix_tree import PrefixTree


class EntityGraph:
    """Prefix trees of several utterances in one arena of nodes; equal trees are stored once.

    Attributes:
        end_logp: ``(nodes,)`` log P(END | node), -inf where no entry ends.
        on_logp: ``(nodes,)`` log P(not END | node), -inf where no entry goes on.
        node_class: ``(nodes,)`` class index.
        root_logp: ``(B, C, V)`` log P(v | root of the class), -inf where no entry starts with v.
        root_target: ``(B, C, V)`` node reached, -1 where none.
        active: ``(B, C)`` classes that have entries.
    """

    def __init__(self, trees: Sequence[PrefixTree], device: torch.device) -> None:
        unique = list({id(tree): tree for tree in trees}.values())
        place = {id(tree): number for number, tree in enumerate(unique)}
        sizes = torch.tensor([tree.num_nodes for tree in unique])
        offsets = (sizes.cumsum(0) - sizes).tolist()
        self._trees, self._offsets = unique, offsets
        self._vocab = unique[0].root_logp.shape[1]

        def join(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts).to(device)

        self._key = join([t.arc_key + o * self._vocab for t, o in zip(unique, offsets, strict=True)])
        self._target = join([t.arc_target + o for t, o in zip(unique, offsets, strict=True)])
        # What remains after END is taken off where a hypothesis stays in the tree, so that its score never counts
        # the entries that ended before.
        self._logp = join([t.arc_logp - t.on_logp[t.arc_key // self._vocab] for t in unique])
        # One spare node, so that look-ups at "no node" stay in range when all lists are empty.
        self.end_logp = join([*(t.end_logp for t in unique), torch.tensor([-torch.inf])])
        self.on_logp = join([*(t.on_logp for t in unique), torch.tensor([-torch.inf])])
        self.node_class = join([*(t.node_class for t in unique), torch.tensor([0])])
        graph = torch.tensor([place[id(tree)] for tree in trees])
        self.root_logp = torch.stack([t.root_logp for t in unique])[graph].to(device)
        shifted = [
            torch.where(t.root_target < 0, -1, t.root_target + o)
            for t, o in zip(unique, offsets, strict=True)
        ]
        self.root_target = torch.stack(shifted)[graph].to(device)
        self.active = (self.root_target >= 0).any(-1)

    def child(self, nodes: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Target node and log P(token | node, not END) for ``nodes`` and ``tokens`` of one shape.

        (-1, -inf) where there is none; negative nodes have no children.
        """
        if not len(self._key):
            return torch.full_like(nodes, -1), torch.full(nodes.shape, -torch.inf, device=nodes.device)
        keys = nodes * self._vocab + tokens
        place = torch.searchsorted(self._key, keys).clamp_max(len(self._key) - 1)
        found = (self._key[place] == keys) & (nodes >= 0)
        return torch.where(found, self._target[place], -1), torch.where(found, self._logp[place], -torch.inf)

    def share_logp(self, node: int) -> float:
        """Log of the share of its class's weight that the entries ending at ``node`` hold."""
        number = max(i for i, offset in enumerate(self._offsets) if offset <= node)
        return self._trees[number].share_logp(node - self._offsets[number])

    def entries(self, node: int) -> tuple[int, list[tuple[int, int, float]]]:
        """Class index and entries (class, entry, weight) that end at ``node``."""
        number = max(i for i, offset in enumerate(self._offsets) if offset <= node)
        found = self._trees[number].entries_at(node - self._offsets[number])
        return int(self.node_class[node]), found
