"""Tiny models with random tables, small enough to enumerate every path."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from decoding.emitter import FrameScores
from lm.language_model import ContextStore, LanguageModel


class BigramLM(LanguageModel):
    """P(next | last token or tag) from a random table."""

    def __init__(self, num_tokens: int, num_classes: int, seed: int) -> None:
        super().__init__(num_tokens, num_classes)
        width = num_tokens + num_classes
        self.table = torch.randn(width + 1, width, generator=torch.Generator().manual_seed(seed))

    def forward(self, tokens: Tensor) -> Tensor:
        first = tokens.new_full((len(tokens), 1), self.vocab_size)
        return self.table[torch.cat((first, tokens), dim=1)]

    def contexts(self, ends: bool = False) -> BigramContexts:
        assert not ends
        return BigramContexts(self)


class BigramContexts(ContextStore):
    def __init__(self, model: BigramLM) -> None:
        super().__init__(model.num_tokens, model.num_classes, torch.device("cpu"))
        self.model = model
        self._append(model.table[-1:])

    def _extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        return self.model.table[tokens]


class ToyEmitter:
    """A random transducer: every score depends on the frame, the last token and the token."""

    lm_scale = 1.0
    repeats = False
    lookahead = 4
    steady = False
    loud: Tensor | None = None

    def __init__(
        self, lengths: list[int], lm: LanguageModel, seed: int, with_lm: bool = True, sharpness: float = 1.0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        batch, frames, vocab = len(lengths), max(lengths), lm.num_tokens
        self.num_tokens = vocab
        self.lengths = torch.tensor(lengths)
        self.tokens = torch.arange(vocab).expand(batch, frames, vocab)
        self.table = sharpness * torch.randn(batch, frames, vocab + 1, vocab + 1, generator=generator)
        self.evidence = self.table.mean(2)[..., :vocab]
        self.contexts = lm.contexts()
        self.with_lm = with_lm

    def start(self) -> Tensor:
        return self.contexts.start(len(self.lengths)) * (self.num_tokens + 1) + self.num_tokens

    def score(self, frames: Tensor, state: Tensor) -> FrameScores:
        last = state % (self.num_tokens + 1)  # the table's last row is for none
        rows = torch.arange(len(state))[:, None, None]
        scores = self.table[rows, frames[:, None], last[..., None]].log_softmax(-1)
        return FrameScores(scores[..., -1], scores[..., :-1])

    def lm_logp(self, state: Tensor, tokens: Tensor) -> Tensor | None:
        if not self.with_lm:
            return None
        context = self.context(state)
        return self.contexts.score(context, tokens.flatten(1)[:, None]).unflatten(-1, tokens.shape[1:])

    def context(self, state: Tensor) -> Tensor:
        return state // (self.num_tokens + 1)

    def join(self, state: Tensor, tokens: Tensor, contexts: Tensor) -> Tensor:
        return contexts * (self.num_tokens + 1) + tokens

    def close(self, state: Tensor) -> Tensor:
        return state

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        return self.join(state, tokens, self.contexts.advance(self.context(state), tokens))

    def alone(self, utterance: int) -> ToyEmitter:
        """The same model on one utterance of the batch."""
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__
        n = int(self.lengths[utterance])
        for name in ("tokens", "table", "evidence"):
            setattr(other, name, getattr(self, name)[utterance : utterance + 1, :n])
        other.lengths = self.lengths[utterance : utterance + 1]
        return other


def log_sum(logps: list[float]) -> float:
    return math.log(sum(math.exp(p) for p in logps))


def alignment_sums(
    emitter: ToyEmitter,
    utterance: int,
    max_symbols: int,
    total: Callable[[list[float]], float] = log_sum,
) -> dict[tuple[int, ...], float]:
    """Log probability of every label sequence, summed over all alignments, without any language model.

    At each frame: up to ``max_symbols`` labels, then a blank unless the last of them was taken.
    """
    one = emitter.alone(utterance)
    totals: dict[tuple[int, ...], list[float]] = {(): [0.0]}
    for number in range(int(one.lengths[0])):
        frame = torch.tensor([[number]])
        after: dict[tuple[int, ...], list[float]] = {}
        for labels, logps in totals.items():
            base = total(logps)
            for count in range(max_symbols + 1):
                for new in itertools.product(range(one.num_tokens), repeat=count):
                    logp, state = base, context_of(one, labels)
                    for token in new:
                        logp += float(one.score(frame, state).label[0, 0, 0, token])
                        state = one.advance(state[0], torch.tensor([token]))[None]
                    if count < max_symbols:
                        logp += float(one.score(frame, state).blank_logp[0, 0, 0])
                    after.setdefault(labels + new, []).append(logp)
        totals = after
    return {labels: total(logps) for labels, logps in totals.items()}


def context_of(emitter: ToyEmitter, labels: tuple[int, ...]) -> Tensor:
    state = emitter.start()[:1]
    for token in labels:
        state = emitter.advance(state, torch.tensor([token]))
    return state[None]
