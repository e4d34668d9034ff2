"""Perplexity of language models of every kind, per word and per token, with the interval of a bootstrap.

A figure says what it counts. With ends of sentences, each sentence has one event more than it has words (tokens),
and its probability is that of the whole sentence; without, no end is possible, and probabilities are normalised
without it. Perplexities per word can be compared between models of different tokens, those per token cannot. A word
that the vocabulary lacks is scored as ``<unk>``, which is easier to foresee than the word: such figures are given
without those words too, and comparable only with models of the same vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asr.data.text_batches import TextBatches, contexts_for
from asr.data.token_text import Ints, TokenText
from asr.losses.text import end_token, token_logp
from asr.scoring.bootstrap import Bootstrap, Interval
from lm.errors import ConfigError, DataError
from lm.language_model import LanguageModel
from lm.model_files import load_language_model
from lm.ngram import NGramModel
from lm.tagged_text import strip
from lm.tokenizer import Case, Tokenizer, normalise
from lm.vocabulary import UNKNOWN, Units, WordVocabulary
from lm.word_ngram import END, WordLM

Floats = NDArray[np.float64]
CASES: tuple[Case, ...] = ("upper", "lower")
GROUPS = 20_000
"""Most things that a bootstrap draws; of a longer text, neighbouring sentences are drawn together."""
AT_ONCE = 16_000
"""Tokens that a neural model scores at once; the scores of as many are in memory."""


@dataclass(frozen=True)
class SentenceScores:
    """What a model makes of each of S sentences.

    Attributes:
        logp: ``(S,)`` natural-log probability, unknown words as ``<unk>``.
        tokens: ``(S,)`` tokens of the model, without ends.
        words: ``(S,)`` words, without ends.
        unknown: ``(S,)`` words that are ``<unk>`` to the model.
        unknown_logp: ``(S,)`` what they have of ``logp``.
        ends: whether ends of sentences are in ``logp``.
    """

    logp: Floats
    tokens: Ints
    words: Ints
    unknown: Ints
    unknown_logp: Floats
    ends: bool

    def part(self, chosen: NDArray[np.bool_]) -> SentenceScores:
        """Those of some sentences."""
        return replace(
            self,
            logp=self.logp[chosen],
            tokens=self.tokens[chosen],
            words=self.words[chosen],
            unknown=self.unknown[chosen],
            unknown_logp=self.unknown_logp[chosen],
        )


@dataclass(frozen=True)
class Perplexity:
    """Perplexity on a text, with 95 % intervals.

    Attributes:
        sentences, words, tokens: how many there are, without ends of sentences.
        ends: whether ends of sentences are counted, as a word (token) each.
        word: per word.
        token: per token of the model.
        unknown: share of the words that are ``<unk>``.
        known_word: per word without the unknown ones; that of ``word`` if there are none.
    """

    sentences: int
    words: int
    tokens: int
    ends: bool
    word: Interval
    token: Interval
    unknown: float
    known_word: Interval

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        intervals = {name: getattr(self, name).to_dict() for name in ("word", "token", "known_word")}
        plain = {name: getattr(self, name) for name in ("sentences", "words", "tokens", "ends", "unknown")}
        return plain | intervals

    def to_text(self) -> str:
        """In lines."""
        counted = "ends of sentences counted" if self.ends else "ends of sentences not counted"
        lines = [
            f"{self.sentences} sentences, {self.words} words, {self.tokens} tokens; {counted}",
            f"perplexity a word   {_shown(self.word)}",
            f"perplexity a token  {_shown(self.token)}",
        ]
        if self.unknown:
            lines.append(f"unknown words       {100 * self.unknown:.2f} %, scored as <unk>")
            lines.append(f"without them        {_shown(self.known_word)} a word")
        return "\n".join(lines)


def perplexity(scores: SentenceScores, samples: int = 1000, seed: int = 0) -> Perplexity:
    """Figures and intervals of scored sentences.

    Raises:
        DataError: there are none.
    """
    if not len(scores.logp):
        raise DataError("no sentences to score", "one or more", "check the text")
    ends = np.ones(len(scores.logp)) if scores.ends else np.zeros(len(scores.logp))
    columns = np.stack(
        (
            scores.logp,
            scores.words + ends,
            scores.tokens + ends,
            scores.logp - scores.unknown_logp,
            scores.words + ends - scores.unknown,
        ),
        axis=1,
    )
    columns = _grouped(columns)
    bootstrap = Bootstrap(len(columns), samples=samples, seed=seed)

    def of(total: int, count: int) -> Interval:
        return bootstrap.interval(
            columns, lambda sums: np.exp(-sums[:, total] / np.maximum(sums[:, count], 1))
        )

    words = int(scores.words.sum())
    return Perplexity(
        len(scores.logp),
        words,
        int(scores.tokens.sum()),
        scores.ends,
        of(0, 1),
        of(0, 2),
        int(scores.unknown.sum()) / max(1, words),
        of(3, 4),
    )


def score_neural(
    model: LanguageModel,
    text: TokenText,
    units: Units,
    classes: bool = False,
    ends: bool | None = None,
    batch_tokens: int = AT_ONCE,
) -> SentenceScores:
    """Score a text in whole batches; a contextual model hears each sentence in its context, if the text has any.

    Args:
        model: over ``units``.
        text: encoded by them.
        units: subwords or words.
        classes: score entities as their class tags; otherwise as their words, and tags are impossible.
        ends: count ends of sentences; None for whether the model knows them.
        batch_tokens: tokens at once; fewer if there are many columns.

    Raises:
        ConfigError: ends are wanted of a model that does not know them.
    """
    known = end_token(model) is not None
    ends = known if ends is None else ends
    if ends and not known:
        raise ConfigError(
            "ends of sentences of a model that was trained without", "none", "train it with model.end=true"
        )
    at_once = max(1, min(batch_tokens, 40_000_000 // model.vocab_size))
    batches = TextBatches(text, units.vocab_size, at_once, context=contexts_for(model, text))
    unknown = 0 if units.pieces[0] == UNKNOWN else -2
    found = _empty(text, ends, classes)
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        for chosen, batch in batches.in_order(classes):
            logp, targets = token_logp(model, batch.to(device), spoken=not classes, ends=ends)
            found.logp[chosen] = logp.double().sum(1).cpu().numpy()
            lost = targets == unknown
            found.unknown[chosen] = lost.sum(1).cpu().numpy()
            found.unknown_logp[chosen] = (logp * lost).double().sum(1).cpu().numpy()
    return found


def score_ngram(
    model: NGramModel, text: TokenText, classes: bool = False, ends: bool = True
) -> SentenceScores:
    """The same for an n-gram model over subwords, on the CPU; many sentences advance together."""
    model = model.to("cpu")
    found = _empty(text, ends, classes)
    batches = TextBatches(text, model.num_tokens, 200_000)
    tags = range(model.num_tokens, model.num_tokens + (0 if classes else model.num_classes))
    excluded = [*tags, *(() if ends else (model.width - 1,))]
    for chosen, batch in batches.in_order(classes):
        state = torch.full((len(chosen),), model.start)
        total = torch.zeros(len(chosen), dtype=torch.float64)
        for place in range(batch.tokens.shape[1] + 1):
            here, at_end = place < batch.lengths, place == batch.lengths
            live = (here | at_end if ends else here).nonzero().squeeze(1)
            word = torch.where(here, batch.tokens[:, min(place, batch.tokens.shape[1] - 1)], model.width - 1)[
                live
            ]
            logp = model.ask(state[live], word).double() - _rest(model, state[live], excluded)
            total[live] += logp
            state[live] = model.advance(state[live], word)
        found.logp[chosen] = total.numpy()
    return found


def score_words(model: WordLM, lines: Iterable[str]) -> SentenceScores:
    """The same for a model over words, which is asked word by word; ends are counted, entities are words.

    Text is taken in upper case, or in lower case where the model knows more of the first words then.
    """
    stream = (strip(line) if "<" in line else line for line in lines)
    first = list(islice(stream, 100))
    known = {case: sum(map(model.knows, normalise(" ".join(first), case).split())) for case in CASES}
    case = max(CASES, key=lambda case: known[case])
    keep = max(model.order - 1, 0)
    rows: list[tuple[float, int, int, float]] = []
    for line in chain(first, stream):
        words = normalise(line, case).split()
        if not words:
            continue
        asked = [(tuple(words[max(0, i - keep) : i]), word) for i, word in enumerate([*words, END])]
        logps = model.logp(asked)
        lost = [logp for logp, word in zip(logps, words, strict=False) if not model.knows(word)]
        rows.append((math.fsum(logps), len(words), len(lost), math.fsum(lost)))
    table = np.array(rows, np.float64).reshape(-1, 4)
    count, unknown = table[:, 1].astype(np.int64), table[:, 2].astype(np.int64)
    return SentenceScores(table[:, 0], count, count, unknown, table[:, 3], True)


def score_file(path: Path, text: TokenText, units: Tokenizer | WordVocabulary) -> dict[str, SentenceScores]:
    """Score an encoded text with a model from a file, in every way there is.

    As it is spoken and, if it has entities, with them as classes; with ends of sentences, if the model knows them,
    and without.

    Args:
        path: a language model over ``units``.
        text: encoded by them.
        units: subwords, or words of a neural model.

    Raises:
        ConfigError: a model over other units, or a file of KenLM's.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_language_model(path, units, device)
    if not isinstance(model, NGramModel | LanguageModel):
        raise ConfigError(
            f"KenLM's {path.name} over subwords", "its ARPA file, or a model over words", "give that"
        )
    knows = isinstance(model, NGramModel) or end_token(model) is not None
    found = {}
    for classes in (False, True) if text.summary.entities else (False,):
        how = "entities as classes" if classes else "as spoken"
        for end in (True, False) if knows else (False,):
            name = f"{how}, ends of sentences {'' if end else 'not '}counted"
            if isinstance(model, NGramModel):
                found[name] = score_ngram(model, text, classes, end)
            else:
                found[name] = score_neural(model, text, units, classes, end)
    return found


def _rest(model: NGramModel, states: torch.Tensor, excluded: list[int]) -> torch.Tensor:
    """Log probability of all words but those excluded."""
    taken = torch.zeros(len(states), dtype=torch.float64)
    for word in excluded:
        taken += model.ask(states, torch.full_like(states, word)).double().exp()
    return torch.log1p(-taken.clamp_max(1 - 1e-12))


def _empty(text: TokenText, ends: bool, classes: bool) -> SentenceScores:
    size = len(text)
    tokens, words = text.counts(classes)
    return SentenceScores(np.zeros(size), tokens, words, np.zeros(size, np.int64), np.zeros(size), ends)


def _grouped(columns: Floats) -> Floats:
    if len(columns) <= GROUPS:
        return columns
    return np.add.reduceat(columns, np.linspace(0, len(columns), GROUPS, endpoint=False).astype(np.int64))


def _shown(interval: Interval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
