"""KenLM files (Heafield 2011) through the ``kenlm`` package; its words are a tokenizer's pieces and class tags."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm.errors import ConfigError
from lm.language_model import ContextStore
from lm.vocabulary import Units


class KenLM:
    """A KenLM binary (or ARPA) file.

    A row of scores asks KenLM for every token, once for each history met; ``lm.ngram`` compiles the ARPA file and
    is faster.

    Args:
        path: the file.
        tokenizer: its pieces and tags are the words.
        device: where its scores are wanted; KenLM itself works on the CPU.

    Raises:
        ConfigError: the ``kenlm`` package is not installed, or the file is none of KenLM's.
    """

    def __init__(self, path: Path, tokenizer: Units, device: str | torch.device = "cpu") -> None:
        try:
            import kenlm
        except ImportError:
            raise ConfigError(
                f"{path.name} without the kenlm package", "pip install kenlm", "or give the ARPA file instead"
            ) from None
        self.module = kenlm
        self.device = torch.device(device)
        self.words = [*tokenizer.pieces, *(f"<{name}>" for name in tokenizer.classes)]
        self.num_tokens, self.num_classes = tokenizer.vocab_size, tokenizer.num_classes
        try:
            self.model = kenlm.Model(str(path))
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"{path}: {reason}", "a KenLM file", "build it again with build_binary"
            ) from None
        unknown = [word for word in self.words[: self.num_tokens] if word not in self.model]
        if len(unknown) == self.num_tokens:
            raise ConfigError(
                f"{path}: none of the {self.num_tokens} tokens is a word of it",
                "an n-gram model of the model's subwords",
                "train it on text in the pieces of the model's tokenizer",
            )

    def contexts(self, ends: bool = False) -> KenLMContexts:
        """A fresh store of contexts for one search; every KenLM file knows ``</s>``, for ``ends``."""
        return KenLMContexts(self, ends)


class KenLMContexts(ContextStore):
    """Contexts of a KenLM model, one for each of its states; a class tag that it does not know cannot follow."""

    def __init__(self, source: KenLM, ends: bool = False) -> None:
        super().__init__(source.num_tokens, source.num_classes, source.device, ends)
        self._source = source
        first = source.module.State()
        source.model.BeginSentenceWrite(first)
        self._states, self._number = [first], {first: 0}
        self._append(self._row(first)[None])

    def advance(self, contexts: Tensor, tokens: Tensor) -> Tensor:
        """See ``ContextStore.advance``; histories that KenLM does not tell apart are one context."""
        children = self._child.data[contexts, tokens]
        missing = (children < 0).nonzero().squeeze(1)
        if missing.numel():
            parents, labels = contexts[missing], tokens[missing]
            rows = [self._after(*pair) for pair in zip(parents.tolist(), labels.tolist(), strict=True)]
            children[missing] = torch.tensor(rows, dtype=torch.int32, device=self.device)
            self._child.data[parents, labels] = children[missing]
        return children.long()

    def _after(self, parent: int, token: int) -> int:
        state = self._source.module.State()
        self._source.model.BaseScore(self._states[parent], self._source.words[token], state)
        if state not in self._number:
            self._number[state] = self._append(self._row(state)[None])
            self._origin.append(torch.tensor([[parent, token]]))
            self._states.append(state)
        return self._number[state]

    def _extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        raise AssertionError("states are not a tree")

    def _row(self, state: Any) -> Tensor:
        """Natural-log probabilities ``(V + C,)`` after a state; with ``ends`` also that of ``</s>``."""
        model, after = self._source.model, self._source.module.State()
        words = [*self._source.words, *(["</s>"] if self.ends else [])]
        scores = torch.tensor([model.BaseScore(state, word, after) for word in words])
        for place in range(self.num_tokens, len(self._source.words)):
            if self._source.words[place] not in model:
                scores[place] = -math.inf
        return scores * math.log(10.0)
