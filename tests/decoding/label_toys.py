"""Toy models and scorers of the label-synchronous search, with their exact scores."""

from __future__ import annotations

import itertools
import random

import torch
from torch import Tensor

from decoding.label_emitter import LabelScores
from decoding.scorer import Scorer
from lm.language_model import ContextStore

Tokens = tuple[int, ...]


class ToyLabels:
    """Random but fixed scores for every prefix of every utterance; states number the prefixes met so far."""

    def __init__(
        self, most: list[int], vocab: int, seed: int, sharpness: float = 1.0, end_bias: float = 0.0
    ) -> None:
        self.num_tokens, self.max_labels = vocab, torch.tensor(most)
        self.seed, self.sharpness, self.end_bias = seed, sharpness, end_bias
        self.utterances = list(range(len(most)))
        self.prefixes: list[tuple[int, Tokens]] = []
        self.numbers: dict[tuple[int, Tokens], int] = {}
        self.steps = 0

    def number(self, utterance: int, prefix: Tokens) -> int:
        if (utterance, prefix) not in self.numbers:
            self.numbers[utterance, prefix] = len(self.prefixes)
            self.prefixes.append((utterance, prefix))
        return self.numbers[utterance, prefix]

    def logp(self, utterance: int, prefix: Tokens) -> Tensor:
        """``(V + 1,)``, the end last."""
        dice = random.Random(f"{self.seed} {utterance} {prefix}")
        logits = torch.tensor([dice.gauss(0, self.sharpness) for _ in range(self.num_tokens + 1)])
        logits[-1] += self.end_bias
        return logits.log_softmax(-1)

    def start(self) -> Tensor:
        return torch.tensor([self.number(u, ()) for u in self.utterances])

    def score(self, state: Tensor) -> LabelScores:
        self.steps += 1
        for row, utterance in zip(state.tolist(), self.utterances, strict=True):
            assert all(self.prefixes[s][0] == utterance for s in row)
        rows = torch.stack([self.logp(*self.prefixes[s]) for s in state.flatten().tolist()])
        rows = rows.view(*state.shape, -1)
        return LabelScores(rows[..., :-1], rows[..., -1])

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        found = []
        for number, token in zip(state.tolist(), tokens.tolist(), strict=True):
            utterance, prefix = self.prefixes[number]
            assert len(prefix) < self.max_labels[self.utterances.index(utterance)]
            found.append(self.number(utterance, (*prefix, token)))
        return torch.tensor(found, dtype=torch.long)

    def alone(self, place: int) -> ToyLabels:
        """The same model on one utterance of the batch."""
        most = int(self.max_labels[place])
        other = type(self)([most], self.num_tokens, self.seed, self.sharpness, self.end_bias)
        other.utterances = [self.utterances[place]]
        return other


class AttendingLabels(ToyLabels):
    def where(self, state: Tensor) -> Tensor:
        return torch.tensor([self.frame(*self.prefixes[s]) for s in state.tolist()], dtype=torch.long)

    def frame(self, utterance: int, prefix: Tokens) -> int:
        return random.Random(f"frame {utterance} {prefix}").randrange(1000)


class Scripted(ToyLabels):
    """Says a script of tokens and the end, each all but certain; behind the end nothing is clear."""

    script: Tokens = ()

    def logp(self, utterance: int, prefix: Tokens) -> Tensor:
        logits = torch.zeros(self.num_tokens + 1)
        text = [*self.script, self.num_tokens]
        if len(prefix) < len(text):
            logits[text[len(prefix)]] = 20.0
        return logits.log_softmax(-1)


class TableScorer:
    """A bigram table with an end: scores of either sign. The state is the last token, V at the start."""

    def __init__(self, vocab: int, seed: int, weight: float, name: str = "table") -> None:
        self.name, self.weight, self.vocab = name, weight, vocab
        self.table = torch.randn(vocab + 1, vocab + 1, generator=torch.Generator().manual_seed(seed))

    def start(self, utterances: int) -> Tensor:
        return torch.full((utterances,), self.vocab)

    def score(self, state: Tensor, tokens: Tensor) -> Tensor:
        return self.table[state[:, None], tokens]

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        return tokens

    def finish(self, state: Tensor) -> Tensor:
        return self.table[state, -1]


class ContextScorer:
    """A language model as a plain scorer."""

    name = "lm"

    def __init__(self, contexts: ContextStore, weight: float) -> None:
        self.contexts, self.weight = contexts, weight

    def start(self, utterances: int) -> Tensor:
        return self.contexts.start(utterances)

    def score(self, state: Tensor, tokens: Tensor) -> Tensor:
        return self.contexts.score(state, tokens)

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        return self.contexts.advance(state, tokens)

    def finish(self, state: Tensor) -> Tensor:
        return torch.zeros(len(state))


def scorer_total(scorer: Scorer, tokens: Tokens) -> float:
    """Weighted score of a whole sequence, one token at a time."""
    state, total = scorer.start(1), 0.0
    for token in tokens:
        total += float(scorer.score(state, torch.tensor([[token]])))
        state = scorer.advance(state, torch.tensor([token]))
    return scorer.weight * (total + float(scorer.finish(state)))


def model_totals(
    emitter: ToyLabels, utterance: int, end_threshold: float | None = None
) -> dict[Tokens, float]:
    """log P of every sequence that may end where it does, under the model alone."""
    most, totals = int(emitter.max_labels[utterance]), {}
    for length in range(most + 1):
        for tokens in itertools.product(range(emitter.num_tokens), repeat=length):
            rows = [emitter.logp(utterance, tokens[:i]) for i in range(length + 1)]
            last = rows[-1]
            if end_threshold and length < most and last[-1] < end_threshold * last[:-1].max():
                continue
            totals[tokens] = sum(float(rows[i][t]) for i, t in enumerate(tokens)) + float(last[-1])
    return totals
