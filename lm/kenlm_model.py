"""KenLM files (Heafield 2011) through the ``kenlm`` package; its words are a tokenizer's pieces and class tags."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm.errors import ConfigError
from lm.language_model import ContextStore
from lm.tokenizer import Tokenizer


class KenLM:
    """A KenLM binary (or ARPA) file.

    A row of scores asks KenLM for every token, once for each history met; ``lm.ngram`` compiles the ARPA file and
    is faster.

    Raises:
        ConfigError: the ``kenlm`` package is not installed, or the file is none of KenLM's.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        try:
            import kenlm
        except ImportError:
            raise ConfigError(
                f"{path.name} without the kenlm package", "pip install kenlm", "or give the ARPA file instead"
            ) from None
        self.module = kenlm
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

    def contexts(self) -> KenLMContexts:
        """A fresh store of contexts for one search."""
        return KenLMContexts(self)


class KenLMContexts(ContextStore):
    """Contexts of a KenLM model; a class tag that it does not know cannot follow."""

    def __init__(self, source: KenLM) -> None:
        super().__init__(source.num_tokens, source.num_classes, torch.device("cpu"))
        self._source = source
        self._states: list[Any] = [source.module.State()]
        source.model.BeginSentenceWrite(self._states[0])
        self._append(self._row(self._states[0])[None])

    def _extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        source, rows = self._source, list[Tensor]()
        for parent, token in zip(parents.tolist(), tokens.tolist(), strict=True):
            state = source.module.State()
            source.model.BaseScore(self._states[parent], source.words[token], state)
            self._states.append(state)
            rows.append(self._row(state))
        return torch.stack(rows)

    def _row(self, state: Any) -> Tensor:
        """Natural-log probabilities ``(V + C,)`` after a state."""
        model, after = self._source.model, self._source.module.State()
        scores = torch.tensor([model.BaseScore(state, word, after) for word in self._source.words])
        for place in range(self.num_tokens, len(scores)):
            if self._source.words[place] not in model:
                scores[place] = -math.inf
        return scores * math.log(10.0)
