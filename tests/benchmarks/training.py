"""Training speed of a factorized transducer against CTC on the same encoder, side by side.

    OMP_NUM_THREADS=2 python tests/benchmarks/training.py

Both take turns at forward + backward over the same batches of 60 s, bf16; the factorized transducer computes all
its losses (transducer, CTC, language model on surface and tagged text). Ratios are medians over turns. Exit
status 1 if the factorized transducer trains at less than 90 % of the CTC speed, or if a loss is not finite.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from asr.data.examples import Batch, Example, make_batch
from asr.encoders.conformer import ConformerConfig
from asr.families.factorized.config import FactorizedConfig, FactorizedLossConfig
from asr.families.factorized.model import FactorizedTransducer
from asr.losses.ctc import ctc_loss
from lm.transformer import TransformerLMConfig

VOCAB, CLASSES, BATCH_S, FRAMES_PER_S = 500, 4, 60, 100


def make_model() -> FactorizedTransducer:
    """About five million parameters in all."""
    torch.manual_seed(0)
    encoder = ConformerConfig(layers=8, width=160, feed_forward=640)
    predictor = TransformerLMConfig(layers=1, width=128, heads=4, feed_forward=512)
    return FactorizedTransducer(
        FactorizedConfig(encoder=encoder, predictor=predictor), VOCAB, CLASSES
    ).train()


def make_batches() -> list[Batch]:
    """A minute of speech each: long, middling and short utterances at three tokens a second."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for seconds in (12, 6, 3):
        count, labels = BATCH_S // seconds, 3 * seconds
        draw = torch.randint(0, VOCAB, (count, labels), generator=generator).tolist()
        examples = [Example(str(i), tuple(row), ((0, 1, 3),)) for i, row in enumerate(draw)]
        features = torch.randn(count, seconds * FRAMES_PER_S, 80, generator=generator)
        lengths = torch.full((count,), seconds * FRAMES_PER_S)
        batches.append(make_batch(features, lengths, examples, VOCAB, 0.5, generator))
    return batches


def ctc_only(model: FactorizedTransducer, batch: Batch) -> torch.Tensor:
    """The CTC loss of the same encoder."""
    encoded, frames = model.encode(batch.features, batch.feature_lengths)
    logp = model.ctc(encoded).float().log_softmax(-1)
    loss, _ = ctc_loss(logp, batch.labels, frames, batch.label_lengths, blank=VOCAB)
    return loss.sum() / batch.label_lengths.sum()


def timed(model: FactorizedTransducer, batches: list[Batch], factorized: bool) -> tuple[float, float]:
    """Seconds for forward + backward over all batches, and the last loss."""
    began = time.perf_counter()
    value = math.nan
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16):
            loss = (
                model.losses(batch, FactorizedLossConfig())["total"] if factorized else ctc_only(model, batch)
            )
        loss.backward()
        model.zero_grad(set_to_none=True)
        value = float(loss.detach())
    return time.perf_counter() - began, value


def main() -> int:
    """Run, print, and check the bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=7, help="timed turns of each side")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, batches = make_model(), make_batches()
    times: dict[bool, list[float]] = {True: [], False: []}
    finite = True
    for turn in range(arguments.turns + 1):
        for factorized in (True, False):
            took, value = timed(model, batches, factorized)
            finite &= math.isfinite(value)
            if turn:
                times[factorized].append(took)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{size:.2f} M parameters, bf16, {arguments.threads} threads, {arguments.turns} turns")
    for factorized, name in ((True, "factorized transducer"), (False, "CTC, same encoder")):
        middle = statistics.median(times[factorized])
        print(f"{name:24s} {BATCH_S * len(batches) / middle:6.1f} s of audio a second")
    ratio = statistics.median(c / f for f, c in zip(times[True], times[False], strict=True))
    print(f"factorized / CTC speed   {ratio:6.2f} (bar 0.90) {'met' if ratio >= 0.9 else 'MISSED'}")
    return int(ratio < 0.9 or not finite)


if __name__ == "__main__":
    sys.exit(main())
