"""What a recognizer has learnt of the language: perplexity of its internal language model on a text.

A factorized transducer's is its vocabulary predictor; a transducer's or an attention decoder's is the model with
nothing heard, over the labels alone (Meng et al. 2021, arXiv 2011.01991), as ``fusion.internal: ilme`` takes it out
of a search. Ends of sentences are not counted: transducers have none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from asr.data.text_batches import TextBatches
from asr.data.token_text import TokenText
from asr.recognizer import Recognizer
from asr.scoring.perplexity import SentenceScores
from decoding.internal_lm import InternalContexts
from lm.errors import ConfigError

AT_ONCE = 16_000
"""Tokens of a batch; what the model remembers of each of their histories is in memory at once."""


def score_internal(recognizer: Recognizer, text: TokenText) -> SentenceScores:
    """Score a text with what ``recognizer`` expects when nothing is heard; entities are words.

    Args:
        recognizer: of any family but CTC.
        text: encoded by its tokenizer.

    Raises:
        ConfigError: a CTC model, whose labels do not depend on each other.
    """
    tokens, words = text.counts(False)
    size = len(text)
    found = np.zeros(size)
    batches = TextBatches(text, recognizer.tokenizer.vocab_size, AT_ONCE)
    with torch.inference_mode():
        for chosen, batch in batches.in_order():
            contexts = _contexts(recognizer)
            state = contexts.start(1)[:1].expand(len(chosen)).clone()
            total = torch.zeros(len(chosen), dtype=torch.float64)
            for place in range(batch.tokens.shape[1]):
                live = (place < batch.lengths).nonzero().squeeze(1)
                token = batch.tokens[live, place]
                logp = contexts.score(state[live], token[:, None])
                total[live] += logp.squeeze(1).double()
                state[live] = contexts.advance(state[live], token)
            found[chosen] = total.numpy()
    return SentenceScores(found, tokens, words, np.zeros(size, np.int64), np.zeros(size), False)


def _contexts(recognizer: Recognizer) -> Any:
    """Fresh contexts of the internal language model; behind them is an emitter that has heard next to nothing."""
    family = recognizer.family
    frames = family.stacking
    features = torch.zeros(1, frames, recognizer.features.num_bins)
    emitter = family.emitter(features, torch.tensor([frames]), 1.0, recognizer.tokenizer.vocab_size)
    if emitter.contexts is not None:
        return emitter.contexts
    if not hasattr(emitter, "internal"):
        raise ConfigError(
            "a CTC model", "a transducer or an attention model", "CTC has no internal language model"
        )
    return InternalContexts(emitter.internal())
