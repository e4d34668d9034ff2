"""Compile what the search runs in machine code, so that the first search need not wait for it.

python -m decoding.compile
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from decoding.beam import SCORERS, Beam
from decoding.fast_step import FastStep, Frames
from decoding.phrase_boost import BoostGraph, PhraseBoost
from decoding.pruning import Pruning
from decoding.top_tokens import top_tokens
from lm.arpa import NGrams
from lm.ngram import compile_ngrams
from lm.transformer import TransformerLM, TransformerLMConfig


def is_compiled() -> bool:
    """Whether this machine has compiled the search before; False where that cannot be told."""
    from decoding import step_kernel

    folder = getattr(getattr(step_kernel.step, "_cache", None), "cache_path", None)
    return folder is not None and any(Path(folder).glob("step_kernel.step-*.nbi"))


def compile_all() -> None:
    """Take one step of a search for nothing, one of a phrase boost, and one of two language models."""
    size = (1, 1, 1)
    heard = Frames(
        frames=torch.zeros((1, 1), dtype=torch.long),
        inside=torch.ones((1, 1), dtype=torch.bool),
        tokens=torch.zeros(size, dtype=torch.long),
        blank=torch.zeros(size),
        repeat=None,
        label=torch.zeros((1, 1, 1, 1)),
        lm=None,
        extra=None,
    )
    pruning = Pruning(1, 1.0, False, False, torch.device("cpu"))
    beam = Beam(torch.zeros((1, 1)), torch.zeros((1, 1, SCORERS), dtype=torch.long))
    FastStep(pruning, 1.0, 1, None).take(beam, heard)
    boost = PhraseBoost([BoostGraph.build([([0], 1.0)], 1)], 1.0)
    boost.score(boost.start(1), torch.zeros((1, 1), dtype=torch.long))
    boost.advance(boost.start(1), torch.zeros(1, dtype=torch.long))
    top_tokens(torch.zeros((1, 2)), 1)
    TransformerLM(TransformerLMConfig(layers=1, width=4, heads=1, feed_forward=4), 1, 0).eval().contexts()
    unigram = NGrams(np.zeros((1, 1), np.int64), np.zeros(1), np.zeros(1))
    contexts = compile_ngrams([unigram], 1, 0, "nothing").contexts()
    contexts.advance(contexts.start(1), torch.zeros(1, dtype=torch.long))


if __name__ == "__main__":
    compile_all()
