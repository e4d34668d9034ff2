"""What language models and lists cost a beam search: n-gram fusion, long lists, a list for each utterance.

    OMP_NUM_THREADS=1 python tests/benchmarks/fusion.py

The planted model of ``search.py`` (factorized transducer, vocabulary 500, 250 frames of 40 ms), beam 8, one thread;
variants take turns, ratios are medians over turns. An n-gram model of order 3 is trained on 20,000 made-up
sentences.
Exit status 1 if a bar is missed or an answer differs. Bars:

    n-gram fusion adds at most 7 %; a list of 20,000 entries at most 5 %; 32 different lists in a batch of 32 at
    most 15 % over one list for all; 100,000 entries cost what 100 cost, within 10 %, and compile in under 1 s and
    100 MB; what is fused scores its hypotheses as the n-gram model alone scores their tokens.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "decoding"))

import torch
from search import CLASSES, VOCAB, Planted, median_times
from trees import tree_of

from asr.families.factorized.emitter import FactorizedEmitter
from decoding.class_status import ClassGrammar
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.internal_lm import ContextScorer
from decoding.phrase_boost import BoostGraph, PhraseBoost
from decoding.trace import RawHypothesis
from lm.kneser_ney import train_arpa
from lm.ngram import NGramModel

BEAM = BeamConfig(beam=8)
WEIGHT = 0.3


class Fused:
    """The planted model with n-grams and lists of several lengths."""

    def __init__(self) -> None:
        self.planted = Planted()
        self.ngram = self._train()
        generator = torch.Generator().manual_seed(1)
        draw = torch.randint(VOCAB // 2, (100_000, 4), generator=generator) * 2
        draw[:, 1:] += 1
        self.entries = draw.unique(dim=0)[
            torch.randperm(len(draw.unique(dim=0)), generator=generator)
        ].tolist()

    def _train(self) -> NGramModel:
        sentences = []
        for _ in range(20_000):
            words: list[int] = []
            while len(words) < 12:
                words += self.planted._item()[0]
            sentences.append([str(word) for word in words])
        names = tuple(str(i) for i in range(VOCAB))
        tokenizer: Any = SimpleNamespace(pieces=names, classes=(), vocab_size=VOCAB, num_classes=0)
        with tempfile.TemporaryDirectory() as folder:
            train_arpa(sentences, 3, Path(folder) / "m.arpa")
            return NGramModel.from_arpa(Path(folder) / "m.arpa", tokenizer)

    def emitter(self, copies: int = 1) -> FactorizedEmitter:
        """The planted emitter, or its utterances several times."""
        emitter = self.planted.emitter()
        if copies > 1:
            for name in ("_peak", "_heard", "evidence", "tokens", "_frame"):
                part = getattr(emitter, name)
                setattr(emitter, name, part.repeat(copies, *[1] * (part.dim() - 1)))
            emitter.lengths = emitter.lengths.repeat(copies)
            emitter._row = torch.arange(len(emitter.lengths))
        return emitter

    def plain(self) -> list[list[RawHypothesis]]:
        """No sources."""
        return BeamSearch(self.emitter(), BEAM).run()

    def fused(self) -> list[list[RawHypothesis]]:
        """With the n-gram model."""
        scorer = ContextScorer(self.ngram.contexts(), "fusion", WEIGHT)
        return BeamSearch(self.emitter(), BEAM, scorers=[scorer]).run()

    def boosted(self, graphs: Sequence[BoostGraph], copies: int = 1) -> list[list[RawHypothesis]]:
        """With phrases."""
        emitter = self.emitter(copies)
        boost = PhraseBoost(graphs, weight=1.0, name="phrases", device=emitter.lengths.device)
        return BeamSearch(emitter, BEAM, scorers=[boost]).run()

    def classed(self, trees: Sequence[Any], copies: int = 1) -> list[list[RawHypothesis]]:
        """With classes."""
        emitter = self.emitter(copies)
        grammar = ClassGrammar(emitter.contexts, self.planted.starts_word, list(trees))
        return BeamSearch(emitter, BEAM, grammar).run()

    def graph(self, size: int) -> BoostGraph:
        """So many phrases."""
        return BoostGraph.build([(tuple(e), 1.0) for e in self.entries[:size]], VOCAB)

    def tree(self, size: int, first: int = 0) -> Any:
        """So many entries, four classes."""
        part = self.entries[first : first + size]
        return tree_of({c: [(e, 1.0) for e in part[c::CLASSES]] for c in range(CLASSES)}, VOCAB, CLASSES)


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    """Median over turns."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def compiled(fused: Fused) -> tuple[float, float]:
    """Seconds and peak MB of compiling 100,000 phrases."""
    phrases = [(tuple(e), 1.0) for e in fused.entries]
    began = time.perf_counter()
    BoostGraph.build(phrases, VOCAB)
    took_s = time.perf_counter() - began
    tracemalloc.start()
    BoostGraph.build(phrases, VOCAB)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return took_s, peak


@torch.no_grad()
def agrees(fused: Fused) -> bool:
    """Whether the n-gram model's part of every hypothesis is what it gives the tokens."""
    contexts = fused.ngram.contexts()
    for nbest in fused.fused():
        for hypothesis in nbest:
            total, state = 0.0, contexts.start(1)
            for token in hypothesis.tokens:
                total += float(contexts.score(state)[0, token])
                state = contexts.advance(state, torch.tensor([token]))
            if abs(WEIGHT * total - hypothesis.parts["fusion"]) > 1e-2:
                return False
    return True


def main() -> int:
    """Run, print, and check the bars."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=7, help="timed turns of every variant")
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    fused = Fused()
    graphs = {size: fused.graph(size) for size in (100, 20_000, len(fused.entries))}
    trees = {size: fused.tree(size) for size in (100, 20_000, len(fused.entries))}
    own = [fused.tree(1000, 1000 * i) for i in range(32)]
    whole = len(fused.entries)
    with torch.no_grad():
        times, _ = median_times(
            {
                "no sources": fused.plain,
                "n-gram": fused.fused,
                **{f"{n:,} phrases": lambda g=g: fused.boosted([g] * 8) for n, g in graphs.items()},
                **{f"{n:,} entries": lambda t=t: fused.classed([t] * 8) for n, t in trees.items()},
                "32 x one list": lambda: fused.classed([own[0]] * 32, 4),
                "32 lists": lambda: fused.classed(own, 4),
            },
            turns,
        )
    print(f"8 utterances x 250 frames, vocabulary {VOCAB}, beam {BEAM.beam}, 1 thread, {turns} turns")
    for name, taken in times.items():
        print(f"{name:20s} {statistics.median(taken):7.3f} s ({min(taken):.3f}-{max(taken):.3f})")
    bars = [
        ("n-gram", "no sources", 1.07),
        ("20,000 phrases", "no sources", 1.05),
        ("20,000 entries", "no sources", 1.05),
        (f"{whole:,} phrases", "100 phrases", 1.10),
        (f"{whole:,} entries", "100 entries", 1.10),
        ("32 lists", "32 x one list", 1.15),
    ]
    failed = False
    for one, other, bar in bars:
        found = ratio(times, one, other)
        failed |= found > bar
        print(f"{one} / {other}: {found:.2f} (bar {bar}) {'MISSED' if found > bar else 'met'}")
    took_s, peak = compiled(fused)
    failed |= took_s >= 1.0 or peak >= 100
    print(f"{whole:,} phrases compiled in {took_s:.2f} s, {peak:.0f} MB at most (bars 1 s, 100 MB)")
    same = agrees(fused)
    print(f"the n-gram model's part is what it gives the tokens: {same}")
    return int(failed or not same)


if __name__ == "__main__":
    sys.exit(main())
