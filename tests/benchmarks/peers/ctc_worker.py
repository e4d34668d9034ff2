"""CTC searches of other toolkits on given emissions; started by ``ctc.py`` in their environment.

    python ctc_worker.py TASK.json

Both get the log probabilities, blank last, as an array, and the n-gram model as an ARPA file that KenLM reads. What
they build once for all utterances is not timed, and only the best hypothesis is asked for.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from protocol import Search, serve

Find = Callable[[Any], list[int]]
"""Best tokens of the log probabilities ``(T, V + 1)`` of an utterance."""


def flashlight_search(task: dict[str, Any]) -> Callable[[int, bool], Find]:
    """Without a lexicon; it has no phrases there."""
    from flashlight.lib.text.decoder import CriterionType, LexiconFreeDecoder, LexiconFreeDecoderOptions
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    blank = len(task["words"])
    names = Dictionary([*task["words"], "<blank>"])
    lm = KenLM(task["arpa"], names)

    def make(beam: int, phrases: bool) -> Find:
        options = LexiconFreeDecoderOptions(
            beam_size=beam,
            beam_size_token=task["candidates"],
            beam_threshold=task["threshold"],
            lm_weight=task["lm_weight"] * math.log(10),  # KenLM's logarithms are of base 10
            sil_score=0.0,
            log_add=True,
            criterion_type=CriterionType.CTC,
        )
        decoder = LexiconFreeDecoder(options, lm, blank, blank, [])

        def find(logp: Any) -> list[int]:
            decoder.decode_begin()
            decoder.decode_step(logp.ctypes.data, *logp.shape)
            decoder.decode_end()
            path = decoder.get_best_hypothesis(0).tokens[1:-1]
            return [token for token, _ in groupby(path) if token != blank]

        return find

    return make


def pyctcdecode_search(task: dict[str, Any]) -> Callable[[int, bool], Find]:
    """Every token is a word; the words of phrases are its hotwords, each by itself."""
    logging.disable(logging.WARNING)
    import kenlm
    from pyctcdecode import Alphabet, BeamSearchDecoderCTC, LanguageModel

    words = task["words"]
    number = {word: i for i, word in enumerate(words)}
    labels = Alphabet(["▁" + word for word in words] + [""], True)
    lm = LanguageModel(kenlm.Model(task["arpa"]), words, alpha=task["lm_weight"], beta=0.0)
    decoder = BeamSearchDecoderCTC(labels, lm)
    hotwords = [" ".join(words[token] for token in phrase) for phrase in task["phrases"]]

    def make(beam: int, phrases: bool) -> Find:
        settings = {
            "beam_width": beam,
            "beam_prune_logp": -task["threshold"],
            "hotwords": hotwords if phrases else None,
            "hotword_weight": task["bonus"],
        }
        return lambda logp: [number[word] for word in decoder.decode(logp, **settings).split()]

    return make


def build() -> Search:
    """The searches of both."""
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    emissions = np.load(task["emissions"])
    toolkits = {"flashlight": flashlight_search(task), "pyctcdecode": pyctcdecode_search(task)}

    def search(toolkit: str, beam: int, phrases: bool, batch: int) -> list[list[int]]:
        find = toolkits[toolkit](beam, phrases)
        return [find(logp) for logp in emissions[batch]]

    return search


if __name__ == "__main__":
    serve(build)
