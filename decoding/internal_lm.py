"""What a model has learnt of its training text, and how to take it out or mix it with another language model.

    log P(y | x) + λ_E log P_ELM(y) - λ_I log P_ILM(y)        labels only, never the blank (METHODS 12)

Three estimates of P_ILM, all of them scorers to be stacked beside an external language model:

- ``density_ratio``: a language model of the training transcripts (McDermott et al. 2019, arXiv 2002.11268);
- ``lodr``: an n-gram of low order, usually 2, of the training transcripts (Zheng et al. 2022, arXiv 2203.16776);
- ``ilme``: the model itself without its encoder (Meng et al. 2021, arXiv 2011.01991).

A factorized transducer needs no subtraction: its predictor is a language model, and ``Interpolated`` mixes another
one into it in the linear domain (Zhao et al. 2022, arXiv 2212.01992; Levit et al. 2023, arXiv 2305.17304).
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from decoding.scorer import Scorer
from lm.errors import ConfigError
from lm.language_model import ContextStore, Rows


class Contexts(Protocol):
    """Histories by number and their log probabilities; every ``ContextStore`` is one."""

    def start(self, utterances: int) -> Tensor:
        """The empty history for each utterance ``(B,)``."""
        ...

    def score(self, contexts: Tensor, tokens: Tensor) -> Tensor:
        """Log probabilities ``(N, k)`` of ``tokens`` ``(N, k)`` after ``contexts`` ``(N,)``, normalised over V."""
        ...

    def advance(self, contexts: Tensor, tokens: Tensor) -> Tensor:
        """Histories ``(M,)`` after a token each."""
        ...


class WithoutEncoder(Protocol):
    """What a family offers whose language model is inside its joint network: RNN-T, TAED, AED.

    Its states are those of its emitter.
    """

    def start(self) -> Tensor:
        """First state of each utterance ``(B,)`` int64."""
        ...

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """States ``(M,)`` after each of ``tokens`` ``(M,)``."""
        ...

    def internal_logits(self, state: Tensor) -> Tensor:
        """Logits ``(M, V)`` of the labels, without blank or end, with nothing heard.

        For a transducer the joint network with h = 0; for a decoder with attention, its context vector at 0.
        """
        ...


class InternalContexts:
    """The internal language model of a family without its encoder, normalised over V: blank has no part in it."""

    def __init__(self, model: WithoutEncoder) -> None:
        self._model = model

    def start(self, utterances: int) -> Tensor:
        """See ``Contexts.start``; the utterances are the model's."""
        return self._model.start()

    def score(self, contexts: Tensor, tokens: Tensor) -> Tensor:
        """See ``Contexts.score``."""
        # The hypotheses of a beam share most of what they said last.
        states, place = torch.unique(contexts, return_inverse=True)
        logp = self._model.internal_logits(states).float().log_softmax(-1)
        return logp[place.unsqueeze(-1), tokens]

    def advance(self, contexts: Tensor, tokens: Tensor) -> Tensor:
        """See ``Contexts.advance``."""
        return self._model.advance(contexts, tokens)


class ContextScorer:
    """Contexts as a scorer. See ``decoding.scorer.Scorer``.

    An end of the utterance costs nothing unless the contexts score ends of sentences.
    """

    def __init__(self, contexts: Contexts, name: str, weight: float) -> None:
        self.name, self.weight = name, weight
        self._contexts = contexts

    def start(self, utterances: int) -> Tensor:
        """See ``Scorer.start``."""
        return self._contexts.start(utterances)

    def score(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``Scorer.score``."""
        return self._contexts.score(state, tokens)

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``Scorer.advance``."""
        return self._contexts.advance(state, tokens)

    def finish(self, state: Tensor) -> Tensor:
        """See ``Scorer.finish``."""
        if isinstance(self._contexts, ContextStore) and self._contexts.ends:
            return self._contexts.end_logp(state)
        return torch.zeros(state.shape, device=state.device)


class SplitEnd:
    """The two halves of a source that scores ends of sentences, as scorers of their own, each with its part.

    Args:
        source: the whole.
        end: this one says what ``source`` says of the end; otherwise what it says of the tokens.
        name: of the part.
    """

    def __init__(self, source: Scorer, end: bool, name: str) -> None:
        self.name, self.weight = name, source.weight
        self._source, self._is_end = source, end

    def start(self, utterances: int) -> Tensor:
        """See ``Scorer.start``."""
        return self._source.start(utterances)

    def score(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``Scorer.score``."""
        if self._is_end:
            return torch.zeros(tokens.shape, device=tokens.device)
        return self._source.score(state, tokens)

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``Scorer.advance``."""
        return self._source.advance(state, tokens)

    def finish(self, state: Tensor) -> Tensor:
        """See ``Scorer.finish``."""
        if self._is_end:
            return self._source.finish(state)
        return torch.zeros(state.shape, device=state.device)


class Subtracted:
    """Another scorer with a negative weight and a name of its own.

    Its ``finish`` is subtracted as well: the internal model must know an end of the sentence exactly if the
    external one does.

    Raises:
        ConfigError: ``scale`` is negative.
    """

    def __init__(self, scorer: Scorer, scale: float, name: str) -> None:
        self.name, self.weight = name, -_positive(scale, name)
        self._scorer = scorer

    def start(self, utterances: int) -> Tensor:
        """See ``Scorer.start``."""
        return self._scorer.start(utterances)

    def score(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``Scorer.score``."""
        return self._scorer.score(state, tokens)

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``Scorer.advance``."""
        return self._scorer.advance(state, tokens)

    def finish(self, state: Tensor) -> Tensor:
        """See ``Scorer.finish``."""
        return self._scorer.finish(state)


def density_ratio(source: Scorer, scale: float) -> Scorer:
    """Take out ``scale`` times a language model of the training transcripts; its own weight does not count."""
    return Subtracted(source, scale, "density_ratio")


def lodr(ngram: Scorer, scale: float) -> Scorer:
    """Take out ``scale`` times a low-order n-gram of the training transcripts; its own weight does not count."""
    return Subtracted(ngram, scale, "lodr")


def ilme(model: ContextStore | WithoutEncoder, scale: float) -> Scorer:
    """Take out ``scale`` times what the model itself expects of the labels.

    Args:
        model: the contexts of a factorized transducer's predictor (``emitter.contexts``), or a family's
            ``WithoutEncoder``.
        scale: λ_I.
    """
    contexts = model if isinstance(model, ContextStore) else InternalContexts(model)
    return ContextScorer(contexts, "ilme", -_positive(scale, "ilme"))


class Interpolated(ContextStore):
    """Linear interpolation of two language models: ``log(w P_ext + (1 - w) P_int)``.

    Over V both are normalised and so is the mixture. Class tags are odds against all of V, and odds are mixed
    with the same weights: each model is the measure of mass one on V and its odds on the tags. An external model
    without tags says nothing of them: the odds are then the internal model's, and a tag in the history is to
    the external model as if the entity were not there.

    Args:
        internal: the vocabulary predictor's contexts.
        external: the other model's, over the same tokens, with the same class tags or none.
        weight: w; 1 replaces the predictor, 0 leaves it alone.

    Raises:
        ConfigError: the weight is not in [0, 1], or tokens or classes differ.
    """

    def __init__(self, internal: ContextStore, external: ContextStore, weight: float) -> None:
        tags, others = (_num_classes(store) for store in (internal, external))
        if not 0.0 <= weight <= 1.0:
            raise ConfigError(f"an interpolation weight of {weight}", "0 to 1", "choose one on the dev set")
        if external.num_tokens != internal.num_tokens or others not in (0, tags):
            raise ConfigError(
                f"an external language model over {external.num_tokens} tokens and {others} class tags",
                f"{internal.num_tokens} tokens, and {tags} class tags or none",
                "train it with the tokenizer of the model",
            )
        first, starts = _both_starts(internal, external)
        super().__init__(internal.num_tokens, tags, internal.device, starts=starts)
        self._internal, self._external = internal, external
        self._tagged = others == tags
        self._shares = [math.log(w) if w else -math.inf for w in (1.0 - weight, weight)]
        self._rows = Rows((2,), torch.long, internal.device)
        self._rows.append(first)
        self._append(self._mix(first))

    def _extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        inner, outer = self._rows.data[parents].unbind(-1)
        inner, outer = self._internal.advance(inner, tokens), outer.clone()
        told = torch.ones_like(tokens, dtype=torch.bool) if self._tagged else tokens < self.num_tokens
        outer[told] = self._external.advance(outer[told], tokens[told])
        rows = torch.stack((inner, outer), dim=-1)
        self._rows.append(rows)
        return self._mix(rows)

    def _mix(self, rows: Tensor) -> Tensor:
        internal, external = self._internal.score(rows[:, 0]), self._external.score(rows[:, 1])
        if not self._tagged:
            external = torch.cat((external, internal[:, self.num_tokens :]), dim=-1)
        return torch.logaddexp(internal + self._shares[0], external + self._shares[1])


def _num_classes(store: ContextStore) -> int:
    return store.table.shape[-1] - store.num_tokens


def _both_starts(one: ContextStore, other: ContextStore) -> tuple[Tensor, Tensor | None]:
    """Distinct pairs of empty contexts ``(S, 2)``, and the pair of each utterance if they differ."""
    found = [store.starts for store in (one, other) if store.starts is not None]
    if not found:
        return torch.stack((one.start(1), other.start(1)), dim=-1), None
    pairs = torch.stack([store.start(len(found[0])) for store in (one, other)], dim=-1)
    distinct, starts = torch.unique(pairs, dim=0, return_inverse=True)
    return distinct, starts


def _positive(scale: float, name: str) -> float:
    if not (scale >= 0.0 and math.isfinite(scale)):
        raise ConfigError(f"{name} with scale {scale}", "0 or more", "give the scale without its minus sign")
    return scale
