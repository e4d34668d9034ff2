"""The entity lists of a batch as one flat graph: each utterance may have its own."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lm.prefix_tree import PrefixTree


class EntityGraph:
    """Prefix trees of several utterances in one arena of nodes; equal trees are stored once.

    A node may be reached in several ways where a class has patterns or holds other classes (``lm.nested``).

    Attributes:
        end_logp: ``(nodes,)`` log P(END | node), -inf where no entry ends.
        on_logp: ``(nodes,)`` log P(not END | node), -inf where no entry goes on.
        node_class: ``(nodes,)`` class index.
        root_logp: ``(B, C, V)`` log P(v | root of the class), -inf where no entry starts with v.
        root_target: ``(B, C, V)`` node reached, -1 where none.
        active: ``(B, C)`` classes that have entries.
        class_cost: ``(B, C)`` nats to take off the log odds of each class.
    """

    def __init__(self, trees: Sequence[PrefixTree], device: torch.device) -> None:
        unique = list({id(tree): tree for tree in trees}.values())
        place = {id(tree): number for number, tree in enumerate(unique)}
        # One spare node, so that look-ups at "no node" stay in range when all lists are empty.
        spare = [] if any(tree.num_nodes for tree in unique) else [-torch.inf]
        sizes = torch.tensor([tree.num_nodes for tree in unique])
        offsets = (sizes.cumsum(0) - sizes).tolist()
        self._trees, self._offsets = unique, offsets
        self._vocab = unique[0].root_logp.shape[1]

        def join(part: Callable[[PrefixTree], Tensor], step: int = 0, spare: Sequence[float] = ()) -> Tensor:
            parts = [
                part(t) + o * step if o * step else part(t) for t, o in zip(unique, offsets, strict=True)
            ]
            # One tree, as a batch mostly has, is used as it is: long lists cost nothing to start a search with.
            parts = [each for each in parts if len(each)] or parts[:1]
            parts += [parts[0].new_tensor(spare)] if len(spare) else []
            return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(device)

        self._key = join(lambda tree: tree.arc_key, step=self._vocab)
        self._target = join(lambda tree: tree.arc_target, step=1)
        # What remains after END is taken off where a hypothesis stays in the tree, so that its score never counts
        # the entries that ended before.
        self._logp = join(lambda tree: tree.onward_logp)
        self.end_logp = join(lambda tree: tree.end_logp, spare=spare)
        self.on_logp = join(lambda tree: tree.on_logp, spare=spare)
        self.node_class = join(lambda tree: tree.node_class, spare=[0] if spare else [])
        graph = torch.tensor([place[id(tree)] for tree in trees])
        self.root_logp = torch.stack([t.root_logp for t in unique])[graph].to(device)
        self.class_cost = torch.stack([t.class_cost for t in unique])[graph].to(device)
        shifted = [
            torch.where(t.root_target < 0, -1, t.root_target + o)
            for t, o in zip(unique, offsets, strict=True)
        ]
        self.root_target = torch.stack(shifted)[graph].to(device)
        self.active = (self.root_target >= 0).any(-1)

    def arcs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Arcs between nodes: rising keys ``node * V + token``, the nodes they lead to, their log probability."""
        return self._key, self._target, self._logp

    def to_k2(self, utterance: int, class_index: int) -> Any:
        """One class's entries as a k2 acceptor; see ``decoding.k2_bridge.tree_to_k2``."""
        from decoding.k2_bridge import tree_to_k2

        root = self.root_logp[utterance, class_index], self.root_target[utterance, class_index]
        return tree_to_k2(root, self.arcs(), self.on_logp, self.end_logp)

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

    def share_logp(self, node: int, tokens: Sequence[int] | None = None) -> float:
        """Log of the share of its class's weight that the entity of ``tokens``, which ends at ``node``, holds.

        Without tokens, that of all entities ending there; in a list that is the same.
        """
        number = self._tree_of(node)
        return self._trees[number].share_logp(node - self._offsets[number], tokens)

    def entries(self, node: int) -> tuple[int, list[tuple[int, int, float]]]:
        """Class index and list entries (class, entry, weight) that end at ``node``.

        There are none where a pattern, a number or a nested class ends: ``EncodedCatalog.reading`` reads those
        from their words.
        """
        number = self._tree_of(node)
        found = self._trees[number].entries_at(node - self._offsets[number])
        return int(self.node_class[node]), found

    def _tree_of(self, node: int) -> int:
        return bisect_right(self._offsets, node) - 1
