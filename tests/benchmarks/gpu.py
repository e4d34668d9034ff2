"""Beam search against greedy search on a GPU, on the planted transducer of ``peers/transducer.py``.

    python tests/benchmarks/gpu.py

A stateless predictor, 256 dimensions, 500 tokens, utterances of 250 frames (40 ms each). The searches take turns;
ratios are medians over turns. What a search finds on the GPU is compared with what it finds on the CPU.

A beam of 1 does what greedy search does, but in steps that are recorded as a CUDA graph (``decoding.steady``), as
those of all beams are.

Exit status 1 if a bar is missed or fewer than 99 % of the tokens are those of the CPU. Bar: beam 4 takes at most
1.25 x as long as batched greedy search.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).with_name("peers")))

import torch
from planted_transducer import FRAMES, PlantedTransducer

from asr.decoding_config import DecodingConfig
from asr.scoring.errors import score_pairs, total
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.greedy import greedy_search

UTTERANCES, BEAMS, BARRED, OVER_GREEDY, SAME = (8, 32, 128), (1, 4, 10), 4, 1.25, 99.0
Search = Callable[[], list[list[int]]]


def greedy(planted: PlantedTransducer, utterances: int) -> list[list[int]]:
    """Tokens of greedy search."""
    return [tokens for tokens, _ in greedy_search(planted.emitter(utterances, None))]


def beam(planted: PlantedTransducer, utterances: int, width: int) -> list[list[int]]:
    """Best tokens of beam search."""
    emitter = planted.emitter(utterances, DecodingConfig().candidates)
    return [list(found[0].tokens) for found in BeamSearch(emitter, BeamConfig(beam=width)).run()]


def searches(planted: PlantedTransducer, utterances: int) -> dict[int, Search]:
    """By beam; 0 is greedy."""
    beams = {width: partial(beam, planted, utterances, width) for width in BEAMS}
    return {0: partial(greedy, planted, utterances), **beams}


def take(search: Search) -> tuple[float, list[list[int]]]:
    """Seconds and tokens."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    found = search()
    torch.cuda.synchronize()
    return time.perf_counter() - began, found


def agreement(found: list[list[int]], expected: list[list[int]]) -> float:
    """Percent of the expected tokens that were found."""
    written = ((" ".join(map(str, e)), " ".join(map(str, f))) for e, f in zip(expected, found, strict=True))
    return 100 - 100 * total(score_pairs(written)).rate


def _ratio(times: list[float], base: list[float]) -> float:
    """Median over turns."""
    return statistics.median(mine / other for mine, other in zip(times, base, strict=True))


def compare(
    planted: PlantedTransducer, utterances: int, expected: dict[int, list[list[int]]], turns: int
) -> bool:
    """Print a row a search; whether the bar is met and the tokens are the CPU's."""
    ours = searches(planted, utterances)
    same = {width: agreement(take(search)[1], expected[width]) for width, search in ours.items()}
    seconds: dict[int, list[float]] = {width: [] for width in ours}
    for _ in range(turns):
        for width, search in ours.items():
            seconds[width].append(take(search)[0])
    good = all(alike >= SAME for alike in same.values())
    for width, times in seconds.items():
        middle = statistics.median(times)
        ratio, narrow = (_ratio(times, seconds[base]) for base in (0, 1))
        what = f"beam {width}" if width else "greedy"
        verdict = ""
        if width == BARRED:
            verdict = f", bar {OVER_GREEDY} {'met' if ratio <= OVER_GREEDY else 'MISSED'}"
            good &= ratio <= OVER_GREEDY
        real = utterances * FRAMES * 0.04 / middle
        print(
            f"{what:8s} {utterances:4d} utterances {middle:7.3f} s ({min(times):.3f}-{max(times):.3f}) "
            f"{real:7.0f} x real time, {ratio:5.2f} x greedy, {narrow:5.2f} x beam 1"
            f"{verdict}; {same[width]:.1f} % of the CPU's tokens",
            flush=True,
        )
    return good


def main() -> int:
    """Run, print, and check the bars."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5, help="timed turns of every search")
    parser.add_argument("--updates", type=int, default=100, help="training steps of the model")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: no GPU here")
        return 0
    print(f"{torch.cuda.get_device_name()}, {FRAMES} frames of 40 ms, {given.turns} turns", flush=True)
    planted = PlantedTransducer(max(UTTERANCES), given.updates)
    expected = {n: {w: search() for w, search in searches(planted, n).items()} for n in UTTERANCES}
    planted.to("cuda")
    good = [compare(planted, n, expected[n], given.turns) for n in UTTERANCES]
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())
