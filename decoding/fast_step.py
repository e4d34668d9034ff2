"""The search step on a CPU: tensors in, one compiled call, tensors out."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from decoding.beam import Beam
from decoding.class_status import ClassGrammar
from decoding.pruning import Pruning
from lm.language_model import Rows


class Frames(NamedTuple):
    """The next F frames of every utterance as its K hypotheses hear them.

    ``frames``, ``inside`` ``(B, F)``, ``tokens`` ``(B, F, k)``; ``blank`` and ``repeat`` ``(B, K, F)``; ``label``,
    with the scorers' parts in it, and ``lm``, scaled, ``(B, K, F, k)``; ``extra`` ``(B, K, F, k, S)``.
    """

    frames: Tensor
    inside: Tensor
    tokens: Tensor
    blank: Tensor
    repeat: Tensor | None
    label: Tensor
    lm: Tensor | None
    extra: Tensor | None


class Taken(NamedTuple):
    """What a step did: ``skipped``, ``stopped`` ``(B,)``, the new ``beam``, and the rest as in ``trace.Step``."""

    skipped: Tensor
    stopped: Tensor
    beam: Beam
    parent: Tensor
    token: Tensor
    node: Tensor
    entered: Tensor
    ended: Tensor
    gain: Tensor
    lm_gain: Tensor
    extra: Tensor
    waited: Tensor


class FastStep:
    """Takes the steps of one search, one symbol a frame.

    Args:
        pruning: what is kept.
        lm_scale: weight of the language model.
        num_tokens: V.
        grammar: class transitions, after it has listened.
    """

    def __init__(
        self,
        pruning: Pruning,
        lm_scale: float,
        num_tokens: int,
        grammar: ClassGrammar | None,
    ) -> None:
        from decoding import step_kernel  # compiles, or loads what it compiled before

        self._kernel: Any = step_kernel
        self._width = pruning.outside + pruning.inside
        self._settings = step_kernel.Settings(
            pruning.beam,
            pruning.outside,
            pruning.inside,
            pruning.same,
            pruning.pool,
            pruning.threshold,
            lm_scale,
            num_tokens,
        )
        self._grammar = grammar
        tables = [_array(part) for part in grammar.tables()] if grammar else _no_tables()
        self._tables = tables
        self._word_mass = Rows((), torch.float32, torch.device("cpu"), fill=math.nan)
        self._no_lm = np.zeros((0, 0, 0, 0), np.float32)
        self._no_contexts = (np.zeros((0, 0), np.float32), np.zeros(0, np.float32))

    def take(self, beam: Beam, heard: Frames) -> Taken:
        """Extend ``beam`` by one step."""
        kernel, grammar = self._kernel, self._grammar
        contexts = self._no_contexts
        if grammar is not None:
            self._word_mass.grow(len(grammar.contexts) - len(self._word_mass.data))
            contexts = (grammar.contexts.table.numpy(), self._word_mass.data.numpy())
        label = heard.label
        extra = label.new_zeros((*label.shape, 0)) if heard.extra is None else heard.extra
        frames = kernel.Heard(
            _array(heard.inside.sum(-1)),
            _array(heard.frames),
            _array(heard.tokens),
            _array(heard.blank),
            _array(label),
            self._no_lm if heard.lm is None else _array(heard.lm),
            _array(extra),
        )
        shape = (len(beam.score), self._width)
        state = torch.zeros((*shape, beam.state.shape[-1]), dtype=torch.long)
        longs = torch.zeros((3, *shape), dtype=torch.long)
        floats = torch.zeros((4, *shape))
        floats[0] = -torch.inf
        bools = torch.zeros((2, *shape), dtype=torch.bool)
        parts = torch.zeros((*shape, extra.shape[-1]))
        skipped, live = torch.zeros((2, shape[0]), dtype=torch.long)
        stopped = torch.zeros(shape[0], dtype=torch.bool)
        found = kernel.Found(
            skipped.numpy(),
            stopped.numpy(),
            live.numpy(),
            floats[0].numpy(),
            state.numpy(),
            *longs.numpy(),
            *bools.numpy(),
            *floats[1:3].numpy(),
            parts.numpy(),
            floats[3].numpy(),
        )
        lists = kernel.Lists(*contexts, *self._tables)
        kernel.step(self._settings, lists, frames, _array(beam.score), _array(beam.state), found)
        size = max(1, int(live.max()))
        if size < self._width:  # what the threshold left is often much less
            longs, floats, bools = longs[..., :size], floats[..., :size], bools[..., :size]
            state, parts = state[:, :size].contiguous(), parts[:, :size]
        beam = Beam(floats[0].contiguous(), state)
        (parent, token, node), (entered, ended) = longs, bools
        return Taken(
            skipped,
            stopped,
            beam,
            parent,
            token,
            node,
            entered,
            ended,
            floats[1],
            floats[2],
            parts,
            floats[3],
        )


def _array(tensor: Tensor) -> Any:
    """The same numbers for numba, whose functions are compiled for one memory layout."""
    return tensor.contiguous().numpy()


def _no_tables() -> list[Any]:
    """Empty tables of the right types, for searches without lists."""
    nothing = np.zeros(0, np.float32)
    index = np.zeros(0, np.int64)
    cube = np.zeros((0, 0, 0), np.int64)
    wide = np.zeros((0, 0, 0), np.float32)
    flags = np.zeros(0, np.bool_)
    flat = np.zeros((0, 0), np.float32)
    return [flags, flat, wide, cube, cube, cube, wide, flags, index, index, nothing, nothing, nothing, index]
