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
from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.entity_graph import EntityGraph
from lm.language_model import ContextStore, Rows
from lm.prefix_tree import PrefixTree

NORMAL = -1
"""Node of a hypothesis outside entities."""
EXITED = -2
"""Node of a hypothesis whose last token ended an entity: the next token starts a word."""


@dataclass(frozen=True)
class ClassArcs:
    """What the language model allows for the candidate tokens of one frame; -inf where it allows nothing.

    Attributes:
        token_logp, token_node: ``(B, K, k)`` one more normal token, or one more token inside.
        last_logp, last_node: ``(B, K, k)`` the last token of the entity the hypothesis is inside.
        enter_logp, enter_node: ``(B, K, E)`` first token of an entity that goes on.
        whole_logp, whole_node: ``(B, K, E)`` an entity of one token.
        enter_place: ``(B, E)`` which candidate token each of the E entering arcs takes.
    """

    token_logp: Tensor
    token_node: Tensor
    last_logp: Tensor
    last_node: Tensor
    enter_logp: Tensor
    enter_node: Tensor
    whole_logp: Tensor
    whole_node: Tensor
    enter_place: Tensor


class ClassGrammar:
    """The class transitions of a batch, each utterance with its own lists.

    Args:
        contexts: the language model's contexts, over V tokens and C class tags.
        starts_word: ``(V,)`` tokens that start a word.
        trees: one prefix tree an utterance.
        bonus: nats added to log P(@c | w) before normalisation: raises (or lowers) the odds of every class.
        width: arcs into entities considered per frame, best by acoustics and list.
    """

    def __init__(
        self,
        contexts: ContextStore,
        starts_word: Tensor,
        trees: Sequence[PrefixTree],
        bonus: float = 0.0,
        width: int = 64,
    ) -> None:
        self.contexts = contexts
        self.graph = EntityGraph(trees, contexts.device)
        self._num_tokens = contexts.num_tokens
        self._starts_word = starts_word.to(contexts.device)
        self._bonus = bonus
        self._width = width
        inactive = torch.zeros(self.graph.active.shape, device=contexts.device)
        self._offset = inactive.masked_fill(~self.graph.active, -torch.inf)[:, None] + bonus  # (B, 1, C)
        self._word_mass = Rows(
            (), torch.float32, contexts.device
        )  # log P(a token that starts a word) by context

    def start(self, utterances: int) -> tuple[Tensor, Tensor]:
        """History and node of the empty hypotheses, ``(B,)`` each."""
        history = self.contexts.start(utterances)
        return history, torch.full_like(history, NORMAL)

    def arcs(self, history: Tensor, node: Tensor, tokens: Tensor, evidence: Tensor) -> ClassArcs:
        """Transitions of hypotheses.

        Args:
            history: ``(B, K)`` contexts w.
            node: ``(B, K)`` tree nodes, NORMAL or EXITED.
            tokens: ``(B, k)`` the frame's candidate tokens.
            evidence: ``(B, k)`` their acoustic scores, used only to choose which arcs to consider.
        """
        scores = self.contexts.score(history)
        odds = scores[..., self._num_tokens :] + self._offset  # (B, K, C)
        exited = node == EXITED
        surface = torch.where(exited, self._starting_mass(history), 0.0)
        total = torch.logaddexp(surface, odds.logsumexp(-1)).unsqueeze(-1)
        inside = (node >= 0).unsqueeze(-1)
        each = tokens[:, None].expand(-1, node.shape[1], -1)
        normal = scores.gather(-1, each) - total
        normal = normal.masked_fill(exited.unsqueeze(-1) & ~self._starts_word[each], -torch.inf)
        child, stay, last = self._inside(node, each)
        enter_logp, whole_logp, target, place = self._entering(tokens, evidence, odds - total, inside)
        return ClassArcs(
            token_logp=torch.where(inside, stay, normal),
            token_node=torch.where(inside, child, NORMAL),
            last_logp=last,
            last_node=child,
            enter_logp=enter_logp,
            enter_node=target,
            whole_logp=whole_logp,
            whole_node=target,
            enter_place=place,
        )

    def advance(self, history: Tensor, tokens: Tensor) -> Tensor:
        """Histories ``(M,)`` after a token or a tag (id V + class)."""
        return self.contexts.advance(history, tokens)

    def tag_of(self, node: Tensor) -> Tensor:
        """Id of the class tag that an entity ending at ``node`` leaves in the history."""
        return self._num_tokens + self.graph.node_class[node.clamp_min(0)]

    def _entering(
        self, tokens: Tensor, evidence: Tensor, class_logp: Tensor, inside: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best arcs out of the roots: (going on, ending at once, node, place in ``tokens``)."""
        graph, beams = self.graph, class_logp.shape[1]
        classes = graph.root_logp.shape[1]
        at = tokens[:, None].expand(-1, classes, -1)
        logp = graph.root_logp.gather(-1, at)  # (B, C, k)
        node = graph.root_target.gather(-1, at)
        stay, whole = self._split(node, logp)
        width = min(self._width, logp[0].numel())
        best = (logp + evidence[:, None]).flatten(1).topk(width, dim=-1).indices  # (B, E)
        which = (best // tokens.shape[1])[:, None].expand(-1, beams, -1)
        base = class_logp.gather(-1, which).masked_fill(inside, -torch.inf)
        target = node.flatten(1).gather(-1, best)[:, None].expand(-1, beams, -1)
        return (
            base + stay.flatten(1).gather(-1, best)[:, None],
            base + whole.flatten(1).gather(-1, best)[:, None],
            target,
            best % tokens.shape[1],
        )

    def _inside(self, node: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Child nodes, and scores of going on and of ending there, for hypotheses at tree nodes."""
        child = torch.full_like(tokens, NORMAL)
        stay = torch.full(tokens.shape, -torch.inf, device=tokens.device)
        last = stay.clone()
        rows = (node >= 0).nonzero(
            as_tuple=True
        )  # few hypotheses are inside, and look-ups cost more than this
        if len(rows[0]):
            at = tokens[rows]
            child[rows], logp = self.graph.child(node[rows].unsqueeze(-1).expand_as(at), at)
            stay[rows], last[rows] = self._split(child[rows], logp)
        return child, stay, last

    def _split(self, node: Tensor, logp: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of reaching ``node`` and going on, and of reaching it and ending there."""
        row = node.clamp_min(0)
        return logp + self.graph.on_logp[row], logp + self.graph.end_logp[row]

    def _starting_mass(self, history: Tensor) -> Tensor:
        known = len(self._word_mass.data)
        if known < len(self.contexts):
            rows = torch.arange(known, len(self.contexts), device=history.device)
            surface = self.contexts.score(rows)[:, : self._num_tokens]
            self._word_mass.append(surface.masked_fill(~self._starts_word, -torch.inf).logsumexp(-1))
        return self._word_mass.data[history]
