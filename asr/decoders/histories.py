"""Label histories of a search by number, and what a Transformer decoder makes of each.

A history is a node of a tree that starts with one root an utterance. What the decoder makes of it depends on how
much it may hear: a chunk k of an utterance's frames, with all before it. States are computed when they are first
asked for, from the parent's if that one is known for the same chunk, else by running the whole history: what
earlier labels heard has changed with the chunk, so nothing of their states can be kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from asr.decoders.memory import Memory
from asr.decoders.transformer import DecoderBlock, TransformerDecoder
from asr.encoders.masks import valid_frames
from lm.language_model import Rows
from lm.rotary import rotary_table


class LabelTree:
    """Histories as nodes: the first B are empty, one for each utterance.

    Attributes:
        origin: ``(nodes, 4)`` utterance, parent, last token and labels of each; -1 where there is none.
    """

    def __init__(self, utterances: int, num_tokens: int, device: torch.device) -> None:
        self._width = num_tokens
        self._child = Rows((num_tokens,), torch.int32, device, fill=-1)
        self._child.grow(utterances)
        self._origin = Rows((4,), torch.long, device)
        utterance = torch.arange(utterances, device=device)
        none = torch.full_like(utterance, -1)
        self._origin.append(torch.stack((utterance, none, none, torch.zeros_like(none)), dim=-1))

    @property
    def origin(self) -> Tensor:
        """See the class."""
        return self._origin.data

    def __len__(self) -> int:
        return len(self._origin.data)

    def advance(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """Nodes ``(M,)`` after each of ``tokens`` ``(M,)``; the same for the same."""
        children = self._child.data[nodes, tokens]
        missing = (children < 0).nonzero().squeeze(1)
        if missing.numel():
            keys, inverse = torch.unique(nodes[missing] * self._width + tokens[missing], return_inverse=True)
            parents, labels = keys // self._width, keys % self._width
            before = self.origin[parents]
            first = self._origin.append(
                torch.stack((before[:, 0], parents, labels, before[:, 3] + 1), dim=-1)
            )
            self._child.grow(len(keys))
            rows = torch.arange(first, first + len(keys), device=nodes.device, dtype=torch.int32)
            self._child.data[parents, labels] = rows
            children[missing] = rows[inverse]
        return children.long()

    def paths(self, nodes: Tensor) -> Tensor:
        """Each node's ancestors from the root on, and itself: ``(M, P)``; behind a node it is repeated."""
        depth = self.origin[nodes, 3]
        longest = int(depth.max()) + 1
        path = nodes[:, None].repeat(1, longest)
        here = nodes
        for back in range(1, longest):
            parent = self.origin[here, 1]
            here = torch.where(parent >= 0, parent, here)
            place = (depth - back).clamp_min(0)
            path.scatter_(1, place[:, None], torch.where(back <= depth, here, path[:, 0])[:, None])
        return path


class DecoderHistories:
    """What a Transformer decoder makes of histories.

    Args:
        decoder: in evaluation mode.
        utterances: B.
        chunk: frames by which what may be heard grows; 0 for all at once.
    """

    def __init__(self, decoder: TransformerDecoder, utterances: int, chunk: int = 0) -> None:
        weight = decoder.embedding.weight
        self.tree = LabelTree(utterances, decoder.num_tokens, weight.device)
        self._decoder, self._chunk = decoder, chunk
        self._memory: Memory | None = None
        self._lengths: Tensor | None = None
        self._caches = [Rows((2, decoder.width), weight.dtype, weight.device) for _ in decoder.blocks]
        self._states = Rows((decoder.width,), torch.float32, weight.device)
        self._where = Rows((), torch.long, weight.device)
        # The last two chunks a node was asked for, by parity: a search looks at no more at once.
        self._known = Rows((2, 2), torch.long, weight.device, fill=-1)
        self._path = torch.zeros((1024, 64), dtype=torch.long, device=weight.device)

    def hear(self, memory: Memory, lengths: Tensor) -> None:
        """Attend to ``memory`` from now on, ``lengths`` ``(B,)`` frames of each utterance."""
        self._memory, self._lengths = memory, lengths

    def states(self, nodes: Tensor, chunks: Tensor) -> Tensor:
        """States ``(M, W)`` of ``nodes`` ``(M,)`` when ``chunks`` ``(M,)`` and those before are heard."""
        rows = self._rows(nodes, chunks)
        return self._states.data[rows]

    def where(self, nodes: Tensor) -> Tensor:
        """Frame ``(M,)`` attended to most in what follows ``nodes``, the whole of the utterance being heard."""
        rows = self._rows(nodes, torch.zeros_like(nodes))
        return self._where.data[rows]

    @torch.no_grad()
    def _rows(self, nodes: Tensor, chunks: Tensor) -> Tensor:
        if len(self._known.data) < len(self.tree):
            self._known.grow(len(self.tree) - len(self._known.data))
        known = self._known.data[nodes, chunks % 2]
        missing = (known[:, 0] != chunks).nonzero().squeeze(1)
        if missing.numel():
            size = len(self.tree)
            keys = torch.unique(chunks[missing] * size + nodes[missing])
            self._compute(keys % size, keys // size)
            known = self._known.data[nodes, chunks % 2]
        return known[:, 1]

    def _compute(self, nodes: Tensor, chunks: Tensor) -> None:
        parent = self.tree.origin[nodes, 1]
        ready = (parent >= 0) & (self._known.data[parent.clamp_min(0), chunks % 2, 0] == chunks)
        if not ready.all():
            self._run_whole(nodes[~ready], chunks[~ready])
        if ready.any():
            self._run_last(nodes[ready], chunks[ready])

    def _run_whole(self, nodes: Tensor, chunks: Tensor) -> None:
        """Histories from their first label on; their ancestors' states are found with them."""
        paths = self.tree.paths(nodes)  # (M, P)
        origin = self.tree.origin
        memory = self._memory.select(origin[nodes, 0]) if self._memory else None
        visible = self._visible(nodes, chunks)
        labels = origin[paths[:, 1:], 2].clamp_min(0)  # only the root has no token, and stands first
        states, caches, weights = self._decoder.run(labels, memory, visible)
        keys = chunks[:, None] * len(self.tree) + paths
        unknown = self._known.data[paths, (chunks % 2)[:, None], 0] != chunks[:, None]
        real = torch.arange(paths.shape[1], device=nodes.device) <= origin[nodes, 3][:, None]
        chosen = (unknown & real).flatten().nonzero().squeeze(1)
        _, inverse = torch.unique(keys.flatten()[chosen], return_inverse=True)
        first = torch.full((int(inverse.max()) + 1,), len(chosen), device=nodes.device)
        first.scatter_reduce_(0, inverse, torch.arange(len(chosen), device=nodes.device), "amin")
        chosen = chosen[first]
        where = None if weights is None else weights.flatten(0, 1)[chosen].argmax(-1)
        new = paths.flatten()[chosen]
        chunk = chunks.repeat_interleave(paths.shape[1])[chosen]
        rows = self._store(new, chunk, states.flatten(0, 1)[chosen], where)
        for cache, computed in zip(self._caches, caches, strict=True):
            cache.append(computed.flatten(0, 1)[chosen])
        whole = self._known.data[paths, (chunks % 2)[:, None], 1]  # rows of all on the paths
        owner = chosen // paths.shape[1]
        self._keep_paths(rows, whole[owner])

    def _run_last(self, nodes: Tensor, chunks: Tensor) -> None:
        """Histories whose parent is known for the chunk: one label more."""
        decoder, origin = self._decoder, self.tree.origin
        depth = origin[nodes, 3]
        pack = _Packing(origin[nodes, 0])
        memory = self._memory.select(pack.utterances) if self._memory else None
        visible = self._visible(nodes, chunks)
        shown = None if visible is None else pack.spread(visible)
        parents = self._known.data[origin[nodes, 1], chunks % 2, 1]
        x = decoder.embedding(origin[nodes, 2])
        cos, sin = rotary_table(depth, decoder.config.width // decoder.config.heads)
        table = cos[:, None, None], sin[:, None, None]
        first = len(self._states.data)
        rows = torch.arange(first, first + len(nodes), device=nodes.device)
        width = int(depth.max()) + 1
        self._reserve(first + len(nodes), width)
        self._path[rows] = self._path[parents]
        self._path[rows, depth] = rows
        path = self._path[rows, :width]
        seen = (torch.arange(width, device=nodes.device) <= depth[:, None])[:, None, None]
        weights = None
        for index, (block, cache) in enumerate(zip(decoder.blocks, self._caches, strict=True)):
            assert isinstance(block, DecoderBlock)
            q, k, v = block.project(x[:, None], table)
            cache.append(torch.stack((k.flatten(1), v.flatten(1)), dim=1))
            past = cache.data[path]
            past = past.view(*past.shape[:-1], block.heads, -1).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, past[0], past[1], attn_mask=seen)
            attended = pack.spread(attended.transpose(1, 2).flatten(1))
            attended = attended.view(*attended.shape[:2], block.heads, -1).transpose(1, 2)
            y, weights = block.rest(pack.spread(x), attended, memory.layers[index] if memory else None, shown)
            x = pack.gather(y)
        where = None if weights is None else pack.gather(weights).argmax(-1)
        self._store(nodes, chunks, decoder.norm(x), where)

    def _visible(self, nodes: Tensor, chunks: Tensor) -> Tensor | None:
        """Frames ``(M, T)`` that may be attended to."""
        if self._memory is None or self._lengths is None:
            return None
        limit = self._lengths[self.tree.origin[nodes, 0]]
        if self._chunk:
            limit = torch.minimum(limit, (chunks + 1) * self._chunk)
        return valid_frames(limit, self._memory.layers[0].shape[2])

    def _store(self, nodes: Tensor, chunks: Tensor, states: Tensor, where: Tensor | None) -> Tensor:
        first = self._states.append(states.float())
        self._where.append(torch.zeros_like(nodes) if where is None else where)
        rows = torch.arange(first, first + len(nodes), device=nodes.device)
        self._known.data[nodes, chunks % 2] = torch.stack((chunks, rows), dim=-1)
        return rows

    def _keep_paths(self, rows: Tensor, paths: Tensor) -> None:
        self._reserve(int(rows[-1]) + 1, paths.shape[1])
        self._path[rows, : paths.shape[1]] = paths

    def _reserve(self, rows: int, width: int) -> None:
        height, present = self._path.shape
        if rows > height or width > present:
            shape = (max(rows, 2 * height if rows > height else height), max(present, 2 * width))
            grown = self._path.new_zeros(shape)
            grown[:height, :present] = self._path
            self._path = grown


class _Packing:
    """Rows of several utterances, in any order, as ``(B', K', ...)`` with an utterance's side by side.

    Keys and values of an utterance are then read once for all its rows. Unused places repeat some row.
    """

    def __init__(self, utterance: Tensor) -> None:
        self.utterances, inverse, counts = torch.unique(utterance, return_inverse=True, return_counts=True)
        order = torch.argsort(inverse, stable=True)
        start = counts.cumsum(0) - counts
        place = torch.empty_like(inverse)
        place[order] = torch.arange(len(order), device=order.device) - start[inverse[order]]
        self._at = inverse, place
        self._source = order[start][:, None].repeat(1, int(counts.max()))
        self._source[self._at] = torch.arange(len(order), device=order.device)

    def spread(self, rows: Tensor) -> Tensor:
        """``(M, ...)`` to ``(B', K', ...)``."""
        return rows[self._source]

    def gather(self, packed: Tensor) -> Tensor:
        """``(B', K', ...)`` back to ``(M, ...)``."""
        return packed[self._at]
