"""Log probabilities of sentences under a neural language model, for training and perplexity alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from asr.data.text_batches import TextBatch
from lm.language_model import LanguageModel


def end_token(model: LanguageModel) -> int | None:
    """The column V + C of a model that knows the end of a sentence; None for one that does not."""
    return model.vocab_size if model.end else None


def token_logp(model: LanguageModel, batch: TextBatch, spoken: bool, ends: bool) -> tuple[Tensor, Tensor]:
    """Log probability of each token and of the ends of sentences.

    Args:
        model: the language model; if the batch has contexts, one that takes them.
        batch: sentences ``(B, U)``.
        spoken: the text has no tags, and none is possible: normalise over the surface tokens (and the end) alone.
        ends: count the ends; the model must know them. Otherwise no end is possible.

    Returns:
        ``(B, U + 1)`` log probabilities, 0 behind the end, and the targets, -1 there.
    """
    width = batch.tokens.shape[1]
    end = end_token(model)
    logits = model(batch.tokens) if batch.context is None else model(batch.tokens, batch.context)
    if spoken and model.num_classes:
        logits = _impossible(logits, model.num_tokens, model.vocab_size)
    if end is not None and not ends:
        logits = logits[..., :end]
    places = torch.arange(width + 1, device=batch.tokens.device)
    targets = F.pad(batch.tokens, (0, 1)).masked_fill(places >= batch.lengths[:, None], -1)
    if ends:
        assert end is not None
        targets = torch.where(places == batch.lengths[:, None], end, targets)
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    return -loss.view_as(targets), targets


def text_loss(model: LanguageModel, batch: TextBatch) -> tuple[Tensor, int]:
    """Cross-entropy of a batch in nats a token, and its tokens; ends count if the model knows them."""
    logp, targets = token_logp(model, batch, spoken=False, ends=end_token(model) is not None)
    count = int((targets >= 0).sum())
    return -logp.sum() / max(1, count), count


def adaptation_loss(
    model: LanguageModel, base: LanguageModel, kl_weight: float, batch: TextBatch
) -> tuple[Tensor, int]:
    """``(1 - ρ) CE(text) + ρ KL(P_base ‖ P_model)``, in nats a token, and the tokens of a batch.

    The divergence is taken behind every prefix of the text that a token follows, over all tokens and class tags;
    it holds the model near to what it was where the text says little (Yu et al. 2013; for factorized transducers
    arXiv 2212.01992).

    Args:
        model: the language model that learns.
        base: what it was; not changed.
        kl_weight: ρ, 0 to 1.
        batch: sentences ``(B, U)``.
    """
    places = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    inside = places < batch.lengths[:, None]
    logp = model(batch.tokens)[:, :-1][inside].float().log_softmax(-1)  # (M, V + C)
    with torch.no_grad():
        was = base(batch.tokens)[:, :-1][inside].float().log_softmax(-1)
    said = F.nll_loss(logp, batch.tokens[inside])
    away = F.kl_div(logp, was, log_target=True, reduction="batchmean")
    return (1 - kl_weight) * said + kl_weight * away, len(logp)


def _impossible(logits: Tensor, first: int, last: int) -> Tensor:
    """Scores in which the columns from ``first`` to ``last`` cannot be."""
    column = torch.arange(logits.shape[-1], device=logits.device)
    return logits.masked_fill((column >= first) & (column < last), -torch.inf)
