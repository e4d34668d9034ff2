"""Training examples and the batches made of them, the same for every model family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm.tagged_text import parse
from lm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Example:
    """A transcript in tokens.

    ``labels`` are surface tokens; ``spans`` are its entities as (class index, first token, end token).
    """

    id: str
    labels: tuple[int, ...]
    spans: tuple[tuple[int, int, int], ...]

    @classmethod
    def from_text(cls, id: str, tagged: str, tokenizer: Tokenizer) -> Example:
        """Encode class-tagged text."""
        labels, spans = tokenizer.encode_tagged(parse(tagged))
        return cls(id, tuple(labels), tuple(spans))

    def pattern(self, num_tokens: int, replace: Sequence[bool]) -> list[int]:
        """Labels with the spans chosen by ``replace`` turned into their class tag (id V + class)."""
        result: list[int] = []
        position = 0
        for (class_index, start, end), chosen in zip(self.spans, replace, strict=True):
            result.extend(self.labels[position:start])
            result.extend([num_tokens + class_index] if chosen else self.labels[start:end])
            position = end
        result.extend(self.labels[position:])
        return result


@dataclass(frozen=True)
class Batch:
    """One training batch: features ``(B, S, F)`` and label tensors padded with 0.

    ``labels`` ``(B, U)`` are surface tokens; ``patterns`` are the transcripts with some entities replaced by
    their tag (ids below V + C); ``text`` are sentences without speech in the same form, possibly none.
    """

    features: Tensor
    feature_lengths: Tensor
    labels: Tensor
    label_lengths: Tensor
    patterns: Tensor
    pattern_lengths: Tensor
    text: Tensor
    text_lengths: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def make_batch(
    features: Tensor,
    feature_lengths: Tensor,
    examples: Sequence[Example],
    num_tokens: int,
    class_rate: float,
    generator: torch.Generator,
    text: Sequence[Example] = (),
) -> Batch:
    """Join features with their transcripts; each entity becomes its tag with probability ``class_rate``."""

    def patterns(chosen: Sequence[Example]) -> list[list[int]]:
        drawn = [torch.rand(len(e.spans), generator=generator) < class_rate for e in chosen]
        return [e.pattern(num_tokens, d.tolist()) for e, d in zip(chosen, drawn, strict=True)]

    return Batch(
        features,
        feature_lengths,
        *_pad([list(e.labels) for e in examples]),
        *_pad(patterns(examples)),
        *_pad(patterns(text)),
    )


def _pad(sequences: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(s) for s in sequences], dtype=torch.long)
    padded = torch.zeros((len(sequences), max((len(s) for s in sequences), default=0) or 1), dtype=torch.long)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return padded, lengths
