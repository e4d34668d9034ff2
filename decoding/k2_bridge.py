"""Entity lists, lattices and n-gram models as k2 automata, and lattices back (Povey et al., k2-fsa).

k2's wheels on PyPI are built for torch 1.13, so this module and what it imports use nothing newer. k2's labels are
tokens + 1, for 0 is its epsilon and -1 marks the arcs into its final state, the one with the highest number.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from decoding.lattice import Lattice
from lm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lm.ngram import NGramModel

FINAL = -1
"""k2's label of an arc into the final state."""


def tree_to_k2(
    root: tuple[Tensor, Tensor], arcs: tuple[Tensor, Tensor, Tensor], on_logp: Tensor, end_logp: Tensor
) -> Any:
    """The entries of one class as an acceptor; a path's score is log P of its entity within the class.

    Args:
        root: log P(v | root) and the node reached, ``(V,)`` each; -inf and -1 where no entry starts.
        arcs: rising keys ``node * V + token``, targets and log P(token | node, not END), ``(arcs,)`` each.
        on_logp: ``(nodes,)`` log P(not END | node).
        end_logp: ``(nodes,)`` log P(END | node).

    Raises:
        DataError: the class has no entries.
        ConfigError: k2 is not installed.
    """
    logp, first = (part.cpu() for part in root)
    key, target, arc_logp = (part.cpu() for part in arcs)
    on, end, vocab = on_logp.cpu(), end_logp.cpu(), len(logp)
    starts = (first >= 0).nonzero().squeeze(1)
    if not len(starts):
        raise DataError("a class without entries", "at least one entry", "leave the class out")
    live = torch.zeros(len(end), dtype=torch.bool)
    live[first[starts]] = True
    source = torch.div(key, vocab, rounding_mode="floor")
    while True:  # a list's nodes are numbered level by level, those of patterns may lead back
        reached = live.clone()
        reached[target[live[source]]] = True
        if torch.equal(reached, live):
            break
        live = reached
    number = live.long().cumsum(0)  # nodes from 1; the start is 0
    inside = live[source]
    ends = (live & (end > -torch.inf)).nonzero().squeeze(1)
    last = int(live.sum()) + 1
    return _fsa(
        [
            (torch.zeros_like(starts), number[first[starts]], starts + 1, logp[starts]),
            (
                number[source[inside]],
                number[target[inside]],
                key[inside] % vocab + 1,
                on[source[inside]] + arc_logp[inside],
            ),
            (number[ends], torch.full_like(ends, last), torch.full_like(ends, FINAL), end[ends]),
        ]
    )


def lattice_to_k2(lattice: Lattice) -> Any:
    """A lattice whose arcs keep, as attributes, all that ``lattice_from_k2`` needs; a blank is an epsilon.

    Raises:
        ConfigError: k2 is not installed.
    """
    last = lattice.num_nodes
    final = torch.from_numpy(lattice.final)
    columns = (lattice.source, lattice.target, lattice.token + 1)
    source, target, label = (torch.from_numpy(np.ascontiguousarray(x)) for x in columns)
    scores, ends = torch.from_numpy(lattice.scores), torch.from_numpy(lattice.final_scores)
    fsa, order = _sorted_fsa(
        [
            (source, target, label, scores.sum(-1)),
            (final, torch.full_like(final, last), torch.full_like(final, FINAL), ends.sum(-1)),
        ]
    )
    nothing = torch.zeros(len(final))

    def both(arcs: Any, fill: Tensor) -> Tensor:
        return torch.cat((torch.from_numpy(np.ascontiguousarray(arcs)).to(fill.dtype), fill))[order]

    fsa.frame = both(lattice.frame, nothing.int())
    fsa.token_logp = both(lattice.logp, nothing)
    fsa.entered = both(lattice.entered, nothing.int())
    fsa.node = both(lattice.node, nothing.int())
    fsa.part_scores = torch.cat((scores, ends)).float()[order]
    fsa.part_names = lattice.parts
    return fsa


def lattice_from_k2(fsa: Any) -> Lattice:
    """The lattice of an automaton that came from ``lattice_to_k2``, also after k2 has taken arcs away.

    Raises:
        DataError: the automaton lacks the attributes, or its arcs are not in topological order.
    """
    names = ("frame", "token_logp", "entered", "node", "part_scores", "part_names")
    missing = [name for name in names if not hasattr(fsa, name)]
    if missing:
        raise DataError(
            f"a k2 automaton without {', '.join(missing)}", "one made by lattice_to_k2", "convert a lattice"
        )
    arcs = fsa.arcs.values().cpu()
    ends = arcs[:, 2] == FINAL
    source, target, label = (arcs[~ends, i].long().numpy() for i in range(3))
    parts = fsa.part_scores.detach().cpu().double()
    return Lattice(
        parts=tuple(fsa.part_names),
        source=source,
        target=target,
        token=label - 1,
        frame=fsa.frame.cpu()[~ends].long().numpy(),
        logp=fsa.token_logp.detach().cpu()[~ends].double().numpy(),
        entered=fsa.entered.cpu()[~ends].bool().numpy(),
        node=fsa.node.cpu()[~ends].long().numpy(),
        scores=parts[~ends].numpy(),
        final=arcs[ends, 0].long().numpy(),
        final_scores=parts[ends].numpy(),
    )


def ngram_to_k2(model: NGramModel) -> Any:
    """An n-gram model as an acceptor of sentences, with back-off as epsilon arcs (no failure arcs in k2).

    Where an n-gram exists the epsilon around it is open as well, so a sentence has several paths; the n-gram's own
    is nearly always the best of them, and the best path's score is never below the model's.

    Raises:
        ConfigError: k2 is not installed.
    """
    width, size = model.width, len(model.backoff)
    # k2 starts in state 0.
    number = torch.arange(size)
    number[0], number[model.start] = model.start, 0
    state = torch.div(model.key, width, rounding_mode="floor")
    word = model.key % width
    ends = word == width - 1
    backs = (torch.arange(size) != 0).nonzero().squeeze(1)
    finite = model.logp > -torch.inf
    says, stops = ~ends & finite, ends & finite
    return _fsa(
        [
            (number[state[says]], number[model.target[says]], word[says] + 1, model.logp[says]),
            (number[backs], number[model.backoff[backs]], torch.zeros_like(backs), model.backoff_logp[backs]),
            (
                number[state[stops]],
                torch.full_like(word[stops], size),
                torch.full_like(word[stops], FINAL),
                model.logp[stops],
            ),
        ]
    )


def _fsa(groups: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> Any:
    return _sorted_fsa(groups)[0]


def _sorted_fsa(groups: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> tuple[Any, Tensor]:
    """An automaton of arcs (source, target, label, score), and the order they were put in."""
    try:
        k2 = import_module("k2")
    except ImportError:
        raise ConfigError(
            "k2 is not installed", "k2", "install it for this torch, see k2-fsa.github.io/k2/installation"
        ) from None
    source, target, label = (torch.cat([group[i] for group in groups]).int() for i in range(3))
    score = torch.cat([group[3].float() for group in groups])
    order = torch.sort(source, stable=True)[1]
    arcs = torch.stack((source, target, label, score.view(torch.int32)), dim=1)[order]
    return k2.Fsa(arcs.contiguous()), order
