"""What every language model offers: parallel scores for training, integer contexts for search.

A language model works on the V surface tokens and C class tags of one tokenizer (ids ``0..V-1`` and
``V..V+C-1``). It has no blank, and an end of the sentence only if it is asked for: the vocabulary predictor of a
factorized transducer must not have one (METHODS 1a). In a search every context that has been scored is a row of a
``ContextStore``, and a hypothesis remembers it by its number. So ``start / score / advance`` are table look-ups
wherever a context was seen before, ``select`` is plain indexing, and states are shared between beams, utterances
and scorers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lm.errors import ConfigError

if TYPE_CHECKING:
    from lm.config import Config


class LanguageModel(nn.Module, ABC):
    """Base of the language models.

    Args:
        num_tokens: V, surface tokens.
        num_classes: C, class tags that may stand for an entity.
        end: whether it knows the end of a sentence; its scores then have a last column V + C.

    Attributes:
        config: its shape.
    """

    config: Config

    def __init__(self, num_tokens: int, num_classes: int, end: bool = False) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.num_classes = num_classes
        self.end = end

    @property
    def vocab_size(self) -> int:
        """Tokens and tags: V + C."""
        return self.num_tokens + self.num_classes

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(B, U + 1, V + C)``; row u scores what follows the first u of ``tokens`` ``(B, U)``.

        With ``end`` there is one column more.
        """

    @abstractmethod
    def contexts(self, ends: bool = False) -> ContextStore:
        """A fresh store of contexts for one search, with ``ends`` one that scores ends of sentences.

        Raises:
            ConfigError: ends of a model that does not know them.
        """

    def score_text(self, tokens: Tensor) -> Tensor:
        """Log probability ``(B, U)`` of each of ``tokens`` ``(B, U)`` over V + C; padding may hold any valid id."""
        logp: Tensor = self(tokens)[:, :-1, : self.vocab_size].float().log_softmax(-1)
        return logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


class ContextStore(ABC):
    """Contexts of one language model as rows of tables; row 0 is the empty context.

    Subclasses append the empty context's row when they are made, and implement ``_extend``, which computes rows
    that are new; everything else is bookkeeping.

    With ``ends`` the text may end after any context: the end takes its share of the mass that the surface tokens
    have alone otherwise, and ``end_logp`` is what it takes. So tokens and end together are a proper distribution
    over whole sentences.

    Args:
        ends: whether ends of sentences are scored.
        starts: ``(B,)`` rows of empty contexts, for a model to which the utterances of a batch differ before
            anything is said; these are the first rows, ``0 .. max(starts)``. None where row 0 serves all.
    """

    def __init__(
        self,
        num_tokens: int,
        num_classes: int,
        device: torch.device,
        ends: bool = False,
        starts: Tensor | None = None,
    ) -> None:
        self.num_tokens = num_tokens
        self.device = device
        self.starts = starts
        self.ends = ends
        self._end = Rows((), torch.float32, device)
        width = num_tokens + num_classes
        self._child = Rows((width,), torch.int32, device, fill=-1)
        self._logits = Rows((width,), torch.float32, device)
        self._origin = Rows((2,), torch.long, device, fill=-1)
        self._origin.grow(1 if starts is None else int(starts.max()) + 1)  # the empty contexts

    @abstractmethod
    def _extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Compute and store the contexts ``parents ⊕ tokens`` ``(M,)``; return their logits ``(M, V + C)``.

        A last column V + C, if there is one, is the end's.
        """

    def __len__(self) -> int:
        """Contexts stored so far."""
        return self._logits.data.shape[0]  # in a third of the time of len

    @property
    def table(self) -> Tensor:
        """What ``score`` looks up: ``(rows, V + C)``, a row for each context."""
        return self._logits.data

    @property
    def knows_classes(self) -> bool:
        """Whether a class tag may follow at all."""
        return bool(self.table[0, self.num_tokens :].isfinite().any())

    def origin(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """Parents and last tokens of ``contexts``; an empty context is its own parent and has token -1."""
        parent, token = self._origin.data[contexts].unbind(-1)
        return torch.where(parent < 0, contexts, parent), token

    def start(self, utterances: int) -> Tensor:
        """The empty context for each utterance ``(B,)``."""
        if self.starts is None:
            return torch.zeros(utterances, dtype=torch.long, device=self.device)
        if utterances != len(self.starts):
            raise ValueError(f"contexts of {len(self.starts)} utterances asked for {utterances}")
        return self.starts.clone()

    def score(self, contexts: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Log probabilities ``(..., V + C)``, the surface part normalised over V alone.

        With ``tokens``, of a shape that broadcasts with ``contexts[..., None]``, only those. The last C columns
        are the tags' log odds against all surface tokens together (and the end, with ``ends``), so that any set of
        active classes is normalised by adding its odds to one (see ``ClassLM``).
        """
        if tokens is None:
            return self._logits.data[contexts]
        return self._logits.data[contexts.unsqueeze(-1), tokens]

    def end_logp(self, contexts: Tensor) -> Tensor:
        """Log probability ``(...)`` that the text ends after ``contexts``, against the surface tokens; ``ends``."""
        return self._end.data[contexts]

    def advance(self, contexts: Tensor, tokens: Tensor) -> Tensor:
        """Rows ``(M,)`` of ``contexts ⊕ tokens``, each computed once in the life of the store."""
        children = self._child.data[contexts, tokens]
        missing = (children < 0).nonzero().squeeze(1)
        if missing.numel():
            width = self._child.data.shape[1]
            keys, inverse = torch.unique(contexts[missing] * width + tokens[missing], return_inverse=True)
            parents, labels = keys // width, keys % width
            self._origin.append(torch.stack((parents, labels), dim=-1))
            first = self._append(self._extend(parents, labels))
            rows = torch.arange(first, first + len(keys), device=self.device)
            self._child.data[parents, labels] = rows.int()
            children[missing] = rows.int()[inverse]
        return children.long()

    def _append(self, logits: Tensor) -> int:
        """Store normalised rows for ``logits`` ``(M, V + C)``, or with the end's column; returns the first."""
        logits = logits.float()
        total = logits[:, : self.num_tokens].logsumexp(-1, keepdim=True)
        width = self._child.data.shape[1]
        if self.ends:
            end = logits[:, width:]
            total = torch.logaddexp(total, end)
            self._end.append((end - total).squeeze(1))
        self._child.grow(logits.shape[0])
        return self._logits.append(logits[:, :width] - total)


def check_end(known: bool, wanted: bool, what: str) -> None:
    """Refuse to score ends of sentences with a model that does not know them."""
    if wanted and not known:
        raise ConfigError(
            f"ends of sentences of {what} that does not know them",
            "an n-gram model with </s>, or a neural one trained with end: true",
            "use fusion.end=false, or train one that does",
        )


class Rows:
    """A table that grows by doubling: ``data`` is the view of all rows in use, ``(rows, *shape)``.

    New rows hold ``fill``, or anything if there is none.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, fill: float | None = None
    ) -> None:
        self._fill = fill
        self._buffer = torch.empty((1024, *shape), dtype=dtype, device=device)
        self.data = self._buffer[:0]

    def grow(self, rows: int) -> int:
        """Add ``rows`` rows; returns the index of the first."""
        first, size = self.data.shape[0], self._buffer.shape[0]
        need = first + rows
        if need > size:
            larger = self._buffer.new_empty((max(need, 2 * size), *self._buffer.shape[1:]))
            larger[:first] = self.data
            self._buffer = larger
        self.data = self._buffer[:need]
        if self._fill is not None:
            self.data[first:] = self._fill
        return first

    def append(self, rows: Tensor) -> int:
        """Add ``rows`` ``(M, *shape)``; returns the index of the first."""
        first = self.grow(rows.shape[0])
        self.data[first:] = rows
        return first
