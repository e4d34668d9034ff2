"""Batches of sentences for language models: like lengths together, in an order that is a function of the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asr.data.token_text import Ints, TokenText
from lm.contextual import ContextualLM
from lm.language_model import LanguageModel

BLOCK = 64
"""Sentences that stay together until they reach the buffer; so little of the order must be kept in memory."""


@dataclass(frozen=True)
class TextBatch:
    """Sentences: ``tokens`` ``(B, U)`` padded with 0, ``lengths`` ``(B,)``.

    ``context`` ``(B, ...)`` tells a contextual language model what each sentence was said in; None for others.
    """

    tokens: Tensor
    lengths: Tensor
    context: Tensor | None = None

    def to(self, device: torch.device) -> TextBatch:
        """The same batch on ``device``."""
        context = None if self.context is None else self.context.to(device)
        return TextBatch(self.tokens.to(device), self.lengths.to(device), context)


def contexts_for(model: LanguageModel, text: TokenText) -> Callable[[Ints], Tensor] | None:
    """The contexts ``(B, N)`` of sentences by number, as ``model`` takes them; None if it takes none, or there are
    none.

    Raises:
        DataError: a field that the model does not have, or a value that it cannot have.
    """
    if not isinstance(model, ContextualLM) or not model.takes_context:
        return None
    said = text.contexts()
    if said is None:
        return None
    table = model.encode(said)
    return lambda chosen: table[torch.from_numpy(chosen)]


class TextBatches:
    """The batches of every epoch, a function of text, settings, seed and epoch alone: a training can resume.

    Sentences pass through a buffer: blocks of neighbours come in a drawn order, and of the sentences that are in
    the buffer at once those of like length make a batch. Of a long text, little more than the buffer is in memory.

    Args:
        text: the sentences.
        num_tokens: V; class tags follow.
        batch_tokens: most tokens of a batch, padding and ends of sentences counted; a longer sentence is alone.
        class_rate: share of entities that become their class tag, drawn anew in each epoch.
        buffer: sentences in the buffer.
        seed: of order and tags.
        context: gives the contexts ``(B, ...)`` of sentences by number.
    """

    def __init__(
        self,
        text: TokenText,
        num_tokens: int,
        batch_tokens: int,
        class_rate: float = 0.0,
        buffer: int = 50_000,
        seed: int = 0,
        context: Callable[[Ints], Tensor] | None = None,
    ) -> None:
        self._text = text
        self._num_tokens = num_tokens
        self._batch_tokens = batch_tokens
        self._class_rate = class_rate
        self._buffer = max(buffer, BLOCK)
        self._seed = seed
        self._context = context

    def count(self, epoch: int) -> int:
        """Batches of an epoch."""
        return sum(1 for _ in self._plan(epoch))

    def epoch(self, epoch: int, first: int = 0) -> Iterator[TextBatch]:
        """The batches of an epoch, without the ``first`` ones."""
        for number, chosen in enumerate(self._plan(epoch)):
            if number >= first:
                draw = np.random.default_rng([self._seed, epoch, number])
                yield self._batch(chosen, lambda n: (draw.random(n) < self._class_rate).tolist())  # noqa: B023

    def in_order(self, classes: bool = False) -> Iterator[tuple[Ints, TextBatch]]:
        """Every sentence once, with its number; entities are words, or with ``classes`` tags."""
        for begin in range(0, len(self._text), self._buffer):
            pool = np.arange(begin, min(begin + self._buffer, len(self._text)))
            pool = pool[np.argsort(self._text.lengths[pool], kind="stable")]
            for chosen in self._cut(pool):
                yield chosen, self._batch(chosen, lambda n: [classes] * n)

    def _plan(self, epoch: int) -> Iterator[Ints]:
        draw = np.random.default_rng([self._seed, epoch])
        size, total = BLOCK, len(self._text)
        blocks = draw.permutation(-(-total // size))
        at_once = max(1, self._buffer // size)
        for begin in range(0, len(blocks), at_once):
            starts = blocks[begin : begin + at_once, None] * size
            pool = (starts + np.arange(size)).ravel()
            pool = draw.permutation(pool[pool < total])
            batches = self._cut(pool[np.argsort(self._text.lengths[pool], kind="stable")])
            for index in draw.permutation(len(batches)):
                yield batches[index]

    def _cut(self, ordered: Ints) -> list[Ints]:
        """Sentences of rising length in batches."""
        lengths = self._text.lengths[ordered] + 1
        found, begin = list[Ints](), 0
        while begin < len(ordered):
            most = max(1, self._batch_tokens // int(lengths[begin]))
            room = lengths[begin : begin + most] * np.arange(1, len(lengths[begin : begin + most]) + 1)
            count = max(1, int(np.searchsorted(room, self._batch_tokens, side="right")))
            found.append(ordered[begin : begin + count])
            begin += count
        return found

    def _batch(self, chosen: Ints, replace: Callable[[int], list[bool]]) -> TextBatch:
        rows = []
        for index in chosen.tolist():
            if spans := self._text.spans(index):
                rows.append(torch.tensor(self._text.pattern(index, self._num_tokens, replace(len(spans)))))
            else:
                rows.append(torch.from_numpy(self._text.sentence(index).astype(np.int64)))
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        context = self._context(chosen) if self._context else None
        return TextBatch(tokens, torch.tensor([len(row) for row in rows]), context)
