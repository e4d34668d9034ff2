"""Class-based language model inside the search: the four transitions of C-FNT (arXiv 2309.07648).

A hypothesis is NORMAL, INSIDE an entity at a node of its class's prefix tree, or has just EXITed one. With w the
history in which every finished entity is one class tag, and P the language model over V and the active tags:

    NORMAL -> NORMAL   log P(v | w)
    NORMAL -> INSIDE   log P(@c | w) + log P_in(v | root of c)       enter
    INSIDE -> INSIDE   log P_in(v | node)                            continue
    INSIDE -> NORMAL   log P_in(END | node), w <- w + @c             exit

(P_in(v | node) is counted in two parts, P_in(not END | node) on arriving and the rest with v.)

The exit is taken together with the entity's last token, so every hypothesis has one history and one status; a
word may go on behind that token only if a continuation of the tree says so (after an exit, P is confined to
tokens that start a word). An entity of one token enters and exits at once. These are the derivations whose sum
is ``lm.class_lm.ClassLM``; METHODS 1c gives the reconstruction this follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from decoding.entity_graph import EntityGraph
from lm.language_model import ContextStore, Rows
from lm.prefix_tree import PrefixTree

NORMAL = -1
"""Node of a hypothesis outside entities."""
END = "end"
"""Name of what a class grammar's language model says of the end of the utterance, in the parts of a hypothesis."""
EXITED = -2
"""Node of a hypothesis whose last token ended an entity: the next token starts a word."""


class ClassArcs(NamedTuple):
    """What the language model allows in one frame: W columns of labels, -inf where it allows nothing.

    The columns are the k candidate tokens (one more outside or inside an entity), E arcs into entities (some of
    them entities of one token), and, where a hypothesis is inside, the k tokens again as last of its entity.

    Attributes:
        lm_logp: ``(B, K, W)``.
        node: ``(B, K, W)`` tree node reached, NORMAL outside.
        place: ``(B, W)`` place among the candidate tokens.
        ends: ``(W,)`` columns whose token ends an entity.
    """

    lm_logp: Tensor
    node: Tensor
    place: Tensor
    ends: Tensor


class ClassLook(NamedTuple):
    """What the language model says of the next label, before anything is heard.

    Attributes:
        tags: ``(B, K, C)`` log P(@c | w).
        normal: ``(B, K, F, k)`` log P(v | w) of each frame's candidate tokens.
    """

    tags: Tensor
    normal: Tensor


class ClassTables(NamedTuple):
    """A batch's class transitions in flat tensors.

    Attributes:
        starts_word: ``(V,)``.
        offset: ``(B, C)`` nats added to each tag's log odds, -inf for a class without entries.
        root_logp: ``(B, C, V)`` log P(v | root of the class), -inf where no entry starts with v; and
            ``root_target``, the node reached.
        key: ``(arcs,)`` node * V + token, rising; ``target`` and ``arc_logp`` likewise.
        end_logp: ``(nodes,)``; ``on_logp`` and ``node_class`` likewise.
    """

    starts_word: Tensor
    offset: Tensor
    root_logp: Tensor
    root_target: Tensor
    key: Tensor
    target: Tensor
    arc_logp: Tensor
    end_logp: Tensor
    on_logp: Tensor
    node_class: Tensor


class _Entries(NamedTuple):
    """Arcs out of the roots worth considering in each frame, ``(B, T, E)`` each; ``ends`` is ``(E,)``."""

    class_index: Tensor
    place: Tensor
    node: Tensor
    logp: Tensor
    ends: Tensor


class ClassGrammar:
    """The class transitions of a batch, each utterance with its own lists.

    Args:
        contexts: the language model's contexts, over V tokens and C class tags.
        starts_word: ``(V,)`` tokens that start a word.
        trees: one prefix tree an utterance.
        bonus: nats added to log P(@c | w) before normalisation: raises (or lowers) the odds of every class.
        width: arcs into entities considered per frame, best by acoustics and list.
        lm_scale: weight of the language model; None for that of the emitter whose language model it is.
    """

    def __init__(
        self,
        contexts: ContextStore,
        starts_word: Tensor,
        trees: Sequence[PrefixTree],
        bonus: float = 0.0,
        width: int = 64,
        lm_scale: float | None = None,
    ) -> None:
        self.contexts = contexts
        self.lm_scale = lm_scale
        self.graph = EntityGraph(trees, contexts.device)
        self._num_tokens = contexts.num_tokens
        self._starts_word = starts_word.to(contexts.device)
        self._width = width
        classes = self.graph.active.shape[1]
        self._tags = torch.arange(self._num_tokens, self._num_tokens + classes, device=contexts.device)
        inactive = torch.zeros(self.graph.active.shape, device=contexts.device)
        entering = bonus - self.graph.class_cost.to(contexts.device)
        self._offset = (inactive + entering).masked_fill(~self.graph.active, -torch.inf)[:, None]  # (B, 1, C)
        # log P(a token that starts a word, or the end where it is scored) by context
        self._word_mass = Rows((), torch.float32, contexts.device)

    def start(self, utterances: int) -> tuple[Tensor, Tensor]:
        """History and node of the empty hypotheses, ``(B,)`` each."""
        history = self.contexts.start(utterances)
        return history, torch.full_like(history, NORMAL)

    def listen(self, tokens: Tensor, evidence: Tensor) -> None:
        """Choose the arcs into entities for every frame; must be called before ``arcs``, and again for new frames.

        Args:
            tokens: ``(B, T, k)`` candidate tokens of each frame.
            evidence: ``(B, T, k)`` their acoustic scores, used only for this choice.
        """
        graph = self.graph
        classes, frames, width = graph.active.shape[1], tokens.shape[1], tokens.shape[2]
        at = tokens[:, None].expand(-1, classes, -1, -1)
        logp = graph.root_logp[:, :, None].expand(-1, -1, frames, -1).gather(-1, at)  # (B, C, T, k)
        node = graph.root_target[:, :, None].expand(-1, -1, frames, -1).gather(-1, at)
        likely = (logp + evidence[:, None]).transpose(1, 2).flatten(2)  # (B, T, C k)
        best = likely.topk(min(self._width, likely.shape[-1]), dim=-1, sorted=False).indices
        node = node.transpose(1, 2).flatten(2).gather(-1, best)
        on, end = self._split(node, logp.transpose(1, 2).flatten(2).gather(-1, best))
        parts = [on, end] if bool((end > -torch.inf).any()) else [on]
        arcs = best.shape[-1]
        self._entries = _Entries(
            (best // width).repeat(1, 1, len(parts)),
            (best % width).repeat(1, 1, len(parts)),
            node.repeat(1, 1, len(parts)),
            torch.cat(parts, dim=-1),
            torch.arange(arcs * len(parts), device=tokens.device) >= arcs,
        )
        self._reach = torch.where(graph.active[:, :, None, None], logp, -torch.inf).amax(1)  # (B, T, k)
        self._row = torch.arange(len(tokens), device=tokens.device)
        self._order = torch.arange(width, device=tokens.device).expand(len(tokens), -1)

    def tables(self) -> ClassTables:
        """The grammar in flat tensors, for a step that is taken hypothesis by hypothesis."""
        graph = self.graph
        return ClassTables(
            self._starts_word,
            self._offset[:, 0],
            graph.root_logp,
            graph.root_target,
            *graph.arcs(),
            graph.end_logp,
            graph.on_logp,
            graph.node_class,
        )

    def look(self, tokens: Tensor, history: Tensor, node: Tensor) -> ClassLook:
        """What may follow contexts ``history`` ``(B, K)`` at ``node`` ``(B, K)``; ``tokens`` is ``(B, F, k)``."""
        odds = self.contexts.score(history, self._tags) + self._offset  # (B, K, C)
        normal = self.contexts.score(history, tokens.flatten(1)[:, None])
        exited = node == EXITED
        surface = self._surface(history, exited)
        if bool(exited.any()):
            begins = self._starts_word[tokens].flatten(1)[:, None]
            normal = normal.masked_fill(exited.unsqueeze(-1) & ~begins, -torch.inf)
        total = torch.logaddexp(surface, odds.logsumexp(-1)).unsqueeze(-1)
        return ClassLook(odds - total, (normal - total).view(*node.shape, *tokens.shape[1:]))

    def bound(self, frames: Tensor, found: ClassLook, label: Tensor, lm_scale: float, node: Tensor) -> Tensor:
        """At least the best score ``(B, K, F)`` of any label at ``frames`` ``(B, F)``.

        ``label`` ``(B, K, F, k)`` is added to ``lm_scale`` times what the language model says.
        """
        reach = lm_scale * self._reach[self._row[:, None], frames][:, None]
        enter = (label + reach).amax(-1) + lm_scale * found.tags.amax(-1, keepdim=True)
        outside = (label + lm_scale * found.normal).amax(-1).maximum(enter)
        return torch.where((node >= 0).unsqueeze(-1), label.amax(-1), outside)

    def arcs(self, frame: Tensor, tokens: Tensor, found: ClassLook, node: Tensor) -> ClassArcs:
        """Transitions of hypotheses at ``node`` ``(B, K)`` when each utterance is at its ``frame`` ``(B,)``.

        ``tokens`` ``(B, k)`` are the candidates there, ``found.normal`` is ``(B, K, k)``.
        """
        which, place, target, entry_logp = (part[self._row, frame] for part in self._entries[:4])
        shape = (-1, node.shape[1], -1)
        normal = found.normal
        enter = found.tags.gather(-1, which[:, None].expand(shape)) + entry_logp[:, None]
        targets = target[:, None].expand(shape)
        outside = torch.full(normal.shape, NORMAL, device=node.device)
        logps, nodes = [normal, enter], [outside, targets]
        places, ends = [self._order, place], [self._order[0] < 0, self._entries.ends]
        inside = (node >= 0).nonzero(as_tuple=True)
        if len(inside[0]):
            at = tokens[inside[0]]
            child, logp = self.graph.child(node[inside].unsqueeze(-1).expand_as(at), at)
            last, last_node = torch.full_like(normal, -torch.inf), torch.full_like(outside, NORMAL)
            normal[inside], last[inside] = self._split(child, logp)
            enter[inside] = -torch.inf
            outside[inside] = last_node[inside] = child
            logps, nodes = [*logps, last], [*nodes, last_node]
            places, ends = [*places, self._order], [*ends, self._order[0] >= 0]
        return ClassArcs(*(torch.cat(parts, dim=-1) for parts in (logps, nodes, places, ends)))

    def end_logp(self, history: Tensor, node: Tensor) -> Tensor:
        """Log probability ``(B, K)`` that the text ends here; for contexts with ``ends``."""
        odds = self.contexts.score(history, self._tags) + self._offset
        return self.contexts.end_logp(history) - torch.logaddexp(
            self._surface(history, node == EXITED), odds.logsumexp(-1)
        )

    def advance(self, history: Tensor, tokens: Tensor) -> Tensor:
        """Histories ``(M,)`` after a token or a tag (id V + class)."""
        return self.contexts.advance(history, tokens)

    def tag_of(self, node: Tensor) -> Tensor:
        """Id of the class tag that an entity ending at ``node`` leaves in the history."""
        return self._num_tokens + self.graph.node_class[node.clamp_min(0)]

    def _split(self, node: Tensor, logp: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of reaching ``node`` and going on, and of reaching it and ending there."""
        row = node.clamp_min(0)
        return logp + self.graph.on_logp[row], logp + self.graph.end_logp[row]

    def _surface(self, history: Tensor, exited: Tensor) -> Tensor:
        """Log mass of all that may follow but classes: 0, and directly behind an entity that of new words."""
        nothing = torch.zeros((), device=history.device)
        return torch.where(exited, self.starting_mass(history), nothing) if bool(exited.any()) else nothing

    def starting_mass(self, history: Tensor) -> Tensor:
        """Log mass of the tokens that may follow an entity, and of the end where it is scored."""
        known = len(self._word_mass.data)
        if known < len(self.contexts):
            rows = torch.arange(known, len(self.contexts), device=history.device)
            surface = self.contexts.score(rows)[:, : self._num_tokens]
            mass = surface.masked_fill(~self._starts_word, -torch.inf).logsumexp(-1)
            if self.contexts.ends:
                mass = mass.logaddexp(self.contexts.end_logp(rows))
            self._word_mass.append(mass)
        return self._word_mass.data[history]
