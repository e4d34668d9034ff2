"""Beam search against greedy search on the same model, and with entity lists against without.

    OMP_NUM_THREADS=1 python tests/benchmarks/search.py

A factorized transducer whose vocabulary predictor is trained, for a few seconds, on made-up text in which a cue
announces an entry of each of four classes. Its acoustic scores are planted: about 45 tokens are heard in each
utterance of 250 frames (40 ms each), every one with a strong rival, and a little a frame early and late. Single
thread; the variants take turns, and ratios are medians over turns. Exit status 1 if a bar is missed or an answer
differs. The planted sharpness follows what was measured on dev utterances of an AN4 model: in frames of blank the
best label is 8 to 10 nats behind; a label that is said is 3.5 ahead, its rival 5 behind.
Bars:

    beam 8 takes at most 2 x greedy; four classes of 1,000 entries add at most 20 %;
    beam 1 finds what greedy finds; of the entries planted, nine in ten are found as entities.
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
from decoding.trace import RawHypothesis
from lm.prefix_tree import PrefixTree

VOCAB, CLASSES, UTTERANCES, FRAMES = 500, 4, 8, 250
NOISE, BLANK, PEAK = 1.7, 8.5, 18.5
ENTITIES = 0.1  # of what is said; an entry is four tokens, so a third of the tokens


class Planted:
    """The model, what is heard in each frame, and the lists.

    What is said is free words and, behind a cue of its own each, entries of four classes. The vocabulary predictor
    is trained on such text with the entries' surface and with their tags, for a few seconds.
    """

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.model = FactorizedTransducer(FactorizedConfig(), VOCAB, CLASSES)
        self.starts_word = torch.arange(VOCAB) % 2 == 0
        draw = self._draw(VOCAB // 2, (CLASSES, 1000, 4)) * 2
        draw[..., 1:] += 1  # entries are one word: only the first token starts one
        self.lists = {c: [(entry.tolist(), 1.0) for entry in draw[c].unique(dim=0)] for c in range(CLASSES)}
        self.tree: PrefixTree = tree_of(self.lists, VOCAB, CLASSES)
        self._teach()
        self.model.eval()
        self.acoustic = NOISE * torch.randn(UTTERANCES, FRAMES, VOCAB, generator=self.generator)
        self.acoustic += 2.0 * torch.randn(UTTERANCES, FRAMES, 1, generator=self.generator)
        self.said = [self._plant(row) for row in self.acoustic]
        with torch.no_grad():
            self.model.blank_output.bias.fill_(BLANK)
        shape = (UTTERANCES, FRAMES, self.model.encoder.width)
        self.encoded = torch.randn(shape, generator=self.generator)

    def _draw(self, below: int, shape: tuple[int, ...] = ()) -> torch.Tensor:
        return torch.randint(below, shape, generator=self.generator)

    def _item(self) -> tuple[list[int], int | None]:
        """Tokens of a free word, or of a cue and an entry and the class it is of."""
        if float(torch.rand((), generator=self.generator)) >= ENTITIES:
            return [int(self._draw(VOCAB // 2 - CLASSES)) * 2 + 2 * CLASSES], None
        kind = int(self._draw(CLASSES))
        entries = self.lists[kind]
        return [2 * kind, *entries[int(self._draw(len(entries)))][0]], kind

    def _teach(self, updates: int = 200) -> None:
        """Train the predictor on text, each entity as its tag in half of the sentences."""
        predictor = self.model.predictor
        optimizer = torch.optim.AdamW(predictor.parameters(), lr=2e-3)
        for update in range(updates):
            rows = []
            for _ in range(16):
                tokens: list[int] = []
                while len(tokens) < 32:
                    words, kind = self._item()
                    tokens += words if kind is None or update % 2 else [words[0], VOCAB + kind]
                rows.append(tokens[:32])
            text = torch.tensor(rows)
            loss = torch.nn.functional.cross_entropy(predictor(text)[:, :-1].flatten(0, 1), text.flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def _plant(self, row: torch.Tensor) -> list[tuple[int, ...]]:
        """Say free words and entries in the frames of ``row``; returns the entries."""
        entries, frame = [], 2
        while frame < FRAMES - 30:
            tokens, kind = self._item()
            if kind is not None:
                entries.append(tuple(tokens[1:]))
            for token in tokens:
                height = PEAK + 2.5 * float(torch.randn((), generator=self.generator).clamp(-1.0, 2.0))
                row[frame, token] += height
                rival = int(self._draw(VOCAB))
                row[frame, rival] += (
                    height - 3.0 + 2.0 * float(torch.randn((), generator=self.generator).clamp_max(1.0))
                )
                for beside in (frame - 1, frame + 1):  # heard a little a frame early and late
                    row[beside, token] += height - 9.0 - 4.0 * float(torch.rand((), generator=self.generator))
                frame += int(torch.randint(3, 8, (), generator=self.generator))
        return entries

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
        grammar = ClassGrammar(emitter.contexts, self.starts_word, [self.tree] * UTTERANCES)
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


def spans_of(hypothesis: RawHypothesis) -> set[tuple[int, ...]]:
    """Tokens of every entity found."""
    return {hypothesis.tokens[span.start : span.end] for span in hypothesis.spans}


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
    found = answers["beam 8, 4 x 1,000 entries"]
    right = sum(len(set(said) & spans_of(nbest[0])) for said, nbest in zip(planted.said, found, strict=True))
    count = sum(len(said) for said in planted.said)
    print(f"beam 1 equals greedy: {agree}; entities found: {right} of {count} planted")
    return int(failed or not agree or right < 0.9 * count)


if __name__ == "__main__":
    sys.exit(main())
