"""N-gram language models as flat tensors: the whole vocabulary scored for many histories at once.

A state is a history that the model tells apart, the longest suffix of what was said that it has n-grams for; states
are numbered, and so many hypotheses share one. A state's scores are those of the state it backs off to, plus its
back-off weight, with its own n-grams written over them; so a row costs one pass down the chain of suffixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lm.arpa import Floats, Ints, NGrams, read_arpa
from lm.errors import BundleError, DataError
from lm.language_model import ContextStore, Rows, check_end

if TYPE_CHECKING:
    from lm.ngram_kernel import Tables
    from lm.vocabulary import Units

PARTS = ("key", "logp", "target", "backoff_logp", "backoff")
"""Tensors of a file."""

MOST_NUMBERS = 2**25
"""Scores that are kept between searches, as rows of V + C; each takes 8 bytes."""


@dataclass(eq=False)
class NGramModel:
    """An n-gram model over the V surface tokens and C class tags of a tokenizer, and ``</s>``, W in all.

    Attributes:
        num_tokens: V.
        num_classes: C.
        key: ``(arcs,)`` state * W + word, rising; ``logp`` and ``target`` likewise. State 0 is the empty history.
        backoff_logp: ``(states,)``.
        backoff: ``(states,)`` state that each backs off to; 0 to itself.
        start: state behind ``<s>``.
        dropped: n-grams left out because of words that are no tokens.
    """

    num_tokens: int
    num_classes: int
    key: Tensor
    logp: Tensor
    target: Tensor
    backoff_logp: Tensor
    backoff: Tensor
    start: int
    dropped: int = 0
    _stores: dict[bool, NGramContexts] = field(default_factory=dict, repr=False)

    @classmethod
    def from_arpa(cls, path: Path, tokenizer: Units) -> NGramModel:
        """Compile an ARPA file whose words are the tokenizer's pieces and class tags (``<contact>``).

        A token without a unigram has the probability of ``<unk>``; a class tag without one cannot follow.

        Raises:
            DataError: a broken file, or one for other tokens; see ``compile_ngrams``.
        """
        names = [*tokenizer.pieces, *(f"<{name}>" for name in tokenizer.classes), "</s>", "<s>", "<unk>"]
        number = {name: i for i, name in enumerate(names)}
        levels, dropped = read_arpa(path, number)
        return compile_ngrams(levels, tokenizer.vocab_size, tokenizer.num_classes, str(path), dropped)

    @classmethod
    def load(cls, path: Path, tokenizer: Units, device: str = "cpu") -> NGramModel:
        """Read what ``save`` wrote, onto ``device``.

        Raises:
            BundleError: a damaged file, or the model of another vocabulary.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(str(path))
            sizes = tensors.pop("sizes").tolist()
            key, logp, target, backoff_logp, backoff = (tensors[name].to(device) for name in PARTS)
            tables = key, logp, target, backoff_logp, backoff
            model = cls(sizes[0], sizes[1], *tables, start=sizes[2], dropped=sizes[3])
        except (SafetensorError, OSError, KeyError, TypeError, IndexError) as error:
            raise BundleError(f"{path}: {error}", "a compiled n-gram model", "compile it again") from None
        if sizes[:2] != [tokenizer.vocab_size, tokenizer.num_classes]:
            raise BundleError(
                f"{path}: {sizes[0]} tokens and {sizes[1]} classes",
                f"{tokenizer.vocab_size} and {tokenizer.num_classes}",
                "train it with the tokenizer of this model",
            )
        return model

    def save(self, path: Path, tokenizer: Units) -> None:
        """Write the compiled model."""
        from safetensors.torch import save_file

        tensors = {name: getattr(self, name).cpu().contiguous() for name in PARTS}
        tensors["sizes"] = torch.tensor([self.num_tokens, self.num_classes, self.start, self.dropped])
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, {"kind": "ngram", "tokenizer": tokenizer.digest})

    def to(self, device: str | torch.device) -> NGramModel:
        """The model on a device: itself if it is there already."""
        if self.key.device == torch.device(device):
            return self
        moved = {name: getattr(self, name).to(device) for name in PARTS}
        return replace(self, **moved, _stores={})

    @property
    def width(self) -> int:
        """W: tokens, class tags and ``</s>``."""
        return self.num_tokens + self.num_classes + 1

    @property
    def knows_end(self) -> bool:
        """Whether ``</s>`` has a unigram."""
        return bool((self.key == self.width - 1).any())

    def contexts(self, ends: bool = False) -> NGramContexts:
        """Contexts for a search; rows computed for searches before are there already.

        Raises:
            ConfigError: ``ends`` are to be scored, and the model has no ``</s>``.
        """
        store = self._stores.get(ends)
        if store is None or len(store) * self.width > MOST_NUMBERS:
            check_end(self.knows_end, ends, "an n-gram model")
            store = self._stores[ends] = NGramContexts(self, ends)
        return store

    def rows(self, states: Tensor) -> Tensor:
        """Natural-log probabilities ``(M, W)`` of every word, ``</s>`` last, after ``states`` ``(M,)``."""
        chain = [states]
        while bool((chain[-1] != 0).any()):
            chain.append(self.backoff[chain[-1]])
        width = self.width
        scores = torch.full((len(states), width), -torch.inf, device=states.device)
        for depth, each in enumerate(reversed(chain)):
            if depth:
                scores += self.backoff_logp[each, None] * (each != 0)[:, None]
            # A chain shorter than the longest stays at the empty history, whose n-grams are written once.
            live = torch.ones_like(each, dtype=torch.bool) if not depth else each != 0
            first = torch.searchsorted(self.key, each * width)
            count = (torch.searchsorted(self.key, (each + 1) * width) - first) * live
            row = torch.repeat_interleave(torch.arange(len(states), device=states.device), count)
            arc = torch.arange(len(row), device=states.device) - (count.cumsum(0) - count)[row] + first[row]
            scores[row, self.key[arc] % width] = self.logp[arc]
        return scores

    def ask(self, states: Tensor, words: Tensor) -> Tensor:
        """Natural-log probabilities ``(M,)`` of a word each after ``states``, as ``rows`` has them."""
        found = torch.full(states.shape, -torch.inf, device=states.device)
        total, at = torch.zeros_like(found), states.clone()
        missing = torch.ones_like(states, dtype=torch.bool)
        while True:
            wanted = at * self.width + words
            place = torch.searchsorted(self.key, wanted).clamp_max(len(self.key) - 1)
            hit = missing & (self.key[place] == wanted)
            found = torch.where(hit, total + self.logp[place], found)
            missing = missing & ~hit & (at != 0)
            if not bool(missing.any()):
                return found
            total = torch.where(missing, total + self.backoff_logp[at], total)
            at = torch.where(missing, self.backoff[at], at)

    def advance(self, states: Tensor, words: Tensor) -> Tensor:
        """States ``(M,)`` after a word each."""
        after, at = torch.zeros_like(states), states.clone()
        missing = torch.ones_like(states, dtype=torch.bool)
        while True:
            wanted = at * self.width + words
            place = torch.searchsorted(self.key, wanted).clamp_max(len(self.key) - 1)
            found = missing & (self.key[place] == wanted)
            after = torch.where(found, self.target[place], after)
            missing = missing & ~found & (at != 0)
            if not bool(missing.any()):
                return after
            at = torch.where(missing, self.backoff[at], at)

    def score_text(self, words: Sequence[int], end: bool = True) -> float:
        """Natural-log probability of a sentence as the ARPA file has it, from ``<s>``, with ``</s>`` if wanted."""
        total, state = 0.0, torch.tensor([self.start], device=self.key.device)
        for word in [*words, self.width - 1] if end else words:
            asked = torch.full_like(state, word)
            total += float(self.ask(state, asked))
            state = self.advance(state, asked)
        return total


class NGramContexts(ContextStore):
    """States of an n-gram model as contexts: a row for each state that was met, shared by all that lead there.

    As everywhere in a search the surface tokens are normalised among themselves: what class tags take, and without
    ``ends`` what ``</s>`` takes, is not counted for them, and tags have odds against all of them together.

    Args:
        model: the model.
        ends: score ends of sentences.
        reference: work in tensors, also on a CPU.
    """

    def __init__(self, model: NGramModel, ends: bool = False, reference: bool = False) -> None:
        super().__init__(model.num_tokens, model.num_classes, model.key.device, ends)
        self._model = model
        self._states = Rows((), torch.long, self.device)
        self._row = torch.full((len(model.backoff),), -1, dtype=torch.long, device=self.device)
        self._tables = None if reference or model.key.is_cuda else _tables(model)
        self._rows_of(torch.tensor([model.start], device=self.device))

    def advance(self, contexts: Tensor, tokens: Tensor) -> Tensor:
        """See ``ContextStore.advance``."""
        if self._tables is not None:
            return self._advance(self._tables, contexts, tokens)
        children = self._child.data[contexts, tokens]
        missing = (children < 0).nonzero().squeeze(1)
        if missing.numel():
            parents, labels = contexts[missing], tokens[missing]
            rows = self._rows_of(self._model.advance(self._states.data[parents], labels))
            self._child.data[parents, labels] = rows.int()
            children[missing] = rows.int()
        return children.long()

    def _advance(self, tables: Tables, contexts: Tensor, tokens: Tensor) -> Tensor:
        """The same in compiled code."""
        from lm import ngram_kernel

        children, new = np.empty((2, len(contexts)), np.int64)
        asked = contexts.contiguous().numpy(), tokens.contiguous().numpy()
        kept = self._child.data.numpy(), self._states.data.numpy(), self._row.numpy()
        count = ngram_kernel.advance(tables, self._model.width, *asked, *kept, children, new)
        if count:
            self._origin.grow(count)
            self._child.grow(count)
            first = self._states.append(torch.from_numpy(new[:count]))
            self._logits.grow(count)
            end = np.empty(count, np.float32)
            table = self._logits.data[first:].numpy()
            sizes = self._model.width, self.num_tokens, self.ends
            ngram_kernel.rows(tables, *sizes, new[:count], table, end)
            if self.ends:
                self._end.append(torch.from_numpy(end))
        return torch.from_numpy(children)

    def _rows_of(self, states: Tensor) -> Tensor:
        new = states[self._row[states] < 0].unique()  # type: ignore[no-untyped-call]
        if len(new):
            first = self._append(self._model.rows(new))
            self._origin.grow(first + len(new) - len(self._origin.data))
            self._states.append(new)
            self._row[new] = torch.arange(first, first + len(new), device=self.device)
        return self._row[states]

    def _extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        raise AssertionError("states are not a tree")


def _tables(model: NGramModel) -> Tables:
    """The model as compiled code takes it."""
    from lm.ngram_kernel import Tables

    states = torch.arange(len(model.backoff) + 1)
    first = torch.searchsorted(model.key, states * model.width)
    parts = model.key, model.logp, model.target, model.backoff_logp, model.backoff, first
    return Tables(*(part.contiguous().numpy() for part in parts))


def compile_ngrams(
    levels: Sequence[NGrams], num_tokens: int, num_classes: int, source: str, dropped: int = 0
) -> NGramModel:
    """N-grams over tokens, tags, and then ``</s> <s> <unk>``, as flat tensors.

    Raises:
        DataError: tokens without unigram and no ``<unk>``, no token or tag with a unigram, an n-gram twice, or one
            whose first words are no shorter n-gram.
    """
    width = num_tokens + num_classes + 1
    bos, unk = width, width + 1
    levels = [_filled(levels[0], num_tokens, width - 1, unk, source), *levels[1:]]
    found = _Sorted(levels, unk + 1, source)
    states = _number(found.levels, width - 1, unk)
    start = states[0][found.levels[0].words[:, 0] == bos]
    size = 1 + sum(int((state >= 0).sum()) for state in states)
    backoff, backoff_logp = np.zeros(size, np.int64), np.zeros(size)
    keys, logps, targets = list[Ints](), list[Floats](), list[Ints]()
    for level, state in zip(found.levels, states, strict=True):
        history, last = found.history(level, states), level.words[:, -1]
        shorter, is_state = found.longest_suffix(level, states), state >= 0
        backoff[state[is_state]] = shorter[is_state]
        backoff_logp[state[is_state]] = level.backoff[is_state]
        arc = (last < width) & (history >= 0)
        keys.append((history * width + last)[arc])
        logps.append(level.logp[arc])
        target = np.where(is_state, state, shorter)
        targets.append(np.where(last == width - 1, 0, target)[arc])
    key = np.concatenate(keys)
    order = np.argsort(key)
    return NGramModel(
        num_tokens,
        num_classes,
        torch.from_numpy(key[order]),
        torch.from_numpy(np.concatenate(logps)[order]).float(),
        torch.from_numpy(np.concatenate(targets)[order]),
        torch.from_numpy(backoff_logp).float(),
        torch.from_numpy(backoff),
        int(start.max(initial=0)),
        dropped,
    )


class _Sorted:
    """The n-grams of every order, sorted by their words and found by them."""

    def __init__(self, levels: Sequence[NGrams], base: int, source: str) -> None:
        self.levels, self._keys, self._base = list[NGrams](), list[Ints](), base
        for n, level in enumerate(levels, start=1):
            order = np.lexsort(level.words.T[::-1])
            level = NGrams(level.words[order], level.logp[order], level.backoff[order])
            prefix = self.rows(level.words[:, :-1])
            key = prefix * base + level.words[:, -1]
            lost, twice = int((prefix < 0).sum()), int((key[1:] == key[:-1]).sum())
            if lost or twice:
                given = f"{lost} {n}-grams whose first {n - 1} words are no {n - 1}-gram"
                raise DataError(
                    f"{source}: {given if lost else f'{twice} {n}-grams that stand there twice'}",
                    "every n-gram once, and the words in front of its last as an n-gram of their own",
                    "write the file anew",
                )
            self.levels.append(level)
            self._keys.append(np.append(key, np.iinfo(np.int64).max))

    def rows(self, words: Ints) -> Ints:
        """Rows ``(M,)`` of the n-grams ``words`` ``(M, n)``, -1 where there is none; 0 for no words."""
        row = np.zeros(len(words), np.int64)
        for key, word in zip(self._keys, words.T, strict=False):
            wanted = row * self._base + word
            place = np.searchsorted(key, wanted)
            row = np.where(key[place] == wanted, place, -1)
        return row

    def history(self, level: NGrams, states: Sequence[Ints]) -> Ints:
        """States ``(M,)`` of all but the last words, -1 for those that are none."""
        words = level.words[:, :-1]
        return states[words.shape[1] - 1][self.rows(words)] if words.shape[1] else self.rows(words)

    def longest_suffix(self, level: NGrams, states: Sequence[Ints]) -> Ints:
        """State ``(M,)`` of the longest true suffix of the words that is one."""
        after = np.full(len(level.words), -1)
        for drop in range(1, level.words.shape[1]):
            left = np.flatnonzero(after < 0)
            words = level.words[left, drop:]
            row = self.rows(words)
            after[left[row >= 0]] = states[words.shape[1] - 1][row[row >= 0]]
        return after.clip(min=0)


def _number(levels: Sequence[NGrams], eos: int, unk: int) -> list[Ints]:
    """The state of every n-gram; -1 for those that are no histories."""
    states, total = list[Ints](), 1
    for n, level in enumerate(levels, start=1):
        history = (level.words[:, -1] != eos) & (level.words != unk).all(-1) & (n < len(levels))
        states.append(np.where(history, total + np.cumsum(history) - 1, -1))
        total += int(history.sum())
    return states


def _filled(unigrams: NGrams, num_tokens: int, eos: int, unk: int, source: str) -> NGrams:
    """Unigrams with that of ``<unk>`` for tokens that have none."""
    words = unigrams.words[:, 0]
    missing = np.setdiff1d(np.arange(num_tokens), words)
    if not len(missing):
        return unigrams
    other = np.flatnonzero(words == unk)
    if not len(other) or bool((words >= eos).all()):
        raise DataError(
            f"{source}: no unigram for {len(missing)} of the {num_tokens} tokens"
            + ("" if len(other) else ", and none for <unk>"),
            "an n-gram model of the model's subwords",
            "train it on text in the pieces of the model's tokenizer",
        )
    return NGrams(
        np.concatenate((unigrams.words, missing[:, None])),
        np.concatenate((unigrams.logp, np.repeat(unigrams.logp[other[0]], len(missing)))),
        np.concatenate((unigrams.backoff, np.zeros(len(missing)))),
    )
