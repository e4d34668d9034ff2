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
from decoding.trace import BLANK
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
    """What a step did.

    Attributes:
        skipped: ``(B,)`` frames passed.
        stopped: ``(B,)`` whether a frame was worked on then.
        beam: the hypotheses now.
        said: utterances and places of those that took a token.
        noted: the fields of ``trace.Step`` but the first.
    """

    skipped: Tensor
    stopped: Tensor
    beam: Beam
    said: tuple[Tensor, ...]
    noted: tuple[Tensor, ...]


class FastStep:
    """Takes the steps of one search, one symbol a frame.

    Args:
        pruning: what is kept.
        lm_scale: weight of the language model.
        num_tokens: V.
        grammar: class transitions.
    """

    def __init__(
        self,
        pruning: Pruning,
        lm_scale: float,
        num_tokens: int,
        grammar: ClassGrammar | None,
    ) -> None:
        from decoding import kernel_types, step_kernel  # compiles, or loads what it compiled before

        self._kernel: Any = kernel_types
        self._step: Any = step_kernel.step
        self._width = pruning.outside + pruning.inside
        self._settings = kernel_types.Settings(
            pruning.beam,
            pruning.outside,
            pruning.inside,
            pruning.same,
            pruning.pool,
            pruning.threshold,
            lm_scale,
            num_tokens,
            pruning.maximum,
        )
        self._grammar = grammar
        tables = [_array(part) for part in grammar.tables()] if grammar else _no_tables()
        self._tables = tables
        self._word_mass = Rows((), torch.float32, torch.device("cpu"), fill=math.nan)
        self._no_repeat = np.zeros((0, 0, 0), np.float32)
        self._no_lm = np.zeros((0, 0, 0, 0), np.float32)
        self._no_contexts = (np.zeros((0, 0), np.float32), np.zeros(0, np.float32))

    def take(self, beam: Beam, heard: Frames) -> Taken:
        """Extend ``beam`` by one step."""
        kernel, grammar = self._kernel, self._grammar
        contexts = self._no_contexts
        if grammar is not None:
            new = len(grammar.contexts) - len(self._word_mass.data)
            if new:
                first = self._word_mass.grow(new)
                if grammar.contexts.ends:
                    rows = torch.arange(first, first + new)
                    self._word_mass.data[first:] = grammar.starting_mass(rows)
            contexts = (grammar.contexts.table.numpy(), self._word_mass.data.numpy())
        label = heard.label.float()
        extra = np.empty((*label.shape, 0), np.float32)
        if heard.extra is not None:
            extra = _array(heard.extra.float())
        frames = kernel.Heard(
            _array(heard.inside),
            _array(heard.frames),
            _array(heard.tokens),
            _array(heard.blank.float()),
            self._no_repeat if heard.repeat is None else _array(heard.repeat.float()),
            _array(label),
            self._no_lm if heard.lm is None else _array(heard.lm.float()),
            extra,
        )
        batch, shape = len(beam.score), (len(beam.score), self._width)
        state = np.zeros((*shape, beam.state.shape[-1]), np.int64)
        longs, bools = np.zeros((3, *shape), np.int64), np.zeros((2, *shape), np.bool_)
        floats, parts = np.zeros((4, *shape), np.float32), np.zeros((*shape, extra.shape[-1]), np.float32)
        floats[0] = -np.inf
        skipped, live = np.zeros((2, batch), np.int64)
        stopped = np.zeros(batch, np.bool_)
        found = kernel.Found(
            skipped, stopped, live, floats[0], state, *longs, *bools, *floats[1:3], parts, floats[3]
        )
        lists = kernel.Lists(*contexts, *self._tables)
        self._step(self._settings, lists, frames, _array(beam.score), _array(beam.state), found)
        size = max(1, int(live.max()))  # what the threshold left is often much less
        score = torch.from_numpy(floats[0, :, :size]).contiguous()
        said = ((longs[1, :, :size] != BLANK) & (floats[0, :, :size] > -np.inf)).nonzero()
        # As Step has them; taking tensors apart would cost as much as the step does.
        noted = (*longs, *bools, floats[1], floats[2], parts, floats[3])
        return Taken(
            torch.from_numpy(skipped),
            torch.from_numpy(stopped),
            Beam(score, torch.from_numpy(state[:, :size]).contiguous()),
            tuple(map(torch.from_numpy, said)),
            tuple(torch.from_numpy(each[:, :size]) for each in noted),
        )


def _array(tensor: Tensor) -> Any:
    """The same numbers for numba, whose functions are compiled for one memory layout."""
    return tensor.contiguous().numpy()


def _no_tables() -> list[Any]:
    """Empty tables of the right types, for searches without lists."""
    nothing, index = np.zeros(0, np.float32), np.zeros(0, np.int64)
    flat, flags = np.zeros((0, 0), np.float32), np.zeros(0, np.bool_)
    wide, cube = np.zeros((0, 0, 0), np.float32), np.zeros((0, 0, 0), np.int64)
    return [flags, flat, wide, cube, index, index, nothing, nothing, nothing, index]
