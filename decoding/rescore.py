"""Second-pass scores for n-best lists, from any stack of knowledge sources.

    log P(y | x) + λ_E log P_ELM(y) - λ_I log P_ILM(y) + ...        (METHODS 12; labels only, never the blank)

Every source is a ``Scorer``: an external language model, a bigram with a negative weight for LODR
(``decoding.internal_lm``), a word-level model (``decoding.word_scorer``). Models that can only judge a whole text
are ``TextLM``. Each leaves its own part in the hypothesis, and first-pass parts can be taken out or rescaled.
A source of weight 0 is not asked and adds nothing. ``decoding.lattice_rescoring`` does the same to lattices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from decoding.scorer import Scorer
from decoding.trace import RawHypothesis
from lm.errors import DataError

_NBest = Sequence[RawHypothesis]


@dataclass(frozen=True)
class TextLM:
    """A language model that judges whole texts.

    Attributes:
        name: label of its part.
        weight: multiplies what ``logp`` returns.
        logp: natural log probabilities of texts.
        text: the text that tokens spell.
    """

    name: str
    weight: float
    logp: Callable[[Sequence[str]], Sequence[float]]
    text: Callable[[Sequence[int]], str]


def rescore_nbest(
    hypotheses: Sequence[_NBest],
    scorers: Sequence[Scorer] = (),
    texts: Sequence[TextLM] = (),
    factors: Mapping[str, float] | None = None,
) -> list[list[RawHypothesis]]:
    """Score the n-best lists of a batch again and sort them; equal scores keep their order.

    All hypotheses of all utterances are scored at once, one label position after the other.

    Args:
        hypotheses: n-best list of each utterance; scorers that know utterances start in this order.
        scorers: what to add, token by token.
        texts: what to add to whole texts.
        factors: multipliers of first-pass parts; 0 takes one out, so that a better source can replace it.

    Raises:
        DataError: a source's name is that of a part that stays, a factor names no part, or a score is NaN or +inf.
    """
    flat = [h for nbest in hypotheses for h in nbest]
    factors = factors or {}
    if flat:
        check_names({name for h in flat for name in h.parts}, [*scorers, *texts], factors)
    added = {s.name: _score_tokens(s, hypotheses) for s in scorers}
    added |= {t.name: _score_texts(t, flat) for t in texts}
    new = iter(
        [_with(h, factors, {name: values[i] for name, values in added.items()}) for i, h in enumerate(flat)]
    )
    return [sorted((next(new) for _ in nbest), key=lambda h: -h.score) for nbest in hypotheses]


def check_names(parts: set[str], sources: Sequence[Scorer | TextLM], factors: Mapping[str, float]) -> None:
    """Refuse sources and factors whose names do not go with the ``parts`` there are."""
    for name in factors:
        # Hypotheses without entities have no part of this name.
        if name not in parts and name != "classes":
            raise DataError(
                f"a factor for part {name!r}", f"one of {', '.join(sorted(parts))}", "correct the name"
            )
    taken = {name for name in parts if factors.get(name, 1.0) != 0.0}
    for source in sources:
        if source.name in taken:
            raise DataError(
                f"a source named {source.name!r}, which the hypotheses hold already",
                "names that differ",
                f"rename it, or take the old part out with the factor {{{source.name!r}: 0}}",
            )
        taken.add(source.name)


def checked(name: str, values: Tensor) -> Tensor:
    """The scores of a source, refused if one is NaN or +inf."""
    if bool((values.isnan() | values.isposinf()).any()):
        raise DataError(
            f"scorer {name!r} returned NaN or +inf",
            "weighted log probabilities",
            "check its tables; a source that forbids words cannot have a negative weight",
        )
    return values


def _with(
    hypothesis: RawHypothesis, factors: Mapping[str, float], added: Mapping[str, float]
) -> RawHypothesis:
    parts = {name: value * factors.get(name, 1.0) for name, value in hypothesis.parts.items()}
    gone = sum(value * (1.0 - factors.get(name, 1.0)) for name, value in hypothesis.parts.items())
    # What recombination brought is in the score alone, and stays.
    return replace(hypothesis, score=hypothesis.score - gone + sum(added.values()), parts=parts | dict(added))


def _score_tokens(scorer: Scorer, hypotheses: Sequence[_NBest]) -> list[float]:
    """Weighted scores of a scorer for every hypothesis, the end included."""
    flat = [h.tokens for nbest in hypotheses for h in nbest]
    if not flat or scorer.weight == 0.0:
        return [0.0] * len(flat)
    state = scorer.start(len(hypotheses))
    counts = torch.tensor([len(nbest) for nbest in hypotheses], device=state.device)
    state = state.repeat_interleave(counts)
    lengths = torch.tensor([len(tokens) for tokens in flat], device=state.device)
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(t, dtype=torch.long) for t in flat], batch_first=True
    )
    padded = padded.to(state.device)
    total = torch.zeros(len(flat), dtype=torch.float64, device=state.device)
    for place in range(padded.shape[1]):
        rows = (lengths > place).nonzero().squeeze(1)
        tokens = padded[rows, place]
        total[rows] += scorer.score(state[rows], tokens[:, None]).squeeze(-1).double()
        state[rows] = scorer.advance(state[rows], tokens)
    total += scorer.finish(state).double()
    weighted: list[float] = checked(scorer.name, scorer.weight * total).tolist()
    return weighted


def _score_texts(model: TextLM, hypotheses: _NBest) -> list[float]:
    if not hypotheses or model.weight == 0.0:
        return [0.0] * len(hypotheses)
    spelled = [model.text(h.tokens) for h in hypotheses]
    distinct = sorted(set(spelled))
    logp = dict(zip(distinct, map(float, model.logp(distinct)), strict=True))
    if any(math.isnan(value) for value in logp.values()):
        raise DataError(f"language model {model.name!r} returned NaN", "log probabilities", "check the model")
    return [model.weight * logp[text] for text in spelled]
