"""Beam search against greedy search on the same model, and with entity lists against without.

    OMP_NUM_THREADS=1 python tests/benchmarks/search.py

A factorized transducer with random weights; its acoustic scores are planted so that about 45 tokens are heard in
each utterance of 250 frames (40 ms each), every one with a strong rival. Single thread; the variants take turns,
and ratios are medians over turns. Exit status 1 if a bar is missed or an answer differs.
The planted sharpness follows what was measured on dev utterances of an AN4 model: in frames of blank the best
label is 8 to 10 nats behind (a third to half within 8); a label that is said is 3.5 ahead, its rival 5 behind.
Bars:

    beam 8 takes at most 2 x greedy; four classes of 1,000 entries add at most 20 %;
    beam 1 finds what greedy finds; the entries, which are planted too, are found as entities.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1] / "decoding"))

import torch
from trees import tree_of

from asr.families.factorized.config import FactorizedConfig
from asr.families.factorized.emitter import FactorizedEmitter
from asr.families.factorized.model import FactorizedTransducer
from decoding.class_status import ClassGrammar
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.greedy import greedy_search
from lm.prefix_tree import PrefixTree

VOCAB, CLASSES, UTTERANCES, FRAMES = 500, 4, 8, 250
NOISE, BLANK, PEAK = 1.7, 8.5, 18.5


class Planted:
    """The model, what is heard in each frame, and the lists."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self.model = FactorizedTransducer(FactorizedConfig(), VOCAB, CLASSES).eval()
        self.starts_word = torch.arange(VOCAB) % 2 == 0
        draw = torch.randint(0, VOCAB // 2, (CLASSES, 1000, 4), generator=generator) * 2
        draw[..., 1:] += 1  # entries are one word: only the first token starts one
        self.lists = {c: [(entry.tolist(), 1.0) for entry in draw[c].unique(dim=0)] for c in range(CLASSES)}
        self.tree: PrefixTree = tree_of(self.lists, VOCAB, CLASSES)
        self.acoustic = NOISE * torch.randn(UTTERANCES, FRAMES, VOCAB, generator=generator)
        self.acoustic += 2.0 * torch.randn(UTTERANCES, FRAMES, 1, generator=generator)
        self.planted = 0
        for row in self.acoustic:
            frame = 2
            while frame < FRAMES - 24:
                frame = self._plant(row, frame, generator)
        with torch.no_grad():
            self.model.blank_output.bias.fill_(BLANK)
        self.encoded = torch.randn(UTTERANCES, FRAMES, self.model.encoder.width, generator=generator)

    def _plant(self, row: torch.Tensor, frame: int, generator: torch.Generator) -> int:
        """One entry or one free word from ``frame`` on; returns the frame behind it."""
        chance = torch.rand(1, generator=generator).item()
        if chance < 0.15:
            entries = self.lists[int(torch.randint(CLASSES, (1,), generator=generator))]
            tokens = entries[int(torch.randint(len(entries), (1,), generator=generator))][0]
            self.planted += 1
        else:
            tokens = [int(torch.randint(VOCAB // 2, (1,), generator=generator)) * 2]
        for token in tokens:
            height = PEAK + 2.5 * torch.randn(1, generator=generator).clamp(-1.5, 2.0).item()
            row[frame, token] += height
            rival = int(torch.randint(VOCAB, (1,), generator=generator))
            row[frame, rival] += (
                height - 3.0 + 2.0 * torch.randn(1, generator=generator).clamp_max(2.0).item()
            )
            for beside in (frame - 1, frame + 1):  # a label may come a frame early or late
                row[beside, token] += height - 5.0 - 4.0 * torch.rand(1, generator=generator).item()
            frame += int(torch.randint(3, 8, (1,), generator=generator))
        return frame

    def emitter(self) -> FactorizedEmitter:
        """A fresh emitter that hears what was planted."""
        emitter = FactorizedEmitter(self.model, self.encoded, torch.full((UTTERANCES,), FRAMES))
        emitter._peak = self.acoustic.amax(-1)
        emitter._heard = (self.acoustic - emitter._peak[..., None]).exp()
        emitter.evidence, emitter.tokens = self.acoustic.topk(32)
        return emitter

    def with_lists(self) -> BeamSearch:
        """A search of beam 8 with four classes."""
        emitter = self.emitter()
        grammar = ClassGrammar(emitter.contexts, self.starts_word, [self.tree] * UTTERANCES, bonus=4.0)
        return BeamSearch(emitter, BeamConfig(beam=8), grammar)


def median_times(
    variants: dict[str, Callable[[], Any]], turns: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each variant in each turn, and its last answer."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    answers = {}
    for _ in range(turns + 1):
        for name, run in variants.items():
            began = time.perf_counter()
            answers[name] = run()
            times[name].append(time.perf_counter() - began)
    return {name: taken[1:] for name, taken in times.items()}, answers


def main() -> int:
    """Run, print, and check the bars."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=7, help="timed turns of every variant")
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    planted = Planted()
    with torch.no_grad():
        times, answers = median_times(
            {
                "greedy": lambda: greedy_search(planted.emitter()),
                "beam 1": lambda: BeamSearch(planted.emitter(), BeamConfig(beam=1)).run(),
                "beam 4": lambda: BeamSearch(planted.emitter(), BeamConfig(beam=4)).run(),
                "beam 8": lambda: BeamSearch(planted.emitter(), BeamConfig(beam=8)).run(),
                "beam 8, 4 x 1,000 entries": lambda: planted.with_lists().run(),
            },
            turns,
        )
    audio_s = UTTERANCES * FRAMES * 0.04
    print(f"{UTTERANCES} utterances x {FRAMES} frames of 40 ms, vocabulary {VOCAB}, 1 thread, {turns} turns")
    for name, taken in times.items():
        middle = statistics.median(taken)
        spread = f"{min(taken):.3f}-{max(taken):.3f}"
        print(f"{name:28s} {middle:7.3f} s ({spread})  {audio_s / middle:6.0f} x real time")
    pairs = {
        "beam 8 / greedy": (times["beam 8"], times["greedy"], 2.0),
        "with lists / without": (times["beam 8, 4 x 1,000 entries"], times["beam 8"], 1.2),
    }
    failed = False
    for name, (one, other, bar) in pairs.items():
        ratio = statistics.median(a / b for a, b in zip(one, other, strict=True))
        failed |= ratio > bar
        print(f"{name:28s} {ratio:5.2f} (bar {bar}) {'MISSED' if ratio > bar else 'met'}")
    agree = [list(found[0].tokens) for found in answers["beam 1"]] == [
        tokens for tokens, _ in answers["greedy"]
    ]
    spans = sum(len(found[0].spans) for found in answers["beam 8, 4 x 1,000 entries"])
    share = spans / planted.planted
    print(f"beam 1 equals greedy: {agree}; entities found: {spans} of {planted.planted} planted")
    return int(failed or not agree or share < 0.9)


if __name__ == "__main__":
    sys.exit(main())
